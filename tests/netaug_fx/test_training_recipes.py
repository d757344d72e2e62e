"""The papers' recipes: their numbers, how files build on each other, and a run of one on an ImageNet-shaped folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from netaug_fx import models
from netaug_fx.cli import main
from netaug_fx.errors import InputError
from netaug_fx.training import run
from netaug_fx.training.checkpoint import load_weights
from netaug_fx.training.config import TrainConfig, load_config
from netaug_fx.training.recipes import read_settings, recipe_names
from netaug_fx.training.schedule import in_phase_one, learning_rate, phase_change, scaled_rate

TARGETS = {"mcunet": 176, "mobilenet_v2_035": 160, "mobilenet_v2_tiny": 144, "mobilenet_v3_035": 160} | {
    "proxylessnas_035": 160
}
LARGEST_RATE = {"mcunet": (32 * 64, 0.4), "mobilenet_v3_035": (16 * 128, 1.6)}
STREAMS = {"mcunet": [1, 1.6, 2.2], "mobilenet_v3_035": [1, 2, 3]}


def test_the_recipes_are_the_five_targets_what_they_share_and_fine_tuning() -> None:
    assert recipe_names() == sorted([*TARGETS, "netaug", "finetune"])
    assert set(TARGETS) <= set(models.names())


@pytest.mark.parametrize("name", TARGETS)
def test_a_recipe_holds_the_papers_numbers(name: str) -> None:
    """[NetAug], section 4.1 and the table of the targets."""
    config = load_config(TrainConfig, Path(name))
    assert (config.model.name, config.data.image_size) == (name, TARGETS[name])
    assert config.netaug.ratio == {"stream": STREAMS.get(name, [1, 1.8, 2.6]), "inner": [1, 1.6, 2.2, 2.8]}
    assert (config.netaug.compound, config.netaug.sort, config.netaug.initialise) == (True, True, "widest")
    assert (config.netaug.alpha, config.netaug.draws, config.netaug.divisor) == (1, 1, 1)
    assert not config.distill.wider_nets_teach
    images, rate = LARGEST_RATE.get(name, (16 * 128, 0.4))
    assert scaled_rate(config.optim.lr, config.optim.lr_images, images) == pytest.approx(rate)
    assert config.optim.weight_decay == (3e-5 if name == "mobilenet_v3_035" else 4e-5)
    assert (config.optim.momentum, config.optim.label_smoothing) == (0.9, 0.1)
    assert (config.optim.epochs, config.optim.warmup_epochs) == (155, 5)
    assert config.optim.epochs - phase_change(config.optim.epochs, config.netaug.phase_two) == 75
    assert (config.data.crop_scale, config.data.flip, config.data.saturation) == ((0.08, 1), True, 0.5)
    assert config.data.brightness == pytest.approx(32 / 255, abs=1e-4)


def test_phase_two_is_the_last_part() -> None:
    first = [in_phase_one(epoch, epochs=10, phase_two=0.3) for epoch in range(10)]
    assert first == [True] * 7 + [False] * 3
    assert phase_change(10, 0) == 10
    assert phase_change(10, 1) == 0


def test_the_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    rates = [learning_rate(step, highest=2.0, warmup_steps=4, total_steps=24) for step in range(25)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[14] == pytest.approx(1.0)
    assert rates[24] == pytest.approx(0.0)


def test_files_build_on_recipes_and_on_each_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: mobilenet_v2_tiny\noptim: {lr: 0.5}\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nnetaug: {ratio: {inner: [1, 2]}}\nseed: 4\n")
    config = load_config(TrainConfig, tmp_path / "own.yaml", {"optim.epochs": 3})
    assert (config.optim.lr, config.optim.epochs, config.optim.lr_images, config.seed) == (0.5, 3, 128, 4)
    assert config.netaug.ratio == {"inner": [1, 2]}, "a ratio is one setting: it is replaced, not merged"
    assert config.data.image_size == 144


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: own.yaml", "extends itself"),
        ("extends: [1]", "must be the name of a file or recipe"),
        ("extends: mobilenet_v2_teeny", "Did you mean mobilenet_v2_tiny"),
    ],
)
def test_what_cannot_be_built_on_is_explained(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_settings(tmp_path / "own.yaml")


def test_a_recipe_of_another_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no recipe of that name.*mcunet, mobilenet_v2_035"):
        read_settings(Path("resnet"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in ImageNet's layout, each of one colour, in sizes and shapes of photographs."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("val", 3)):
        for number, wnid in enumerate(("n01440764", "n01443537", "n01484850")):
            (root / part / wnid).mkdir(parents=True)
            for index in range(count):
                height, width = (int(n) for n in torch.randint(60, 100, (2,), generator=generator))
                pixels = torch.randint(0, 60, (height, width, 3), generator=generator)
                pixels[..., number] += 150
                file = root / part / wnid / f"{wnid}_{index}.JPEG"
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(file)
    return root


def run_command(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def pretrained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the docs, for two epochs of small images."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    few = ["--epochs", "2", "--batch-size", "8", "--image-size", "32", "--arms", "netaug"]
    assert run_command(
        *["train", "--config", "mobilenet_v2_tiny", "--data", "imagefolder", "--data-dir", str(photographs)],
        *[*few, "--out", str(folder)],
    ) == 0  # fmt: skip
    return folder


def test_a_recipe_runs_on_an_imagenet_shaped_folder(pretrained: Path) -> None:
    report = json.loads((pretrained / "report.json").read_text())
    config = TrainConfig.model_validate(report["config"])
    assert report["verification"]["passed"] is True
    assert report["data"]["classes"] == ["n01440764", "n01443537", "n01484850"]
    assert (config.netaug.sort, config.netaug.initialise, config.optim.label_smoothing) == (True, "widest", 0.1)
    expand = next(group for group in report["groups"] if group["name"] == "blocks.2.body.expand.conv")
    assert expand["choices"][-1] == 353  # 8 channels grow 2.6 times to 21, times the expand ratio 6, times 2.8
    assert report["macs"]["tiny"] == report["macs"]["original"]


def test_a_pretrained_net_is_fine_tuned_with_a_new_classifier(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, level in (("dark", 40), ("bright", 220)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (40, 40), (level, level + index, level)).save(tmp_path / "set" / name / f"{index}.png")
    out = tmp_path / "run"
    few = ["--epochs", "1", "--batch-size", "8", "--lr", "1e-9", "--out", str(out)]
    assert run_command("finetune", str(pretrained), "--data", str(tmp_path / "set"), *few) == 0
    assert "One arm was trained" in capsys.readouterr().out
    config = load_config(TrainConfig, out / "config.yaml")
    assert (config.model.name, config.data.image_size, config.arms) == ("mobilenet_v2_tiny", 32, ["baseline"])
    before, _ = load_weights(pretrained / "tiny.safetensors")
    after, facts = load_weights(out / "tiny.safetensors")
    assert (facts["classes"], facts["num_classes"]) == (["bright", "dark"], 2)
    body = [name for name in before if name.endswith("weight") and before[name].ndim == 4]
    assert len(body) > 20
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in body)
    assert after["classifier.weight"].shape[0] == 2


def test_weights_that_tell_of_no_model_need_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state: dict[str, Any] = models.create("digits_net").state_dict()
    torch.save(state, tmp_path / "weights.pt")
    assert run_command("finetune", str(tmp_path / "weights.pt"), "--data", "digits") == 2
    assert "Give --model NAME" in capsys.readouterr().err


def test_fine_tuning_needs_data(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("finetune", str(pretrained)) == 2
    assert "give the data set to fine-tune on: --data NAME" in capsys.readouterr().err


def test_a_settings_file_wins_over_what_the_weights_tell(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: {kwargs: {dropout: 0.3}}\n")
    known = {"model.kwargs": {}, "data.image_size": 8}
    config = load_config(TrainConfig, tmp_path / "own.yaml", {"optim.epochs": 3}, known)
    assert (config.model.kwargs, config.data.image_size, config.optim.epochs) == ({"dropout": 0.3}, 8, 3)


def test_a_file_for_fine_tuning_stands_on_its_recipe(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting more, and the recipe was gone: both arms trained, without its augmentations."""
    found: list[TrainConfig] = []

    def start(config: TrainConfig, folder: Path | None) -> None:
        found.append(config)
        raise InputError("enough")

    monkeypatch.setattr(run, "start", start)
    own = tmp_path / "own.yaml"
    own.write_text("model: {kwargs: {dropout: 0.3}}\n")
    assert run_command("finetune", str(pretrained), "--data", "digits", "--config", str(own)) == 2
    assert run_command("finetune", str(pretrained), "--data", "digits") == 2
    assert (found[0].model.kwargs, found[1].model.kwargs) == ({"dropout": 0.3}, {})
    assert (found[0].optim, found[0].arms, found[0].data) == (found[1].optim, ["baseline"], found[1].data)
    config = load_config(TrainConfig, own, {}, {"model.kwargs": {"dropout": 0.1, "side": 3}})
    assert config.model.kwargs == {"dropout": 0.3, "side": 3}
    own.write_text("extends: mobilenet_v2_tiny\n")
    assert load_config(TrainConfig, own, base="finetune").arms == ["baseline", "netaug"]
    assert load_config(TrainConfig, Path("netaug"), base="finetune").arms == ["baseline", "netaug"]
