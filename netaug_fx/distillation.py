"""What a teacher's output adds to the loss of a net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from netaug_fx.errors import InputError


@dataclass(frozen=True)
class Distillation:
    """Soft targets (Hinton et al., arXiv 1503.02531): ``weight * T^2 * KL(teacher || student)`` at temperature T.

    The factor ``T^2`` keeps the gradient's size where the temperature changes.

    Attributes:
        weight: Weight of the term beside the loss on the labels.
        temperature: Divides both outputs before the softmax.

    Raises:
        InputError: a value is not positive.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(float(Distillation(temperature=2.0)(student, teacher)), 3)
        0.105
    """

    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of a Distillation must be above 0, not {getattr(self, name)!r}")

    def __call__(self, student: Any, teacher: Any) -> Tensor:
        """The term for one batch; the teacher's output gets no gradient.

        Args:
            student: Logits, classes along the last dimension.
            teacher: Logits of the same shape.

        Raises:
            InputError: they are no tensors, or differ in shape.
        """
        if not (isinstance(student, Tensor) and isinstance(teacher, Tensor)) or student.shape != teacher.shape:
            shapes = [list(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (student, teacher)]
            raise InputError(
                f"distillation needs logits of one shape from both nets; the student gives {shapes[0]}, the teacher "
                f"{shapes[1]}. For other outputs, give step a function of both that returns the term."
            )
        temperature = self.temperature
        student_log = F.log_softmax(student / temperature, -1).flatten(0, -2)
        teacher_log = F.log_softmax(teacher.detach() / temperature, -1).flatten(0, -2)
        divergence = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
        return self.weight * temperature**2 * divergence
