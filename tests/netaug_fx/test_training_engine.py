"""What the loop does beyond a plain step: batches added up, clipping, averages, precision, what is kept."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import DataError, InputError, RunError
from netaug_fx.models import digits_net
from netaug_fx.training import engine, run
from netaug_fx.training.arm import Arm, build_net, restart_scaler_
from netaug_fx.training.average import TargetAverage, plain_view
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.data import Task, load_task
from netaug_fx.training.interrupt import Interrupted, StopRequest
from netaug_fx.training.methods import NetAug
from netaug_fx.training.objective import mixture
from netaug_fx.training.progress import Silent
from tests.netaug_fx.training_runs import (
    EPOCHS,
    STEPS,
    assert_same_results,
    changed,
    interrupt_at_step,
    make_arm,
    one_step,
    rows_of,
    same_weights,
)


def test_batches_that_are_added_up_make_the_step_of_one_large_batch(task: Task, tmp_path: Path) -> None:
    """Norms that take no statistics across the batch: those of half a batch are other ones.

    The wider net is the same for all batches of a step (it was drawn anew for each), and for the next step another.
    """
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 10))\n"
    )
    still = {"data.shift": 0.0, "data.zoom": 0.0, "optim.warmup_epochs": 0.0, "netaug.ratio": 4.0}
    large = load_config(TrainConfig, None, {"model.name": f"{net}:make", "data.batch_size": 128, **still})
    small = changed(large, data__batch_size=32, optim__accumulate=4)
    arms = [make_arm(config, load_task(config.data, 0), tmp_path) for config in (large, small)]
    for arm in arms:
        steps = engine._train_epoch(arm)
        for _ in range(3):
            next(steps)
    assert arms[1].batch == 3 * 4
    assert same_weights(arms[0].net, arms[1].net, 1e-6)
    assert arms[1].epoch_steps == len(arms[1].train_loader) // 4


def test_more_batches_than_an_epoch_has_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"{STEPS} batches for each process, which do not make a step of 99.*optim\.accumulate"
    ):
        run.start(changed(config, optim__accumulate=99), tmp_path / "run")


def test_gradients_are_clipped_to_a_norm(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    quick = changed(config, optim__momentum=0.0, optim__weight_decay=0.0, optim__warmup_epochs=0, optim__lr=1.0)
    clipped = make_arm(changed(quick, optim__clip_norm=0.01), task, tmp_path)
    before = {name: value.clone() for name, value in clipped.net.named_parameters()}
    one_step(clipped)
    moved = torch.stack([(before[name] - p.detach()).norm() for name, p in clipped.net.named_parameters()]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_the_learning_rate_follows_the_images_of_a_step(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    """128 images in four batches are half of the 256 that the rate is meant for."""
    settings = changed(config, optim__lr=0.4, optim__lr_images=256, data__batch_size=32, optim__accumulate=4)
    arm = make_arm(settings, task, tmp_path)
    assert arm.highest_rate == pytest.approx(0.2)
    assert make_arm(changed(settings, optim__lr_images=None), task, tmp_path).highest_rate == 0.4


def test_mixed_precision_trains_and_leaves_no_trace_in_the_net(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    full, mixed = (
        one_step(make_arm(changed(config, optim__precision=precision), task, tmp_path)) for precision in ("no", "bf16")
    )
    assert not same_weights(full.net, mixed.net)
    assert same_weights(full.net, mixed.net, 0.05)
    assert {value.dtype for value in mixed.net.parameters()} == {torch.float32}
    assert "forward" not in vars(mixed.net)
    tiny = netaug_fx.extract(mixed.net)
    assert netaug_fx.verify(tiny, build_net(config, task, "baseline"), example_inputs=task.example()).passed


def test_channels_last_is_the_same_training(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    """But for rounding, and in every convolution, extra weights included; what was trained is verified as usual."""
    usual, other = (
        one_step(make_arm(changed(config, optim__channels_last=wanted), task, tmp_path)) for wanted in (False, True)
    )
    assert same_weights(usual.net, other.net, 1e-5)
    pictures = [p for p in other.net.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in pictures)
    assert not all(p.is_contiguous() for p in pictures)
    tiny = netaug_fx.extract(other.net)
    assert netaug_fx.verify(tiny, build_net(config, task, "baseline"), example_inputs=task.example()).passed


def test_a_run_in_channels_last_goes_on_bit_for_bit(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, optim__channels_last=True, optim__epochs=2)
    whole, stopped = run.start(config, tmp_path / "whole"), tmp_path / "stopped"
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 2 * STEPS + 4)
        with pytest.raises(Interrupted):
            run.start(config, stopped)
    assert_same_results(run.resume(stopped), whole)


def test_a_net_that_cannot_be_run_in_channels_last_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.fc = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.conv(x).view(len(x), -1))\n"
    )
    with pytest.raises(InputError, match=r"optim\.channels_last: model .*net\.py:Net .*reshape where its forward has"):
        run.start(changed(config, model__name=f"{net}:Net", optim__channels_last=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU, which fp16 is for")
def test_fp16_needs_a_gpu(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU, and there is none; take bf16"):
        run.start(changed(config, optim__precision="fp16"), tmp_path / "run")


def test_each_arm_starts_with_a_fresh_scale_of_its_gradients() -> None:
    scaler = torch.amp.GradScaler("cpu")
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight])
    scaler.scale(weight * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    restart_scaler_(scaler)
    assert scaler.state_dict() == torch.amp.GradScaler("cpu").state_dict()


def test_a_process_by_itself_stops_after_any_step() -> None:
    """It waited for the fiftieth on a GPU, which a launcher's patience may not last for."""

    def arm(device: str, processes: int, step: int) -> Any:
        return SimpleNamespace(
            step=step, accelerator=SimpleNamespace(device=torch.device(device), num_processes=processes)
        )

    steps = range(1, 101)
    assert all(engine._asks(arm("cuda", 1, step)) and engine._asks(arm("cpu", 2, step)) for step in steps)
    assert [step for step in steps if engine._asks(arm("cuda", 2, step))] == list(range(10, 101, 10))
    assert [step for step in steps if engine._looks(arm("cuda", 1, step))] == [50, 100]
    assert all(engine._looks(arm("cpu", 2, step)) for step in steps)


def test_a_finished_arm_holds_no_teacher_and_no_optimizer(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    arm = one_step(make_arm(changed(config, optim__average=0.5), task, tmp_path))
    held = [weakref.ref(part) for part in (arm.optimizer.optimizer, arm.wrapped)]
    before = arm.plain()
    arm.let_go()
    gc.collect()
    assert [part() for part in held] == [None, None]
    assert arm.teacher is None
    assert same_weights(before, arm.plain())


def test_the_average_follows_the_target_alone() -> None:
    supernet = netaug_fx.augment(digits_net(), 2)
    average = TargetAverage(supernet, decay=2 / 11)  # what is reached at the first update that averages
    first = {name: value.clone() for name, value in average.target.state_dict().items()}
    average.update()  # the first update copies
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(1.0)
    average.update()
    averaged = average.averaged.module.state_dict()
    assert list(averaged) == list(supernet.target_state_dict())
    for name, value in first.items():
        if value.is_floating_point() and not name.endswith(("running_mean", "running_var")):
            assert torch.allclose(averaged[name], value + 9 / 11, atol=1e-5), name
    assert type(average.averaged.module) is type(digits_net())
    average.restart()
    average.update()
    assert same_weights(average.averaged.module, average.target)


def test_a_short_run_does_not_deliver_its_first_weights() -> None:
    net = nn.Linear(2, 1)
    average = TargetAverage(net, decay=0.9999)
    for step in range(50):
        nn.init.constant_(net.weight, float(step))
        average.update()
    assert float(average.averaged.module.weight.mean()) > 40


def test_a_view_of_the_target_shares_its_tensors() -> None:
    supernet = netaug_fx.augment(digits_net(), 2)
    view = plain_view(supernet)
    for name, parameter in view.named_parameters():
        assert parameter is supernet.get_parameter(name)
    images = torch.randn(3, 1, 8, 8)
    supernet(images)
    assert torch.equal(view.eval()(images), supernet.eval()(images))


def test_the_average_is_validated_and_delivered(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    settings = changed(config, optim__average=0.5, arms=["netaug"], optim__epochs=1)
    arm = make_arm(settings, task, tmp_path)
    engine.train_arm(arm, Silent(), StopRequest(), on_epoch=lambda: arm.save_best({}))
    assert arm.average is not None
    assert same_weights(arm.plain(), arm.average.averaged.module)
    assert not same_weights(arm.plain(), plain_view(arm.net))
    images, labels = task.val.images(range(len(task.val))), task.val.labels
    normalised = (images.float() / 255 - task.mean[0]) / task.std[0]
    with torch.no_grad():
        right = (arm.plain()(normalised).argmax(1) == labels).float().mean()
    assert arm.history[-1]["val_accuracy"] == pytest.approx(float(right), abs=1e-6)
    again = make_arm(settings, task, tmp_path)
    again.restore()
    assert same_weights(again.plain(), arm.plain())


def test_the_best_weights_are_kept_and_delivered_where_asked(
    finished: Path, config: TrainConfig, tmp_path: Path
) -> None:
    folder = run.start(changed(config, keep__deliver="best"), tmp_path / "best")
    rows = [row for row in rows_of(folder) if row["arm"] == "netaug"]
    best, _ = load_weights(folder / "checkpoints" / "netaug.best.safetensors")
    delivered, _ = load_weights(folder / "tiny.safetensors")
    assert all(torch.equal(best[name], delivered[name]) for name in best)
    assert rows == [row for row in rows_of(finished) if row["arm"] == "netaug"], "what is kept changed the training"
    accuracies = [float(row["val_accuracy"]) for row in rows]
    told = json.loads((folder / "report.json").read_text())["arms"]["netaug"]
    assert (told["val_accuracy"], told["epoch"]) == (max(accuracies), 1 + accuracies.index(max(accuracies)))
    assert told["train_loss"] == float(rows[told["epoch"] - 1]["train_loss"])
    last, _ = load_weights(finished / "tiny.safetensors")
    was_last = accuracies.index(max(accuracies)) == EPOCHS - 1
    assert all(torch.equal(last[name], best[name]) for name in best) is was_last


def test_a_run_that_is_saved_at_every_step_is_the_same(finished: Path, config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "often"
    run.start(changed(config, keep__minutes=0), folder)
    for name in ("metrics.csv", "tiny.safetensors", "baseline.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_mixup_weighs_both_labels_of_a_mixed_image(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    """Both passes see the same mixture; the training accuracy counts each label by its share."""
    settings = changed(config, optim__mixup=0.4, optim__label_smoothing=0.1)
    arm, twin = (make_arm(settings, task, tmp_path, "netaug") for _ in range(2))
    images, labels = next(iter(arm.train_loader))
    torch.manual_seed(0)
    sums = engine._gradients(arm, (images, labels))
    share, partners = mixture(twin, len(labels))
    assert 0 < share < 1
    assert sorted(partners.tolist()) == list(range(len(labels)))

    def loss_fn(net: nn.Module) -> tuple[Tensor, Tensor]:
        logits = net(share * images + (1 - share) * images[partners])
        both = [nn.functional.cross_entropy(logits, y, label_smoothing=0.1) for y in (labels, labels[partners])]
        return share * both[0] + (1 - share) * both[1], logits

    torch.manual_seed(0)
    done = netaug_fx.step(twin.net, loss_fn, distill=netaug_fx.Distillation())
    for (name, a), b in zip(arm.net.named_parameters(), twin.net.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name
    right = [(done.output.argmax(1) == y).sum() for y in (labels, labels[partners])]
    assert float(sums[0]) == pytest.approx(float(done.loss) * len(labels), rel=1e-6)
    assert float(sums[2]) == pytest.approx(float(share * right[0] + (1 - share) * right[1]), rel=1e-6)


def test_mixtures_follow_from_seed_epoch_and_batch(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    arm = make_arm(changed(config, optim__mixup=0.4), task, tmp_path)
    shares = []
    for arm.epoch, arm.batch in ((0, 0), (0, 1), (1, 0)):
        shares.append(mixture(arm, 8)[0])
    other = make_arm(changed(config, optim__mixup=0.4, seed=1), task, tmp_path)
    assert len({*shares, mixture(other, 8)[0]}) == 4
    arm.epoch, arm.batch = 0, 1
    assert mixture(arm, 8)[0] == shares[1]


def test_a_mixed_run_goes_on_bit_for_bit(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    """Batches that are added up are each mixed anew, so the place within a step counts too."""
    settings = changed(config, optim__mixup=0.4, data__batch_size=64, optim__accumulate=2)
    whole = make_arm(settings, task, tmp_path)
    steps = engine._train_epoch(whole)
    for _ in range(3):
        next(steps)
    first = one_step(make_arm(settings, task, tmp_path))
    assert first.batch == 2
    first.save()
    second = make_arm(settings, task, tmp_path)
    second.restore()
    rest = engine._train_epoch(second)
    for _ in range(2):
        next(rest)
    assert same_weights(second.net, whole.net)
    assert torch.equal(second.sums, whole.sums)


@pytest.mark.parametrize("epoch", [1, 2])
def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_saved(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """The loss is from before the update, so it does not tell."""
    step, calls = engine._step, []

    def breaking(arm: Arm, *rest: Any) -> None:
        step(arm, *rest)
        calls.append(1)
        if len(calls) == epoch * STEPS:
            with torch.no_grad():
                next(iter(arm.net.parameters())).fill_(float("nan"))

    monkeypatch.setattr(engine, "_step", breaking)
    good = r"last good checkpoint is .*baseline\.pt" if epoch > 1 else "no checkpoint yet"
    with pytest.raises(RunError, match=rf"no longer finite at step {epoch * STEPS}.*{good}"):
        run.start(config, tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()
    for file in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        weights = torch.load(file, weights_only=True)["weights"]
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_phase_two_draws_what_there_is(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    """The net of these tests has no blocks, so no inner groups: drawing these alone would give the target again."""
    arm = make_arm(changed(config, netaug__phase_two=1.0), task, tmp_path)
    assert {group.kind for group in arm.net.groups} == {"stream"}  # type: ignore[union-attr]
    assert isinstance(arm.method, NetAug)
    assert arm.method.kinds(arm) is None
    blocks = make_arm(changed(config, model__name="digits_net", netaug__phase_two=1.0), task, tmp_path)
    assert isinstance(blocks.method, NetAug)
    assert blocks.method.kinds(blocks) == {"inner"}


def test_a_short_run_does_not_end_in_its_warm_up(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    arm = make_arm(changed(config, optim__warmup_epochs=99), task, tmp_path)
    arm.step = arm.total_steps // 2
    engine._set_rate(arm)
    assert arm.optimizer.param_groups[0]["lr"] == pytest.approx(config.optim.lr)


def test_the_first_epoch_is_not_sorted(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    arm = make_arm(changed(config, netaug__sort=True, optim__lr=1e-12), task, tmp_path)
    before = plain_view(arm.net).state_dict()["0.weight"].clone()
    one_step(arm)
    assert torch.allclose(plain_view(arm.net).state_dict()["0.weight"], before, atol=1e-6)


def test_the_launchers_environment_does_not_change_a_run(
    finished: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    folder = run.start(changed(config, arms=["baseline"]), tmp_path / "run")
    assert (folder / "baseline.safetensors").read_bytes() == (finished / "baseline.safetensors").read_bytes()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(InputError, match=r"launcher asks for mixed precision 'bf16'.*--precision bf16"):
        run.start(config, tmp_path / "other")


def test_metrics_go_to_tensorboard(config: TrainConfig, tmp_path: Path) -> None:
    folder = run.start(changed(config, tracking__tensorboard=True, optim__epochs=2), tmp_path / "run")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for arm in ("baseline", "netaug"):
        shown = [(event.step, event.value) for event in events.Scalars(f"{arm}/val_accuracy")]
        rows = [row for row in rows_of(folder) if row["arm"] == arm]
        assert [step for step, _ in shown] == [int(row["step"]) for row in rows]
        assert [value for _, value in shown] == pytest.approx([float(row["val_accuracy"]) for row in rows])


def test_metrics_go_to_weights_and_biases(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the package, which would want a network or an account."""
    begun: list[dict[str, Any]] = []
    logged: list[dict[str, float]] = []
    session = SimpleNamespace(log=lambda values, step=None: logged.append(values), finish=lambda: begun.append({}))
    stand_in = SimpleNamespace(init=lambda **options: begun.append(options) or session, __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    folder = run.start(changed(config, tracking__wandb="project", optim__epochs=2), tmp_path / "run")
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("project", "run", "allow")
    assert begun[0]["id"].startswith("run-")
    assert begun[0]["config"]["optim"]["epochs"] == 2
    assert begun[-1] == {}, "it was not finished"
    rows = rows_of(folder)
    assert len(logged) == len(rows)
    assert [values[f"{row['arm']}/val_loss"] for values, row in zip(logged, rows, strict=True)] == pytest.approx(
        [float(row["val_loss"]) for row in rows]
    )


def test_a_tracker_that_is_not_installed_is_named(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'tracking\.wandb' needs wandb: pip install wandb"):
        run.start(changed(config, tracking__wandb="project"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_finished_run_is_reproduced(finished: Path, config: TrainConfig, tmp_path: Path) -> None:
    assert_same_results(run.start(config, tmp_path / "again"), finished)
