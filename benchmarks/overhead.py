"""What a supernet costs: its passes against plain nets and against slicing, memory, and the time of the compiler.

All that is compared runs in one process, in turns (`benchmarks/timing.py`), so that drift and other work on the machine
fall on all alike. Figures are medians of the rounds' ratios, with their spread. From the root of the repository:

    python -m benchmarks.overhead --batch-sizes 32 128 --threads 1 2 --repetitions 4 --draws 1
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import os
import platform
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

import netaug_fx
from benchmarks import overhead_passes as passes
from benchmarks.dense import dense_net
from benchmarks.overhead_nets import make_net, net_names
from benchmarks.overhead_passes import RATIO
from benchmarks.slicing import SlicedNet
from benchmarks.stored import finish, keep_others, load, one_by_one, positive
from benchmarks.timing import Timing, cell, ratio, rounds, series, timed
from netaug_fx.example_inputs import resolve_inputs
from netaug_fx.passes.infer import infer

TARGETS = ("mobilenet_v2_tiny", "mobilenet_v2_035", "mobilenet_v3_035", "proxylessnas_035", "mcunet")
NETS = (*TARGETS, "resnet18", "small_vit")
RESULTS = Path(__file__).parent / "results" / "overhead.json"
GOALS = {
    "target": 1.02,
    "step": 1.05,
    "slicing": 0.75,
    "memory": 1.0,
    "augment_s": 1.5,
    "extract_s": 0.3,
    "infer_over_torch_pruning": 1.0,
}
RESOLUTION = 96
TARGET_ROUNDS = 4
"""The target's step and the plain one are short and nearly alike: they get so many times the rounds of the others."""

EPILOG = """\
what is measured, for each net, with ratio 3 and in training mode
  target     one training step of the supernet in target mode, over that of the plain model
  augmented  forward and backward at drawn widths, over the same of a plain dense net of the very same widths
  step       a step of NetAug (target and wider net, optimizer), over the least it could cost: a pass of the plain net,
             one of a plain dense net of the widths drawn, and the optimizer's time on the parameters held
  slicing    a step of NetAug, over the same where each layer holds its widest weight and every pass reads a slice
  memory     what a forward and backward at the widest holds beyond that of a plain dense net, over one assembled weight
             a layer; parameters, gradients and the optimizer's state, which are there anyway, not counted
  augment, extract, sort_channels_, infer, Torch-Pruning's dependency graph
             medians after a first call that is reported apart: in a fresh process it also loads parts of torch
  verify     one call, ONNX export and ONNX Runtime included

Each cell of the tables holds the median on the wall clock, its quartiles, and after the semicolon the median of CPU
time, which other programs on the machine disturb less. To compare CPU times, use one thread.

examples
  python -m benchmarks.overhead --batch-sizes 32 128 --threads 1 2 --repetitions 4 --draws 1
  python -m benchmarks.overhead --nets mcunet --repetitions 21 --out mcunet.json
  python -m benchmarks.overhead --channels-last --out channels_last.json
  python -m benchmarks.overhead --device cuda --batch-sizes 128 --resolution 160 --out cuda.json
  python -m benchmarks.overhead --nets digits_net --resolution 8 --batch-sizes 64 --out digits.json

Close other programs first. A spread between the quartiles of more than a few per cent says that the machine was busy.
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description="Measure what a supernet costs over plain nets; print tables and write JSON.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nets", nargs="+", default=list(NETS), choices=net_names(), metavar="NET", help="names; all seven")
    add("--batch-sizes", nargs="+", type=positive, default=[32], metavar="N", help="images in a pass; 32")
    add("--threads", nargs="+", type=positive, default=[1], metavar="N", help="CPU threads of torch; 1")
    add("--resolution", type=positive, default=RESOLUTION, metavar="PIXELS", help="side of the images; 96")
    add("--repetitions", type=positive, default=9, metavar="N", help="rounds, for target alone four times; 9")
    add("--draws", type=positive, default=3, metavar="N", help="assignments of widths; 3")
    add("--channels-last", action="store_true", help="weights and images of passes in channels-last memory order")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where passes run; the compiler runs on the CPU")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="JSON; benchmarks/results/overhead.json")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: there is no CUDA device; leave it out")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    settings = {"ratio": RATIO, **{key: value for key, value in vars(options).items() if key != "out"}}
    keep_others(options.out, settings)
    started = time.perf_counter()
    busy = load()
    nets = one_by_one(options.out, settings, options.nets, lambda name: measure(name, options))
    result = {
        "command": command(options),
        "goals": GOALS,
        "machine": machine(busy, options.device),
        "versions": {
            "netaug_fx": netaug_fx.__version__,
            "torch": torch.__version__,
            "torch-pruning": importlib.metadata.version("torch-pruning"),
            "python": platform.python_version(),
        },
        "settings": settings,
        "seconds": round(time.perf_counter() - started, 1),
        "nets": nets,
    }
    finish(options.out, result)
    print("\n\n".join(tables(result)))
    print(f"\nwrote {options.out}")


# -- what is measured ------------------------------------------------------------------------------------------------


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one net; times in seconds, memory in bytes."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads[0])
    model = make_net(name, options.resolution)
    example = torch.randn(2, model.example_input_shape[0], options.resolution, options.resolution)
    supernet = netaug_fx.augment(model, RATIO, example_inputs=example)
    found = {
        "name": name,
        "groups": len(supernet.groups),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held": sum(parameter.numel() for parameter in supernet.parameters()),
        "compiler": compiler(model, supernet, example, options.repetitions),
        "memory": passes.transient_memory(model, supernet, example.repeat(4, 1, 1, 1), supernet.widest),
        "passes": [],
    }
    order = torch.channels_last if options.channels_last else torch.preserve_format
    model, supernet = (net.to(options.device, memory_format=order) for net in (model, supernet))
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch_size in options.batch_sizes:
            x = torch.randn(batch_size, *example.shape[1:], device=options.device).to(memory_format=order)
            ratios = compared(model, supernet, x, options.repetitions, options.draws)
            found["passes"].append({"batch_size": batch_size, "threads": threads, **ratios})
    return found


def compiler(model: nn.Module, supernet: Any, example: Tensor, repetitions: int) -> dict[str, Any]:
    """Times of what happens once: to augment, to extract, to verify, to sort; `infer` beside Torch-Pruning's graph."""
    tiny = netaug_fx.extract(supernet)
    inputs = resolve_inputs(model, example)
    verify, report = timed(lambda: netaug_fx.verify(tiny, model, example))
    calls = {
        "augment": lambda: netaug_fx.augment(model, RATIO, example_inputs=example),
        "extract": lambda: netaug_fx.extract(supernet),
        "sort_channels": lambda: netaug_fx.sort_channels_(supernet),
        "infer": lambda: infer(model, inputs),
        "torch_pruning": lambda: _dependency_graph(model, example),
    }
    first = {name: timed(call)[0].wall for name, call in calls.items()}
    turns = rounds(calls, repetitions)
    return {
        **{name: {**series(turns[name]), "first_call": first[name]} for name in calls},
        "infer_over_torch_pruning": ratio(turns, "infer", "torch_pruning"),
        "verify": {"wall": verify.wall, "cpu": verify.cpu},
        "verified": report.passed,
    }


def _dependency_graph(model: nn.Module, example: Tensor) -> None:
    with warnings.catch_warnings():  # it says which parameters belong to no module that it knows
        warnings.simplefilter("ignore")
        torch_pruning.DependencyGraph().build_dependency(model, example)


def compared(model: nn.Module, supernet: Any, x: Tensor, repetitions: int, draws: int) -> dict[str, Any]:
    """Ratios of passes and steps at one batch size; all rounds of all draws together."""

    def synchronized(call: passes.Call) -> passes.Call:
        return passes.synchronized(call, x.device)

    target = {"target": passes.plain_step(supernet, x), "plain": passes.plain_step(model, x)}
    found = rounds({name: synchronized(call) for name, call in target.items()}, TARGET_ROUNDS * repetitions)
    together: dict[str, list[Timing]] = {}
    sliced = SlicedNet(supernet)
    for _ in range(draws):
        widths = supernet.sample()
        calls = {
            "step": passes.netaug_step(supernet, x, widths),
            "least": passes.least_step(copy.deepcopy(model), dense_net(supernet, widths), supernet, x),
            "slicing": passes.sliced_step(sliced, x, widths),
            "augmented": passes.augmented_pass(supernet, x, widths),
            "dense": passes.dense_pass(supernet, x, widths),
        }
        for name, times in rounds({name: synchronized(call) for name, call in calls.items()}, repetitions).items():
            together.setdefault(name, []).extend(times)
    return {
        "target": ratio(found, "target", "plain"),
        "augmented": ratio(together, "augmented", "dense"),
        "step": ratio(together, "step", "least"),
        "slicing": ratio(together, "step", "slicing"),
        "seconds": {name: [t.wall for t in times] for name, times in {**found, **together}.items()},
    }


# -- what is written -------------------------------------------------------------------------------------------------


def machine(busy: float | None, device: str) -> dict[str, Any]:
    """What decides the figures besides the code; no names of machines or people."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "load_at_start": busy,
    }


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def command(options: argparse.Namespace) -> str:
    """The command line that repeats these measurements."""
    words = ["python -m benchmarks.overhead"]
    if options.nets != list(NETS):
        words += ["--nets", *options.nets]
    words += [f"--batch-sizes {_spaced(options.batch_sizes)}", f"--threads {_spaced(options.threads)}"]
    words += [f"--repetitions {options.repetitions}", f"--draws {options.draws}"]
    if options.resolution != RESOLUTION:
        words.append(f"--resolution {options.resolution}")
    if options.channels_last:
        words.append("--channels-last")
    if options.device != "cpu":
        words.append(f"--device {options.device}")
    return " ".join(words)


def _spaced(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def tables(result: dict[str, Any]) -> list[str]:
    """The figures as Markdown: passes, memory, and what happens once."""
    return [_table_of_passes(result), _table_of_memory(result), _table_of_compiler(result)]


def _table_of_passes(result: dict[str, Any]) -> str:
    goals = result["goals"]
    rows = [
        "| net | batch | threads | target / plain | augmented / dense | step / least | step / slicing |",
        "|---|---|---|---|---|---|---|",
    ]
    for net in result["nets"]:
        for found in net["passes"]:
            cells = [_cell(found[key]) for key in ("target", "augmented", "step", "slicing")]
            rows.append(f"| `{net['name']}` | {found['batch_size']} | {found['threads']} | {' | '.join(cells)} |")
    reach = f"{goals['target']:.2f} | | {goals['step']:.2f} | {goals['slicing']:.2f}"
    return "\n".join([*rows, f"| to reach | | | {reach} |"])


def _table_of_memory(result: dict[str, Any]) -> str:
    rows = [
        "| net | plain, MB | target, MB | widest, MB | dense, MB | slicing, MB | beyond dense / assembled weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for net in result["nets"]:
        memory = net["memory"]
        cells = [f"{memory[key] / 1e6:.1f}" for key in ("plain", "target", "augmented", "dense", "slicing")]
        share = (memory["augmented"] - memory["dense"]) / memory["assembled"]
        rows.append(f"| `{net['name']}` | {' | '.join(cells)} | {share:.2f} |")
    return "\n".join([*rows, f"| to reach | | | | | | {result['goals']['memory']:.2f} |"])


def _table_of_compiler(result: dict[str, Any]) -> str:
    goals = result["goals"]
    rows = [
        "| net | augment, s | extract, s | sort, s | verify, s | infer, s | infer / Torch-Pruning's graph |",
        "|---|---|---|---|---|---|---|",
    ]
    for net in result["nets"]:
        found = net["compiler"]
        cells = [_cell(found[key]) for key in ("augment", "extract", "sort_channels")]
        cells += [f"{found['verify']['wall']:.1f}; {found['verify']['cpu']:.1f}", _cell(found["infer"])]
        rows.append(f"| `{net['name']}` | {' | '.join(cells)} | {_cell(found['infer_over_torch_pruning'])} |")
    reach = f"{goals['augment_s']:.1f} | {goals['extract_s']:.1f} | | | | {goals['infer_over_torch_pruning']:.2f}"
    return "\n".join([*rows, f"| to reach | {reach} |"])


def _cell(figures: dict[str, Any]) -> str:
    return f"{cell(figures)}; {figures['cpu_median']:.2f}"


if __name__ == "__main__":
    main()
