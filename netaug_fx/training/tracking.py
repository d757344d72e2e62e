"""Metrics for those who follow runs elsewhere: TensorBoard and Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netaug_fx.errors import InputError
from netaug_fx.training.settings import TrackingConfig

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Tracking:
    """Where the metrics of each epoch are sent to; nowhere, if nothing is switched on."""

    def __init__(
        self, config: TrackingConfig, folder: Path, settings: Mapping[str, Any], main_process: bool = True
    ) -> None:
        """Args:
        config: What to switch on.
        folder: The run folder; TensorBoard's files go to ``tensorboard/`` in it.
        settings: The settings of the run, to be shown beside the curves.
        main_process: Only the first process of a run sends anything.
        """
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        self.board: Any = None
        self.wandb: Any = None
        if config.tensorboard and main_process:
            self.board = TensorBoardTracker("tensorboard", logging_dir=str(folder))
        if config.wandb is not None and main_process:
            # A run that is resumed goes on under its name; another folder of the same name is another run.
            number = zlib.crc32(str(folder.resolve()).encode())
            self.wandb = WandBTracker(
                config.wandb,
                name=folder.name,
                id=f"{folder.name}-{number:08x}",
                dir=str(folder),
                resume="allow",
                config=dict(settings),
            )
        for tracker in self._trackers():
            tracker.start()

    def log(self, arm: str, row: Mapping[str, float]) -> None:
        """Send an epoch's metrics, each as ``arm/metric``."""
        values = {f"{arm}/{name}": value for name, value in row.items()}
        if self.board is not None:
            self.board.log(values, step=int(row["step"]))
        if self.wandb is not None:
            self.wandb.log(values)  # counts by itself: the second arm's steps start at one again

    def close(self) -> None:
        """Have everything written."""
        for tracker in self._trackers():
            tracker.finish()

    def _trackers(self) -> list[Any]:
        return [tracker for tracker in (self.board, self.wandb) if tracker is not None]


def check_tracking(config: TrackingConfig) -> None:
    """Find out before the run whether what is switched on is installed.

    Raises:
        InputError: a package is missing.
    """
    wanted = {"tensorboard": config.tensorboard, "wandb": config.wandb is not None}
    for name, package in _PACKAGES.items():
        if wanted[name] and importlib.util.find_spec(package) is None:
            raise InputError(f"setting 'tracking.{name}' needs {package}: pip install {package}")
