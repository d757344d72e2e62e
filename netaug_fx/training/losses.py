"""Losses beside the labels, for batches in which each image has another of its class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from netaug_fx.errors import InputError


class BesideLabels(ABC):
    """What adds to the loss on the labels."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        """Within it the net runs; what a loss needs of its inside is kept."""
        yield

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The term for a batch: logits ``[n, classes]``, labels ``[n]``."""


class ClassWise(BesideLabels):
    """Class-wise self-distillation: each image learns from the output for another of its class.

    ``weight * T^2 * KL(softmax(z' / T) || softmax(z / T))``, with no gradient through the other's logits z' (Yun et
    al., Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020, equation 2).
    """

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Images alone of their class in the batch add nothing."""
        partners, alone = partners_of(labels)
        softened = logits.float() / self.temperature
        other = F.log_softmax(softened.detach()[partners], 1)
        apart = F.kl_div(F.log_softmax(softened, 1), other, log_target=True, reduction="none").sum(1)
        return self.weight * self.temperature**2 * apart.masked_fill(alone, 0).mean()


class Triplet(BesideLabels):
    """Triplets with the hardest positive and negative of the batch, on features of length one.

    ``weight * max(0, margin + d(anchor, farthest of its class) - d(anchor, nearest of another))``, d the Euclidean
    distance (Hermans et al., In Defense of the Triplet Loss, 2017, equation 5). Features are what the classifier reads.
    """

    def __init__(self, weight: float, margin: float, classifier: str) -> None:
        """Args:
        weight: Of the term.
        margin: How much farther others are to be.
        classifier: Path of the module that makes the logits.
        """
        super().__init__(weight)
        self.margin, self.classifier = margin, classifier
        self._features: Tensor | None = None

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        """Keeps what the classifier reads."""

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._features = next(iter((*args, *kwargs.values())))

        handle = net.get_submodule(self.classifier).register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def check(self, net: nn.Module, images: Tensor, name: str) -> None:
        """Looks, before training, whether the net runs its classifier on one feature vector for each image.

        Raises:
            InputError: it does not.
        """
        was_training = net.training
        with self.watching(net.eval()), torch.no_grad():
            net(images)
        net.train(was_training)
        features, self._features = self._features, None
        if not isinstance(features, Tensor) or features.shape[:1] != images.shape[:1]:
            found = "is not called in its forward" if features is None else "does not read a batch of features"
            raise InputError(
                f"evolve.loss: triplet (--loss) compares what the classifier reads, and {self.classifier!r} of {name} "
                f"{found}; take class_wise, or let the forward call it on the features"
            )

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Anchors without a positive or a negative in the batch add nothing."""
        assert self._features is not None, "the net was not run within watching()"
        features, self._features = F.normalize(self._features.float().flatten(1), dim=1), None
        squares = (2 - 2 * features @ features.T).clamp(min=1e-9)
        distances = squares.sqrt()
        alike = labels[:, None] == labels[None, :]
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive = distances.masked_fill(~alike | itself, 0).amax(1)
        negative = distances.masked_fill(alike, torch.inf).amin(1)
        usable = (alike & ~itself).any(1) & ~alike.all(1)
        return self.weight * F.relu(self.margin + positive - negative).masked_fill(~usable, 0).mean()


def partners_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each of a batch, the next one of its class (in a circle), and whether there is none: ``[n]`` both."""
    count = len(labels)
    ahead = (torch.arange(count)[None, :] - torch.arange(count)[:, None]).remainder(count).to(labels.device)
    ahead = ahead.masked_fill((labels[:, None] != labels[None, :]) | (ahead == 0), count)
    nearest = ahead.min(1)
    return nearest.indices, nearest.values == count
