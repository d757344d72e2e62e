"""The command line: every verb, what it teaches, and how it says no."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from netaug_fx.cli import main
from netaug_fx.errors import InputError
from netaug_fx.training import progress
from netaug_fx.training.model_loading import load_model
from netaug_fx.training.training_verbs import parse_ratio

NET = """
from torch import nn

def make(num_classes=10, in_channels=1):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
"""
VERBS = ["train", "evolve", "enlarge", "inspect", "count", "verify", "export"]


def call(*words: object) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("cli")
    (scratch / "net.py").write_text(NET)
    settings = scratch / "settings.yaml"
    settings.write_text("optim: {epochs: 7, lr: 0.5}\nnetaug: {ratio: 2}\ndata: {batch_size: 256}\n")
    words = ["--config", settings, "--model", f"{scratch / 'net.py'}:make", "--epochs", 1, "--ratio", "none"]
    assert call("train", *words, "--out", scratch / "run") == 0
    return scratch / "run"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: netaug-fx {verb}" in text
    assert call("--help") == 0
    assert f" {verb} " in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "evolve", "enlarge"])
def test_all_settings_are_printed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--settings") == 0
    assert "  # Passes over the training images, for each arm.\n  epochs: 2" in capsys.readouterr().out


def test_without_arguments_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    call()
    text = capsys.readouterr().out
    assert [verb for verb in VERBS if f" {verb} " not in text] == []


def test_options_win_over_the_file(folder: Path) -> None:
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert (written["optim"]["epochs"], written["optim"]["lr"], written["netaug"]["ratio"]) == (1, 0.5, None)


def test_a_baseline_alone_makes_a_verified_net(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["verification"]["passed"] is True
    assert (report["groups"], list(report["arms"])) == ([], ["baseline"])
    assert 'id="summary"' in (folder / "report.html").read_text()


def test_a_finished_run_resumes_to_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "tiny.safetensors").read_bytes()
    assert call("train", "--resume", folder) == 0
    assert (folder / "tiny.safetensors").read_bytes() == before
    assert "verified against the original: yes" in capsys.readouterr().out


def test_verify_takes_all_it_needs_from_the_weights_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("verify", folder / "tiny.safetensors", "--json", tmp_path / "deep" / "report.json") == 0
    assert json.loads((tmp_path / "deep" / "report.json").read_text())["passed"] is True
    assert "onnx runtime" in capsys.readouterr().out


def test_verify_takes_a_state_dict_with_a_models_name(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    torch.save(load_model(f"{tmp_path / 'net.py'}:make", num_classes=4).state_dict(), tmp_path / "net.pt")
    words = ["--model", f"{tmp_path / 'net.py'}:make", "--num-classes", 4, "--in-channels", 1, "--image-size", 8]
    assert call("verify", tmp_path / "net.pt", *words) == 0


def test_export_writes_the_opset_asked_for(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.onnx"
    assert call("export", folder / "tiny.safetensors", "--out", out, "--opset", 18) == 0
    assert [entry.version for entry in onnx.load(out).opset_import if not entry.domain] == [18]
    assert call("export", folder / "tiny.safetensors", "--out", tmp_path / "no.onnx", "--opset", 2) == 2
    assert "opset" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_count_gives_the_papers_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("count", "mobilenet_v2_tiny", "--json", tmp_path / "count.json") == 0
    assert json.loads((tmp_path / "count.json").read_text())["macs"] == pytest.approx(23.499e6, rel=1e-3)
    assert "MACs" in capsys.readouterr().out
    assert call("count", "mobilenet_v2_tiny", "--image-size", 72, "--json", tmp_path / "small.json") == 0
    assert json.loads((tmp_path / "small.json").read_text())["macs"] < 10e6


def test_inspect_prints_the_groups_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "digits_net", "--ratio", "stream=1,2;inner=1,3", "--pin", "head.*"]
    assert call(*words, "--json", tmp_path / "groups.json", "--html", tmp_path / "groups.html") == 0
    content = json.loads((tmp_path / "groups.json").read_text())
    by_kind = {group["kind"]: group["choices"][-1] / group["width"] for group in content["groups"]}
    assert by_kind == {"stream": 2, "inner": 3}
    assert not any(group["name"].startswith("head") for group in content["groups"])
    assert content["groups"][0]["name"] in capsys.readouterr().out
    assert content["missing"] == []
    assert 'svg class="groups"' in (tmp_path / "groups.html").read_text()
    assert "<h1>digits_net</h1>" in (tmp_path / "groups.html").read_text()


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("3", 3.0),
        ("1,1.8,2.6", [1, 1.8, 2.6]),
        ("stream=1,2;inner=3", {"stream": [1, 2], "inner": [3]}),
        ("none", None),
    ],
)
def test_ratios_are_read(text: str, ratio: object) -> None:
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize("text", ["wide", "1,,2", "stream", "stream="])
def test_a_ratio_that_is_none_is_explained(text: str) -> None:
    with pytest.raises(InputError, match=r"--ratio.*Give a number"):
        parse_ratio(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "0"], "optim.epochs"),
        (["train", "--ratio", "0.5"], "at least 1"),
        (["train", "--arms", "baseline,other"], "'baseline' or 'netaug'"),
        (["train", "--model", "digit_net"], "Did you mean 'digits_net'"),
        (["train", "--data", "nowhere"], "no such folder"),
        (["train", "--resume", "nowhere"], "no run folder"),
        (["train", "--resume", "nowhere", "--epochs", "3"], "leave the other options away"),
        (["count", "digit_net"], "Did you mean 'digits_net'"),
        (["inspect", "digits_net", "--pin", "nothing.like.it"], "nothing.like.it"),
        (["verify", "nowhere.safetensors"], "there is no such file"),
        (["verify", "plain.pt"], "Give --model NAME"),
        (["verify", "plain.pt", "--model", "digits_net"], "of another model than digits_net"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), "plain.pt")
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("netaug-fx: ")
    assert message in error
    assert "Traceback" not in error
    assert [file.name for file in tmp_path.iterdir()] == ["plain.pt"]


def test_a_run_folder_that_exists_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--out", folder) == 2
    assert f"--resume {folder}" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(InputError, match="digits_net"):
        main(["count", "digit_net", "--debug"])


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--epoch", "3") == 2
    assert "--epochs" in capsys.readouterr().err


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_without_the_extra_the_installation_is_named() -> None:
    script = "import sys; sys.modules['typer'] = None; from netaug_fx.cli import main; main(['train'])"
    done = run_python(script)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'netaug_fx[train]'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=stream, force_terminal=terminal, width=120))
    row = {"epoch": 1, "train_loss": 1, "train_accuracy": 0.5, "val_loss": 1, "val_accuracy": 0.625}
    with progress.make_progress(main_process=True) as shown:
        shown.message("hello")
        shown.start_arm("baseline", total=2, done=1)
        shown.advance()
        shown.end_epoch("baseline", row, 2)
    text = stream.getvalue()
    if terminal:
        assert [word for word in ("hello", "\u2501", "2/2", "val 62.5%") if word not in text] == []
    else:
        assert text.splitlines() == [
            "hello",
            "baseline: 2 steps, resuming after step 1",
            "baseline epoch 1/2  train loss 1.000  accuracy 50.0%  |  validation loss 1.000  accuracy 62.5%",
        ]


def test_only_the_first_process_talks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.make_progress(main_process=False) as silent:
        silent.message("hello")
        silent.start_arm("baseline", total=2, done=0)
        silent.advance()
    assert capsys.readouterr().out == ""
