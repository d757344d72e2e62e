"""Data-parallel training: two gloo processes give the gradients of one process on the joint batch."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import netaug_fx

PROCESSES, STEPS = 2, 2


def make_model() -> nn.Module:
    """Norms without batch statistics: those of half a batch differ from those of the whole."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


def make_supernet() -> Any:
    return netaug_fx.augment(make_model(), ratio=3, seed=11, example_inputs=torch.zeros(1, 3, 4, 4))


def joint_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 4, 4, generator=generator), torch.randint(5, (8,), generator=generator)


def by_hand(net: Any, x: Tensor, y: Tensor) -> dict[str, int]:
    """The loop of the README."""
    with net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext():
        nn.functional.cross_entropy(net(x), y).backward()
    with getattr(net, "module", net).augmented() as widths:
        nn.functional.cross_entropy(net(x), y).backward()
    return widths


def by_step(net: Any, x: Tensor, y: Tensor, **options: Any) -> dict[str, int]:
    def loss_fn(net: nn.Module) -> tuple[Tensor, Tensor]:
        logits = net(x)
        return nn.functional.cross_entropy(logits, y), logits

    return netaug_fx.step(net, loss_fn, **options).widths[-1]


def accumulated(net: Any, x: Tensor, y: Tensor) -> dict[str, int]:
    """Two small batches, which communicate once, with the widest net as teacher."""
    options: dict[str, Any] = {"distill": netaug_fx.Distillation(), "pool": 1}
    first, second = zip(x.chunk(2), y.chunk(2), strict=True)
    with net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext():
        by_step(net, *first, **options)
    return by_step(net, *second, **options)


WAYS: dict[str, Callable[..., dict[str, int]]] = {
    "by hand": by_hand,
    "step": by_step,
    "three draws": partial(by_step, draws=3),
    "in-place distillation": partial(by_step, distill=netaug_fx.Distillation()),
    "sandwich": partial(by_step, distill=netaug_fx.Distillation(), draws=2),
    "accumulated": accumulated,
    "projected": partial(by_step, project=True),
}


def train(net: Any, way: str, rank: int | None) -> dict[str, Any]:
    """A few steps on this rank's part of each joint batch, or on the whole."""
    supernet = getattr(net, "module", net)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
    drawn, gradients = [], []
    for step in range(STEPS):
        x, y = (part if rank is None else part.chunk(PROCESSES)[rank] for part in joint_batch(step))
        optimizer.zero_grad()
        drawn.append(WAYS[way](net, x, y))
        gradients.append({name: p.grad.clone() for name, p in supernet.named_parameters()})
        optimizer.step()
        if step == 0:
            netaug_fx.sort_channels_(supernet, optimizer)
    return {"drawn": drawn, "gradients": gradients, "state": supernet.state_dict()}


def run_rank(rank: int, folder: str) -> None:
    """One of the processes: every way of training, from the same first weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    found = {way: train(DistributedDataParallel(make_supernet()), way, rank) for way in WAYS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=PROCESSES, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("way", [way for way in WAYS if way != "projected"])
def test_two_processes_give_the_gradients_of_one(ranks: list[dict[str, Any]], way: str) -> None:
    alone = train(make_supernet(), way, rank=None)
    first, second = (rank[way] for rank in ranks)
    assert first["drawn"] == second["drawn"] == alone["drawn"]
    for step in range(STEPS):
        for name, gradient in alone["gradients"][step].items():
            for rank in (first, second):
                torch.testing.assert_close(rank["gradients"][step][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key
        torch.testing.assert_close(value, alone["state"][key], rtol=1e-4, atol=1e-6)


def test_widths_change_from_step_to_step(ranks: list[dict[str, Any]]) -> None:
    assert len({tuple(widths.values()) for widths in ranks[0]["step"]["drawn"]}) > 1


def test_ranks_stay_equal_though_each_projects_its_own_gradients(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["projected"] for rank in ranks)
    assert first["drawn"] == second["drawn"]
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_the_supernet_comes_out_of_its_wrapper() -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        supernet = make_supernet()
        wrapped = DistributedDataParallel(supernet)
        x, _ = joint_batch(0)
        with wrapped.module.augmented(supernet.widest), torch.no_grad():
            wide = wrapped(x)
        assert not torch.equal(wrapped(x), wide)
        assert torch.equal(netaug_fx.extract(wrapped.module)(x), wrapped(x))
        resumed = DistributedDataParallel(make_supernet())
        supernet.sample()
        resumed.load_state_dict(wrapped.state_dict())
        assert resumed.module.sample() == supernet.sample()
    finally:
        dist.destroy_process_group()
