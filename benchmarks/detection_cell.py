"""One training of the detection benchmark: a classifier on glyphs, or a detector on scenes that starts from it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import ROOT, Row
from netaug_fx.errors import RunError
from netaug_fx.passes.macs import count
from netaug_fx.training import run as classify_run
from netaug_fx.training.arm import Arm
from netaug_fx.training.checkpoint import save_weights
from netaug_fx.training.config import TrainConfig
from netaug_fx.training.data import load_task
from netaug_fx.training.detection import load_detection_task
from netaug_fx.training.detection import run as detect_run
from netaug_fx.training.detection.detect_config import DetectConfig
from netaug_fx.training.detection.judging import found_by
from netaug_fx.training.detection.metrics import average_precision
from netaug_fx.training.engine import train_arm
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.progress import Silent as Quiet
from netaug_fx.training.run_folder import accelerator_for, weights_metadata


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        name: What its row is found by.
        facts: What the table tells cells apart by.
        config: The settings; one arm.
        weights: Where the trained weights go, from the repository's root; None where nothing starts from them.
    """

    name: str
    facts: Row
    config: TrainConfig | DetectConfig
    weights: Path | None = None


def work(sending: Connection, cell: Cell, folder: Path) -> None:
    """Runs in a child process; sends the row, or None where it was interrupted and has written its checkpoint."""
    os.setsid()  # Ctrl-C goes to the parent, which asks this process to stop and waits for its checkpoint
    os.chdir(ROOT)
    torch.set_num_threads(1)
    try:
        row: Row | None = run_cell(cell, folder)
    except Interrupted:
        row = None
    except RunError as error:  # the loss is no longer finite: a result, too
        row = {"name": cell.name, **cell.facts, "error": str(error).split(". ")[0]}
    except Exception as error:  # whatever broke must not end the other cells; it is shown, and not kept
        row = {"name": cell.name, "crashed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    sending.send(row)


def run_cell(cell: Cell, folder: Path) -> Row:
    """Trains a cell to its end, from where ``folder`` has got to, and judges what came out.

    Raises:
        RunError: the loss is no longer finite, or a signal came.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = cell.config
    kind: Any = classify_run.CLASSIFY if isinstance(config, TrainConfig) else detect_run.DETECT
    task: Any = (
        load_task(config.data, config.seed)
        if isinstance(config, TrainConfig)
        else load_detection_task(config.data, config.seed)
    )
    (name,) = config.active_arms
    net = kind.net(config, task, name)
    arm: Arm = kind.arm(name, config, task, accelerator_for(config), net, folder)
    arm.restore()
    started = time.process_time()
    with StopRequest() as stop:
        train_arm(arm, Quiet(), stop, on_epoch=lambda: None)
    seconds = time.process_time() - started
    tiny = arm.plain()
    row: Row = {"name": cell.name, **cell.facts, "steps": arm.step, "cpu_seconds": round(seconds, 1)}
    row |= {"macs": count(tiny, task.example(1)).macs, "parameters": sum(p.numel() for p in tiny.parameters())}
    if isinstance(config, DetectConfig):
        found = average_precision(found_by(tiny, task, config.detect, range(len(task.val))), task.classes)
        row |= {key: found[key] for key in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")}
        row["curve"] = [round(each["val_map"], 5) for each in arm.history]
    else:
        row["accuracy"] = arm.history[-1]["val_accuracy"]
    if cell.weights is not None:
        cell.weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(tiny, cell.weights, weights_metadata(config, task))
    shutil.rmtree(folder)
    return row
