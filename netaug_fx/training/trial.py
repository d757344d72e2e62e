"""How ``netaug-fx enlarge`` judges a candidate: a short training, and its accuracy on a part of the training images.

The validation images of the data set have no part in it, so that the net that is chosen can be judged by them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from netaug_fx.errors import DataError, RunError
from netaug_fx.training.arm import Arm
from netaug_fx.training.config import EnlargeConfig
from netaug_fx.training.data import DataConfig, ImageSource, StreamSource, Task, load_task
from netaug_fx.training.data.split import stratified_split
from netaug_fx.training.data.transforms import Picture
from netaug_fx.training.engine import train_arm
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.methods import Plain
from netaug_fx.training.progress import Silent
from netaug_fx.training.run_folder import accelerator_for, torch_threads


@dataclass(frozen=True)
class Trial:
    """An ``evaluate`` for ``netaug_fx.enlarge``, which can be pickled and gives the same score wherever it runs.

    The net is trained for ``enlarge.epochs`` by the settings' optimizer and schedule, on all training images but the
    part ``enlarge.hold_out`` of each class; its accuracy on that part is the score. With ``enlarge.inherit`` its
    weights are returned, too.

    Example:
        >>> import netaug_fx
        >>> from netaug_fx.models import digits_net
        >>> from netaug_fx.training.config import EnlargeConfig, load_config
        >>> from netaug_fx.training.trial import Trial
        >>> trial = Trial(load_config(EnlargeConfig, None, {"enlarge.epochs": 1, "data.batch_size": 256}))
        >>> 0 < trial(digits_net(), 8) < 1
        True
    """

    config: EnlargeConfig

    @property
    def fingerprint(self) -> str:
        """Identifies all that decides scores, beside the net: what a candidate's training reads, and nothing else."""
        config = trial_settings(self.config)
        content = config.model_dump(mode="json", include={"data", "optim", "seed"})
        content |= {"hold_out": config.enlarge.hold_out, "inherit": config.enlarge.inherit}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __call__(self, model: nn.Module, resolution: int) -> float | tuple[float, Mapping[str, Tensor]]:
        """The accuracy, from 0 to 1, that a training of the model on images of this side comes to; NaN if it diverged.

        Args:
            model: Trained in place.
            resolution: Side of the images.

        Raises:
            RunError: something cannot be written.
            KeyboardInterrupt: the user asked for an end.
        """
        config = trial_settings(self.config)
        task = trial_task(config.data, config.seed, config.enlarge.hold_out, resolution)
        with tempfile.TemporaryDirectory() as folder, torch_threads(threads_of(config)), StopRequest() as stop:
            arm = Arm("candidate", config, task, accelerator_for(config), model, Path(folder), Plain())
            try:
                train_arm(arm, Silent(), stop, on_epoch=lambda: None)
            except Interrupted:  # its folder is none to resume from
                raise KeyboardInterrupt from None
            except RunError:
                if _finite(arm):
                    raise
                return math.nan
            score = arm.history[-1]["val_accuracy"]
            return (score, arm.plain().state_dict()) if config.enlarge.inherit else score


def _finite(arm: Arm) -> bool:
    """Whether a training has not diverged."""
    return all(bool(torch.isfinite(values).all()) for values in (arm.sums, *arm.net.parameters()))


def trial_settings(config: EnlargeConfig) -> EnlargeConfig:
    """The settings of a candidate's training: those of the whole, but for its epochs."""
    optim = config.optim.model_copy(update={"epochs": config.enlarge.epochs})
    return config.model_copy(update={"optim": optim})


def threads_of(config: EnlargeConfig) -> int | None:
    """Torch's threads: as asked for, else one where candidates run side by side or nets are very small.

    Sums differ in their last bits between numbers of threads, and with them scores.
    """
    return config.threads or (1 if config.jobs > 1 or config.data.name == "digits" else None)


@functools.lru_cache(maxsize=2)
def trial_task(data: DataConfig, seed: int, hold_out: float, resolution: int) -> Task:
    """The data set with a part of its training images in the place of its validation images.

    Raises:
        DataError: the images are a stream, of which no part can be held out, or a class has a single one.
    """
    task = load_task(at_size(data, resolution), seed)
    if isinstance(task.train, StreamSource):
        raise DataError(
            f"data set {task.name} is read as a stream, and no part of it can be held out to choose by. Choose another "
            "data set, or call netaug_fx.enlarge with an evaluate of your own."
        )
    rest, held_out = stratified_split(task.train.labels.tolist(), hold_out, seed)
    if not held_out:
        raise DataError(f"data set {task.name}: every class has a single training image, so none can be held out.")
    return replace(task, train=Selected(task.train, tuple(rest)), val=Selected(task.train, tuple(held_out)))


def at_size(data: DataConfig, resolution: int) -> DataConfig:
    """The settings of the data with images of another side."""
    return data.model_copy(update={"image_size": resolution})


@dataclass(frozen=True)
class Selected:
    """Some images of a source, in the order given."""

    source: ImageSource
    chosen: tuple[int, ...] = field(repr=False)

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 ``[n]``."""
        return self.source.labels[torch.as_tensor(self.chosen)]

    def __len__(self) -> int:
        return len(self.chosen)

    def images(self, indices: Sequence[int], epoch: int = 0) -> Tensor:
        """The images at ``indices`` as uint8 ``[n, channels, side, side]``."""
        return self.source.images([self.chosen[index] for index in indices], epoch)

    def picture(self, index: int, epoch: int = 0) -> Picture:
        """The image at ``index`` at its own size."""
        return self.source.picture(self.chosen[index], epoch)
