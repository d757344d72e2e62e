import json
import shlex
from pathlib import Path

import pytest

from benchmarks import overhead, timing

SPREAD = {"median", "min", "lower_quartile", "upper_quartile", "cpu_median"}
FAST = ["--nets", "digits_net", "--resolution", "8", "--batch-sizes", "4", "6", "--repetitions", "1", "--draws", "2"]


def test_one_repetition_on_the_digits_net_fills_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "overhead.json"
    overhead.main([*FAST, "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result) == {"command", "goals", "machine", "versions", "settings", "seconds", "nets"}
    assert set(result["machine"]) == {"cpu", "cores", "device", "system", "load_at_start"}
    assert result["settings"]["batch_sizes"] == [4, 6]
    (net,) = result["nets"]
    assert (net["name"], net["compiler"]["verified"]) == ("digits_net", True)
    assert net["held"] > net["parameters"]
    assert [(found["batch_size"], found["threads"]) for found in net["passes"]] == [(4, 1), (6, 1)]
    for found in net["passes"]:
        for key in ("target", "augmented", "step", "slicing"):
            assert set(found[key]) == SPREAD
            assert found[key]["min"] > 0
        counts = {name: len(times) for name, times in found["seconds"].items()}
        both = dict.fromkeys(("step", "least", "slicing", "augmented", "dense"), 2)
        assert counts == {**dict.fromkeys(("target", "plain"), overhead.TARGET_ROUNDS), **both}
    for key in ("augment", "extract", "sort_channels", "infer", "torch_pruning"):
        assert set(net["compiler"][key]) == SPREAD | {"first_call"}
    memory = net["memory"]
    assert memory["dense"] <= memory["augmented"] <= memory["dense"] + memory["assembled"]
    assert memory["plain"] == memory["target"] < memory["dense"]
    assert [path.name for path in out.parent.iterdir()] == ["overhead.json"]
    assert capsys.readouterr().out.count("| `digits_net` |") == 4


def test_the_command_in_the_results_repeats_the_settings() -> None:
    given = ["--nets", "digits_net", "small_vit", "--batch-sizes", "3", "5", "--resolution", "32", "--repetitions", "2"]
    options = overhead.parse_arguments([*given, "--draws", "1", "--threads", "1", "2", "--channels-last"])
    words = shlex.split(overhead.command(options))
    assert words[:3] == ["python", "-m", "benchmarks.overhead"]
    assert overhead.parse_arguments(words[3:]) == options


@pytest.mark.parametrize("bad", [["--nets", "no_such_net"], ["--repetitions", "0"], ["--batch-sizes", "many"]])
def test_bad_options_are_named(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        overhead.parse_arguments(bad)
    assert bad[0] in capsys.readouterr().err


def test_the_order_within_rounds_turns() -> None:
    calls: list[str] = []
    found = timing.rounds({name: lambda name=name: calls.append(name) for name in "abc"}, 4)
    assert "".join(calls) == "abc" + "abc" + "cba" + "bca" + "acb"
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratios_are_of_the_same_round() -> None:
    found = {"a": [timing.Timing(2.0, 3.0), timing.Timing(8.0, 8.0)], "b": [timing.Timing(1.0, 1.0)] * 2}
    assert timing.ratio(found, "a", "b") == {
        "median": 5.0,
        "min": 2.0,
        "lower_quartile": 3.5,
        "upper_quartile": 6.5,
        "cpu_median": 5.5,
    }


def test_the_readme_shows_the_stored_results() -> None:
    readme = (overhead.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    result = json.loads(overhead.RESULTS.read_text(encoding="utf-8"))
    assert all(table in readme for table in overhead.tables(result))
    assert result["command"] in readme
    assert [net["name"] for net in result["nets"]] == list(overhead.NETS)


def test_the_readme_shows_the_passes_in_channels_last_order() -> None:
    readme = (overhead.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    file = overhead.RESULTS.with_name("overhead_channels_last.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert overhead.tables(result)[0] in readme
    assert f"{result['command']} --out benchmarks/results/{file.name}" in readme
