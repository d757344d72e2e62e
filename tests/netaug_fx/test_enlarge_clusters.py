"""Enlarging on local clusters, by the recipes of docs/enlarge.md: of Dask in processes, and of Ray where installed."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netaug_fx.enlargement import Enlarged, enlarge
from netaug_fx.models import digits_net

PAGE = (Path(__file__).parents[2] / "docs" / "enlarge.md").read_text(encoding="utf-8")


def evaluate(model: nn.Module, resolution: int) -> float:
    return -sum(parameter.numel() for parameter in model.parameters()) - resolution / 1000


def search(executor: Any) -> Enlarged:
    torch.manual_seed(0)
    return enlarge(digits_net(), macs=180_000, evaluate=evaluate, step=0.5, pixels=1, executor=executor)


def recipe(word: str) -> str:
    """The block of the page that imports from a library, up to its call of ``enlarge``."""
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (text,) = (block for block in blocks if f"from {word}" in block or f"import {word}" in block)
    return "".join(line for line in text.splitlines(keepends=True) if "netaug_fx.enlarge(" not in line)


def test_dask_gives_what_one_process_gives() -> None:
    distributed: Any = import_module("distributed")
    names: dict[str, Any] = {}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local:
        exec(recipe("dask").replace('"tcp://scheduler:8786"', f"'{local.scheduler_address}'"), names)
        with distributed.default_client():
            assert search(names["executor"]).steps == search(None).steps


def test_ray_gives_what_one_process_gives() -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    names: dict[str, Any] = {}
    program = recipe("ray").replace("ray.init()", "ray.init(num_cpus=1, include_dashboard=False)")
    exec(program, names)
    try:
        assert search(names["RayExecutor"](num_cpus=1)).steps == search(None).steps
    finally:
        ray.shutdown()
