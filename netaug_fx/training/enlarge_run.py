"""A whole run of Greedy Network Enlarging: the search, the trainings at equal multiply-adds, and a report.

A run folder holds::

    config.yaml             the resolved settings
    journal.jsonl           the score of every candidate, as they came in
    metrics.csv             one row for each net that was trained at the end, and epoch
    checkpoints/            to resume from: what the search came to, and each net under way
    enlarged.safetensors    the grown net's weights
    enlarged.py             a function that makes the grown net, for ``--model``
    enlarged.onnx           the grown net for other runtimes
    report.json             what the page shows, for programs
    report.html             one page that needs no network

Candidates are judged by a part of the training images (`trial`). What is compared at the end starts from untrained
weights, and is trained on all training images and judged by the validation images, each net by the same settings.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from torch import nn

import netaug_fx
from netaug_fx.atomic import write_text
from netaug_fx.candidates import Net, net_of, rebuilt
from netaug_fx.enlargement import Candidate, Enlarged, enlarge, starting_net
from netaug_fx.errors import CheckpointError, InputError, PlanError
from netaug_fx.passes.macs import count
from netaug_fx.scaling import scaled_by_width, scaled_compound
from netaug_fx.training.arm import Arm, plain_net
from netaug_fx.training.checkpoint import save_weights, writing
from netaug_fx.training.config import EnlargeConfig
from netaug_fx.training.data import Task, load_task, make_loaders
from netaug_fx.training.engine import train_arm
from netaug_fx.training.enlarge_report import make_report, path_of, program_of, summary, write_report
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.methods import Plain
from netaug_fx.training.model_loading import check_outputs, load_model
from netaug_fx.training.progress import Progress, make_progress
from netaug_fx.training.run_folder import (
    check_request,
    export_net,
    new_run,
    old_run,
    torch_threads,
    weights_metadata,
    write_metrics,
)
from netaug_fx.training.tracking import Tracking, check_tracking
from netaug_fx.training.trial import Trial, at_size, threads_of, trial_task

METRICS = ("arm", "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


def start(config: EnlargeConfig, folder: Path | None = None) -> Path:
    """Enlarge a net in a new folder and return it.

    Raises:
        RunError: the folder exists, cannot be written, a training failed, or the run was interrupted.
        InputError: model or settings cannot be used, or the budget is below what the net has.
        PlanError: nothing of the net can be enlarged.
        DataError: the images cannot be used.
    """
    return _Enlarging(*new_run(_from_anywhere(config), folder, prepare)).run()


def resume(folder: Path) -> Path:
    """Continue a run that was interrupted or killed; a finished one only gets its last files written again.

    Raises:
        RunError: the folder is no run.
        CheckpointError: the journal or a checkpoint in it cannot be used.
    """
    return _Enlarging(*old_run(folder, EnlargeConfig, prepare)).run()


def _from_anywhere(config: EnlargeConfig) -> EnlargeConfig:
    """The settings with a journal that is found from any folder: a run may be resumed from another."""
    if config.enlarge.journal is None:
        return config
    journal = str(Path(config.enlarge.journal).expanduser().absolute())
    return config.model_copy(update={"enlarge": config.enlarge.model_copy(update={"journal": journal})})


def prepare(config: EnlargeConfig) -> Task:
    """Load the images and look at what the net has to enlarge, before anything is written.

    Raises:
        InputError: the net does not exist, cannot take the images, or has more multiply-adds than the budget.
        PlanError: nothing of it can be enlarged.
        DataError: the images cannot be used, or there are too few of them.
    """
    _refuse_several_processes()
    check_tracking(config.tracking)
    task = load_task(config.data, config.seed)
    net = plain_net(config, task)
    check_outputs(net, task.example(), len(task.classes), config.model.name)
    base = net_of(net, ((task.example(),), {})).macs
    starting_net(net, config.enlarge.budget(base), config.enlarge.dims, task.example(), config.enlarge.pin)
    trial = trial_task(config.data, config.seed, config.enlarge.hold_out, task.image_size)
    check_request(config, trial, net, len(make_loaders(trial, config.data, config.seed)[0]))
    return task


def _refuse_several_processes() -> None:
    processes: int = PartialState().num_processes  # type: ignore[has-type]
    if processes > 1:
        raise InputError(
            f"netaug-fx enlarge was launched in {processes} processes; it is one, and trains candidates side by side "
            "with --jobs"
        )


@dataclass
class _Enlarging:
    """A run under way."""

    config: EnlargeConfig
    task: Task
    folder: Path
    accelerator: Any
    arms: list[Arm] = field(default_factory=list)

    def run(self) -> Path:
        config, task = self.config, self.task
        with torch_threads(threads_of(config)), make_progress(main_process=True) as progress:
            progress.message(
                f"{config.model.name} on {task.name}: {len(task.train)} training and {len(task.val)} "
                f"validation images, {len(task.classes)} classes; run folder {self.folder}"
            )
            found = self._search(progress)
            tracking = Tracking(config.tracking, self.folder, config.model_dump(mode="json"), True)
            with StopRequest() as stop, closing(tracking):
                for name, net in self._nets(found):
                    self.arms.append(self._arm(name, net))
                    self._train(progress, stop, tracking)
            progress.message("exporting and verifying")
            progress.message(summary(self._finish(found), self.folder))
        return self.folder

    # -- the search --------------------------------------------------------------------------------

    def _search(self, progress: Progress) -> dict[str, Any]:
        """What the search came to, as ``checkpoints/search.json`` keeps it."""
        file = self.folder / "checkpoints" / "search.json"
        if file.exists():
            try:
                kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return kept
            except ValueError as error:
                raise CheckpointError(
                    f"{file} cannot be read: {error}. Delete it: the search is then gone through again by its journal."
                ) from None
        try:
            facts = path_of(self._enlarged(progress), self._first(), self._grown)
        except KeyboardInterrupt:
            raise Interrupted(self.folder, self.config.verb) from None
        with writing(file):
            write_text(file, json.dumps(facts))
        return facts

    def _enlarged(self, progress: Progress) -> Enlarged:
        search, first = self.config.enlarge, self._first()

        def scored(candidate: Candidate) -> None:
            score = f"{candidate.score:.1%}" if math.isfinite(candidate.score) else "diverged"
            progress.message(f"  {candidate.move}: {score} at {candidate.macs:,} MACs, {candidate.resolution} pixels")
            progress.advance()

        def begun(step: int, candidates: int, done: int) -> None:
            progress.start_arm(f"step {step}", total=candidates, done=done, unit="candidate")

        return enlarge(
            first.model,
            macs=search.budget(first.macs),
            evaluate=Trial(self.config),
            step=search.step,
            dims=search.dims,
            executor=functools.partial(workers, self.config) if self.config.jobs > 1 else None,
            journal=search.journal or self.folder / "journal.jsonl",
            example_inputs=self.task.example(),
            preserve=search.preserve,
            pixels=search.pixels_at(self.task.image_size),
            pin=search.pin,
            seed=self.config.seed,
            on_score=scored,
            on_step=begun,
        )

    def _first(self) -> Net:
        return net_of(plain_net(self.config, self.task), ((self.task.example(),), {}))

    def _grown(self, changes: Any) -> nn.Module:
        """A net of the path, with weights that no training has seen."""
        return rebuilt(
            plain_net(self.config, self.task),
            changes,
            example_inputs=self.task.example(),
            preserve=self.config.enlarge.preserve,
            seed=self.config.seed,
        )

    # -- training ----------------------------------------------------------------------------------

    def _nets(self, found: dict[str, Any]) -> Iterator[tuple[str, Net]]:
        """What is trained at the end."""
        first, seed = self._first(), self.config.seed
        yield "enlarged", Net(self._grown(found["changes"]), found["resolution"], found["macs"], first.inputs)
        if not self.config.enlarge.compare:
            return
        pixels = self.config.enlarge.pixels_at(first.resolution)
        with suppress(PlanError):  # where no width can grow, there is nothing to compare with
            yield "width", scaled_by_width(first, found["macs"], seed=seed)
        with suppress(PlanError):
            yield "compound", scaled_compound(first, found["macs"], pixels=pixels, seed=seed)
        yield "original", first

    def _arm(self, name: str, net: Net) -> Arm:
        config = self.config.model_copy(update={"data": at_size(self.config.data, net.resolution)})
        task = self.task if net.resolution == self.task.image_size else load_task(config.data, config.seed)
        return Arm(name, config, task, self.accelerator, net.model, self.folder / "checkpoints", Plain())

    def _train(self, progress: Progress, stop: StopRequest, tracking: Tracking) -> None:
        arm = self.arms[-1]

        def epoch_done() -> None:
            tracking.log(arm.name, arm.history[-1])
            self._write_metrics()

        arm.restore()
        train_arm(arm, progress, stop, on_epoch=epoch_done)
        arm.let_go()

    def _write_metrics(self) -> None:
        write_metrics([{"arm": arm.name, **row} for arm in self.arms for row in arm.history], METRICS, self.folder)

    # -- the end -----------------------------------------------------------------------------------

    def _finish(self, found: dict[str, Any]) -> dict[str, Any]:
        """Save, export, verify, and write the report."""
        self._write_metrics()
        config, arm = self.config, self.arms[0]
        net, image = arm.plain(), arm.task.example(1)
        origin = {"changes": found["changes"], "image_size": self.task.image_size}
        save_weights(
            net, self.folder / "enlarged.safetensors", weights_metadata(config, arm.task) | {"enlarged": origin}
        )
        program = self.folder / "enlarged.py"
        with writing(program):
            write_text(program, program_of(config, self.task, found))
        no_onnx = export_net(net, self.folder / "enlarged.onnx", image, config.opset)
        verification = netaug_fx.verify(net, self._grown(found["changes"]).eval(), (image,)).to_dict()
        costs = {arm.name: count(arm.plain(), arm.task.example(1)) for arm in self.arms}
        facts = make_report(
            config,
            self.task,
            found,
            self.arms,
            params={name: cost.params for name, cost in costs.items()},
            macs={name: cost.macs for name, cost in costs.items()},
            includes=costs["enlarged"].includes,
            verification=verification,
            no_onnx=no_onnx,
        )
        write_report(facts, self.folder)
        return facts


def workers(config: EnlargeConfig) -> Executor:
    """Processes that train candidates."""
    return ProcessPoolExecutor(
        config.jobs, mp_context=get_context("spawn"), initializer=_know_model, initargs=(config.model.name,)
    )


def _know_model(name: str) -> None:
    """Imports the user's file that a model comes from: pickled nets name its classes."""
    if ".py:" in name:
        with suppress(InputError):  # its function may want arguments; the file is imported all the same
            load_model(name)
