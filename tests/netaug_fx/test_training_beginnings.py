"""Who teaches, and what a run starts from: teachers, first weights at the widest, weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import CheckpointError, InputError
from netaug_fx.models import digits_net
from netaug_fx.training import engine, run
from netaug_fx.training.arm import build_net
from netaug_fx.training.average import plain_view
from netaug_fx.training.checkpoint import save_weights
from netaug_fx.training.config import TrainConfig
from netaug_fx.training.data import Task
from netaug_fx.training.initialise import initialise_at_widest_
from netaug_fx.training.teacher import load_teacher
from tests.netaug_fx.training_runs import changed, make_arm, same_weights


def write_weights(file: Path, net: nn.Module, **facts: Any) -> str:
    save_weights(net, file, facts)
    return str(file)


CLASSES = [str(digit) for digit in range(10)]


def test_a_teacher_adds_its_term_to_the_targets_loss_alone(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = write_weights(tmp_path / "teacher.safetensors", digits_net(), model="digits_net", classes=CLASSES)
    plainly = changed(config, model__name="digits_net", distill__in_place=False)
    taught = changed(plainly, distill__teacher="digits_net", distill__teacher_weights=weights, distill__weight=500.0)
    plain, arm = make_arm(plainly, task, tmp_path), make_arm(taught, task, tmp_path)
    batch = next(iter(plain.train_loader))
    without, together = (engine._gradients(one, batch) for one in (plain, arm))
    assert arm.teacher is not None
    logits = build_net(plainly, task, "baseline").train()(batch[0])
    term = arm.teacher.loss(logits, batch[0]).detach() * len(batch[1])
    assert float(together[0] - without[0]) == pytest.approx(float(term), rel=1e-4)
    assert torch.equal(together[1], without[1]), "the wider net's loss has the teacher's term, too"
    assert not any(module.training for module in arm.teacher.modules())


def test_a_teacher_of_other_classes_is_refused(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "t.safetensors", digits_net(), model="digits_net", classes=["a", "b"])
    settings = changed(config, distill__teacher="digits_net", distill__teacher_weights=weights)
    with pytest.raises(InputError, match=r"trained on the classes a, b.*the data has 0, 1.*same order"):
        load_teacher(settings.distill, task, torch.device("cpu"))
    other = changed(config, distill__teacher="digits_net", distill__teacher_weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(CheckpointError, match="no such file"):
        load_teacher(other.distill, task, torch.device("cpu"))


def test_a_teacher_without_weights_is_refused(config: TrainConfig, task: Task) -> None:
    settings = changed(config, distill__teacher="digits_net")
    with pytest.raises(InputError, match=r"digits_net would be untrained: give its weights \(--teacher-weights"):
        load_teacher(settings.distill, task, torch.device("cpu"))


def test_a_teacher_sees_images_as_it_was_trained_on(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    trained = digits_net()
    facts = {"model": "digits_net", "classes": CLASSES, "mean": [0.5], "std": [0.25], "image_size": 16}
    weights = write_weights(tmp_path / "teacher.safetensors", trained, **facts)
    settings = changed(config, distill__teacher="digits_net", distill__teacher_weights=weights)
    teacher = load_teacher(settings.distill, task, torch.device("cpu"))
    assert teacher is not None
    seen: list[Tensor] = []
    teacher.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.full((2, 1, 8, 8), 0.75)
    teacher((pixels - task.mean[0]) / task.std[0])
    assert seen[0].shape == (2, 1, 16, 16)
    assert torch.allclose(seen[0], torch.tensor(1.0), atol=1e-5)  # (0.75 - 0.5) / 0.25


def test_a_teacher_of_timms_sees_the_size_that_it_was_trained_at(
    config: TrainConfig, task: Task, tmp_path: Path
) -> None:
    """Nets that take any size were given the student's small images, at which they know far less."""
    file = tmp_path / "net.py"
    file.write_text(
        "from netaug_fx.models import digits_net\n"
        "def make(num_classes=10, in_channels=1, pretrained=False):\n"
        "    net = digits_net()\n"
        "    net.default_cfg = {'mean': (0.5,), 'std': (0.25,), 'input_size': (1, 16, 16), 'fixed_input_size': False}\n"
        "    return net\n"
    )
    settings = changed(config, distill__teacher=f"{file}:make", distill__teacher_kwargs={"pretrained": True})
    teacher = load_teacher(settings.distill, task, torch.device("cpu"))
    assert teacher is not None
    seen: list[Tensor] = []
    teacher.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    teacher(torch.zeros(2, 1, 8, 8))
    assert seen[0].shape == (2, 1, 16, 16)
    assert torch.allclose(seen[0], torch.tensor((task.mean[0] - 0.5) / 0.25), atol=1e-5)


def test_in_place_distillation_is_that_of_the_step(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    settings = changed(config, distill__in_place=True, distill__temperature=3.0, netaug__draws=2)
    arm, twin = make_arm(settings, task, tmp_path), make_arm(settings, task, tmp_path)
    images, labels = next(iter(arm.train_loader))
    arm.wrapped.train()
    twin.wrapped.train()

    def loss_fn(net: nn.Module) -> tuple[Tensor, Tensor]:
        logits = net(images)
        return nn.functional.cross_entropy(logits, labels), logits

    torch.manual_seed(0)
    engine._gradients(arm, (images, labels))
    torch.manual_seed(0)
    netaug_fx.step(twin.net, loss_fn, distill=netaug_fx.Distillation(temperature=3.0), draws=2)
    for (name, a), b in zip(arm.net.named_parameters(), twin.net.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize(
    ("settings", "teach"),
    [
        ({}, True),
        ({"distill__in_place": False}, False),
        ({"distill__teacher": "resnet20"}, False),
        ({"distill__teacher": "resnet20", "distill__in_place": True}, True),
    ],
)
def test_wider_nets_teach_unless_told_or_another_net_does(
    config: TrainConfig, settings: dict[str, Any], teach: bool
) -> None:
    assert changed(config, **settings).distill.wider_nets_teach == teach


def test_a_pool_from_which_nothing_is_drawn_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"netaug\.pool would not be used.*netaug\.draws: 2.*--no-in-place"):
        changed(config, netaug__pool=3)
    assert changed(config, netaug__pool=3, netaug__draws=2).distill.wider_nets_teach
    assert changed(config, netaug__pool=3, distill__in_place=False).netaug.pool == 3
    assert changed(config, netaug__pool=3, arms=["baseline"]).active_arms == ("baseline",)


def test_the_default_arm_is_taught_by_the_widest_net(config: TrainConfig, task: Task, tmp_path: Path) -> None:
    """What the project's own comparisons found best: benchmarks/README.md, accuracy."""
    unset, on, off = (
        _first_gradients(changed(config, distill__in_place=choice), task, tmp_path) for choice in (None, True, False)
    )
    assert torch.equal(unset, on)
    assert not torch.equal(unset, off)


def _first_gradients(config: TrainConfig, task: Task, folder: Path) -> Tensor:
    arm = make_arm(config, task, folder)
    arm.wrapped.train()
    torch.manual_seed(0)
    engine._gradients(arm, next(iter(arm.train_loader)))
    return torch.cat([p.grad.flatten() for p in arm.net.parameters() if p.grad is not None])


@pytest.mark.parametrize("settings", [{"distill__in_place": True}, {"distill__project": True}])
def test_wider_nets_teach_only_where_there_are_some(config: TrainConfig, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need the arm netaug"):
        changed(config, arms=["baseline"], **settings)


def test_weights_at_the_widest_are_drawn_for_its_fan_in() -> None:
    supernet: Any = netaug_fx.augment(digits_net(), 3)
    torch.manual_seed(0)
    initialise_at_widest_(supernet)
    for name, module in supernet.named_modules():
        if isinstance(module, nn.Conv2d):
            parts = [p for key, p in module.named_parameters(recurse=False) if key.startswith("weight")]
            with supernet.augmented(supernet.widest):
                bound = module.weight[0].numel() ** -0.5
            spread = torch.cat([part.detach().flatten() for part in parts])
            assert float(spread.abs().max()) <= bound, name
            assert float(spread.abs().max()) > 0.8 * bound, name
    assert float(supernet.classifier.bias.abs().max()) == 0
    assert float(supernet.classifier.weight.std()) == pytest.approx(0.02, rel=0.15)


def test_weights_from_a_file_are_not_drawn_anew(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="would be lost; set it to keep"):
        changed(config, model__weights="some.safetensors", netaug__initialise="widest")


def test_a_run_can_start_at_the_widest(config: TrainConfig, task: Task) -> None:
    kept, drawn = (build_net(changed(config, netaug__initialise=how), task, "netaug") for how in ("keep", "widest"))
    assert same_weights(plain_view(kept), build_net(config, task, "baseline"))
    assert not same_weights(plain_view(drawn), build_net(config, task, "baseline"))


def test_trained_weights_are_started_from_with_a_new_classifier(
    config: TrainConfig, task: Task, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    trained = digits_net(num_classes=4)
    weights = write_weights(tmp_path / "four.safetensors", trained, model="digits_net", classes=list("abcd"))
    settings = changed(config, model__name="digits_net", model__weights=weights)
    own = build_net(changed(config, model__name="digits_net"), task, "baseline").state_dict()
    for name, value in build_net(settings, task, "baseline").state_dict().items():
        expected = own if name.startswith("classifier") else trained.state_dict()
        assert torch.equal(value, expected[name]), name
    target = netaug_fx.extract(build_net(settings, task, "netaug"))
    assert same_weights(target, build_net(settings, task, "baseline"))


@pytest.mark.parametrize(("classes", "new"), [(CLASSES, False), ([f"x{c}" for c in CLASSES], True), (None, False)])
def test_the_classifier_is_kept_for_the_same_classes(
    config: TrainConfig, task: Task, tmp_path: Path, classes: list[str] | None, new: bool
) -> None:
    torch.manual_seed(5)
    trained = digits_net()
    facts = {} if classes is None else {"classes": classes}
    weights = write_weights(tmp_path / "ten.safetensors", trained, model="digits_net", **facts)
    net = build_net(changed(config, model__name="digits_net", model__weights=weights), task, "baseline")
    assert torch.equal(net.get_parameter("classifier.weight"), trained.classifier.weight) is not new


def test_another_nets_weights_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "other.safetensors", nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"other\.safetensors is of another model than digits_net"):
        run.start(changed(config, model__name="digits_net", model__weights=weights), tmp_path / "run")
    assert not (tmp_path / "run").exists()
