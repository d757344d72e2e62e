"""Data-parallel training: two gloo processes give the gradients of one process on the joint batch."""

from pathlib import Path
from typing import Any

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


def backward(net: nn.Module, x: Tensor, y: Tensor) -> None:
    nn.functional.cross_entropy(net(x), y).backward()


def run_rank(rank: int, folder: str) -> None:
    """One of the processes: its half of each batch, both passes, one step; writes what it drew and got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    supernet = make_supernet()
    wrapped = DistributedDataParallel(supernet)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
    drawn, gradients = [], []
    for step in range(STEPS):
        x, y = (part.chunk(PROCESSES)[rank] for part in joint_batch(step))
        optimizer.zero_grad()
        with wrapped.no_sync():
            backward(wrapped, x, y)
        with supernet.augmented() as widths:
            backward(wrapped, x, y)
        drawn.append(widths)
        gradients.append({name: p.grad.clone() for name, p in supernet.named_parameters()})
        optimizer.step()
        if step == 0:
            netaug_fx.sort_channels_(supernet, optimizer)
    torch.save({"drawn": drawn, "gradients": gradients, "state": supernet.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def run_alone() -> dict[str, Any]:
    supernet = make_supernet()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
    drawn, gradients = [], []
    for step in range(STEPS):
        x, y = joint_batch(step)
        optimizer.zero_grad()
        backward(supernet, x, y)
        with supernet.augmented() as widths:
            backward(supernet, x, y)
        drawn.append(widths)
        gradients.append({name: p.grad.clone() for name, p in supernet.named_parameters()})
        optimizer.step()
        if step == 0:
            netaug_fx.sort_channels_(supernet, optimizer)
    return {"drawn": drawn, "gradients": gradients, "state": supernet.state_dict()}


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=PROCESSES, join=True)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    alone = run_alone()
    assert ranks[0]["drawn"] == ranks[1]["drawn"] == alone["drawn"]
    assert len({tuple(widths.values()) for widths in alone["drawn"]}) > 1
    for step in range(STEPS):
        for name, gradient in alone["gradients"][step].items():
            for rank in ranks:
                torch.testing.assert_close(rank["gradients"][step][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for key, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][key]), key
        torch.testing.assert_close(value, alone["state"][key], rtol=1e-4, atol=1e-6)


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
