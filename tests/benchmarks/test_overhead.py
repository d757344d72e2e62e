import json
import shlex
from pathlib import Path

import pytest

from benchmarks import overhead

SPREAD = {"median", "min", "lower_quartile", "upper_quartile", "cpu_median"}


def test_one_repetition_on_the_digits_net_fills_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "overhead.json"
    overhead.main(
        ["--nets", "digits_net", "--batch-size", "4", "--repetitions", "1", "--draws", "2", "--out", str(out)]
    )
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result) == {"command", "goals", "machine", "versions", "settings", "seconds", "nets"}
    assert set(result["machine"]) == {"cpu", "cores", "threads", "system", "load_at_start"}
    assert result["settings"] == {"ratio": 3.0, "batch_size": 4, "repetitions": 1, "draws": 2}
    (net,) = result["nets"]
    assert net["name"] == "digits_net"
    assert net["input"] == [4, 1, 8, 8]
    assert net["groups"] > 0
    assert net["verified"] is True
    assert set(net["verify_s"]) == {"wall", "cpu"}
    for key, count in (("target_pass", 1), ("augmented_pass", 2)):
        assert set(net[key]) == SPREAD | {"ours_s", "plain_s"}
        assert [len(net[key][times]) for times in ("ours_s", "plain_s")] == [count] * 2
        assert net[key]["min"] > 0
    for key in ("augment_s", "extract_s"):
        assert set(net[key]) == SPREAD | {"first_call"}
        assert net[key]["first_call"] > 0
    assert [path.name for path in out.parent.iterdir()] == ["overhead.json"]
    assert "| `digits_net` |" in capsys.readouterr().out


def test_the_command_in_the_results_repeats_the_settings() -> None:
    given = ["--nets", "digits_net", "mcunet", "--batch-size", "3", "--resolution", "32", "--repetitions", "2"]
    options = overhead.parse_arguments([*given, "--draws", "1", "--threads", "2"])
    words = shlex.split(overhead.command(options))
    assert words[:3] == ["python", "-m", "benchmarks.overhead"]
    assert overhead.parse_arguments(words[3:]) == options


@pytest.mark.parametrize("bad", [["--nets", "no_such_net"], ["--repetitions", "0"], ["--batch-size", "many"]])
def test_bad_options_are_named(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        overhead.parse_arguments(bad)
    assert bad[0] in capsys.readouterr().err


def test_the_order_within_pairs_alternates() -> None:
    calls: list[str] = []
    found = overhead.pairs(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert len(found) == 3


def test_the_readme_shows_the_stored_results() -> None:
    readme = (overhead.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    result = json.loads(overhead.RESULTS.read_text(encoding="utf-8"))
    assert overhead.table(result) in readme
    assert result["command"] in readme
    assert [net["name"] for net in result["nets"]] == list(overhead.TARGETS)
