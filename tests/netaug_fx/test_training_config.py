"""Settings: precedence, and errors that name the setting and the remedy."""

from pathlib import Path

import pytest

from netaug_fx.errors import InputError
from netaug_fx.training.config import (
    FLAGS,
    EnlargeConfig,
    EvolveConfig,
    RunConfig,
    TrainConfig,
    load_config,
    setting_names,
)
from netaug_fx.training.detection.detect_config import DetectConfig
from netaug_fx.training.settings_page import settings_page


def write(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text)
    return file


def test_command_line_wins_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "optim: {lr: 0.5, epochs: 7}\nseed: 3\n")
    config = load_config(TrainConfig, file, {"optim.lr": 0.25})
    assert (config.optim.lr, config.optim.epochs, config.seed) == (0.25, 7, 3)
    assert config.optim.momentum == TrainConfig().optim.momentum


def test_the_resolved_settings_read_back_as_they_were_written(tmp_path: Path) -> None:
    config = load_config(TrainConfig, None, {"netaug.ratio": {"stream": [1, 2], "inner": 3.0}, "data.flip": True})
    assert load_config(TrainConfig, write(tmp_path, config.to_yaml())) == config


def test_what_yaml_takes_for_false_is_no_mixed_precision(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {precision: no}\n")
    assert load_config(TrainConfig, tmp_path / "a.yaml").optim.precision == "no"


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(TrainConfig, write(tmp_path, "")) == TrainConfig()


def test_every_setting_has_a_description_and_a_default_and_every_flag_a_setting() -> None:
    kinds = (TrainConfig, EvolveConfig, EnlargeConfig)
    names = {name: text for kind in kinds for name, text in setting_names(kind)}
    assert all(names.values())
    assert set(FLAGS) <= set(names)
    for kind in kinds:
        assert kind() == kind.model_validate({})


@pytest.mark.parametrize("kind", [TrainConfig, EvolveConfig, EnlargeConfig, DetectConfig])
def test_the_page_of_settings_explains_each_and_is_a_file_to_start_from(kind: type[RunConfig], tmp_path: Path) -> None:
    page = settings_page(kind())
    assert load_config(kind, write(tmp_path, page)) == kind()
    told = " ".join(page.replace("# ", "").split())
    assert [name for name, text in setting_names(kind) if " ".join(text.split()) not in told] == []
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {epohcs: 3}", ["optim.epohcs", "did you mean optim.epochs"]),
        ("lr: 3", ["'lr'", "optim.lr"]),
        ("optim: {lr: -1}", ["optim.lr", "--lr", "-1", "greater than 0"]),
        ("optim: {epochs: many}", ["optim.epochs", "--epochs", "many", "integer"]),
        ("netaug: {ratio: 0.5}", ["netaug.ratio", "--ratio", "at least 1", "0.5"]),
        ("netaug: {ratio: .inf}", ["netaug.ratio", "finite"]),
        ("optim: {warmup_epochs: .inf}", ["optim.warmup_epochs", "inf", "finite"]),
        ("optim: {clip_norm: .nan}", ["optim.clip_norm", "nan"]),
        ("netaug: {draws: 10000000}", ["netaug.draws", "10000000", "100"]),
        ("netaug: {ratio: {strem: [1, 2]}}", ["netaug.ratio", "strem", "'stream' and 'inner'"]),
        ("netaug: {ratio: {inner: []}}", ["netaug.ratio", "at least one number"]),
        ("{netaug: {ratio: null}, arms: [netaug]}", ["netaug.ratio", "--ratio"]),
        ("arms: [netaug, netaug]", ["twice"]),
        ("- 1", ["holds a list", "expected settings"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(TrainConfig, write(tmp_path, text))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_section_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'optim'.*expected a mapping"):
        load_config(TrainConfig, write(tmp_path, "optim: 3"), {"optim.lr": 1})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: there is no such file, and no recipe"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")


def test_without_a_ratio_only_the_baseline_is_trained() -> None:
    assert load_config(TrainConfig, None, {"netaug.ratio": None}).active_arms == ("baseline",)
    assert load_config(TrainConfig).active_arms == ("baseline", "netaug")
