"""One more block: what is inserted runs, and an identity leaves the outputs as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netaug_fx import models
from netaug_fx.errors import CheckError, InputError
from netaug_fx.passes.deepen import insert_block, moved_path
from netaug_fx.passes.stages import repeatable_blocks


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.norm(self.conv(x)).relu())


class Plain(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)))


class Named(nn.Module):
    """Blocks under names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Conv2d(3, 4, 1), Residual(), Residual(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.two(self.one(self.stem(x))).mean((2, 3)))
        return y


class Listed(nn.Module):
    def __init__(self, walk: bool = True) -> None:
        super().__init__()
        self.stem, self.head, self.walk = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), walk
        self.blocks = nn.ModuleList([Residual(), Residual()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks if self.walk else [self.blocks[0], self.blocks[-1]]:
            x = block(x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


INPUTS: Any = ((torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),), {})
NETS: list[tuple[nn.Module, str, Any]] = [
    (Named(), "one", INPUTS),
    (Listed(), "blocks.1", INPUTS),
    (nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), Residual()), "1", INPUTS),
    (models.resnet20(), "layer2.1", INPUTS),
    (models.mobilenet_v2_tiny(), "blocks.2", ((torch.randn(2, 3, 64, 64),), {})),
]


def run(net: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        y: Tensor = net.eval()(*inputs[0])
    return y


@pytest.mark.parametrize(("net", "path", "inputs"), NETS, ids=lambda value: getattr(type(value), "__name__", ""))
def test_an_identity_leaves_the_outputs_as_they_are(net: nn.Module, path: str, inputs: Any) -> None:
    before = copy.deepcopy(net.state_dict())
    deeper = insert_block(net, path, inputs, how="identity")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the model was changed"
    assert len(list(deeper.parameters())) > len(list(net.parameters()))
    torch.testing.assert_close(run(deeper, inputs), run(copy.deepcopy(net), inputs), rtol=1e-4, atol=1e-5)
    again = insert_block(deeper, repeatable_blocks(deeper, inputs)[-1], inputs, how="identity")
    assert len(list(again.parameters())) > len(list(deeper.parameters()))


def test_a_fresh_block_is_drawn_by_its_seed_and_is_trained() -> None:
    net = Listed()
    one, other, same = (insert_block(net, "blocks.0", INPUTS, seed=seed) for seed in (1, 2, 1))
    assert not torch.equal(run(one, INPUTS), run(net, INPUTS))
    assert not torch.equal(run(one, INPUTS), run(other, INPUTS))
    assert torch.equal(run(one, INPUTS), run(same, INPUTS))
    new: Any = one.get_submodule("blocks.1")
    one.train()(*INPUTS[0]).sum().backward()
    assert new.conv.weight.grad.abs().sum() > 0
    assert torch.equal(one.get_submodule("blocks.2").last.weight, net.blocks[1].last.weight)  # type: ignore[union-attr]


def test_what_cannot_be_repeated_is_refused_with_what_can() -> None:
    with pytest.raises(InputError, match=r"'stem' is no block that can be repeated; these are one, two"):
        insert_block(Named(), "stem", INPUTS)
    with pytest.raises(InputError, match="'fresh' or 'identity'"):
        insert_block(Named(), "one", INPUTS, how="zero")


def test_a_block_that_a_forward_does_not_call_is_refused() -> None:
    with pytest.raises(CheckError, match=r"does not run a block behind 'blocks\.0'"):
        insert_block(Listed(walk=False), "blocks.0", INPUTS)


class Unbiased(nn.Module):
    """Gives zeros for zeros, though it is no residual block."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.b = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)))


def test_zeros_for_inputs_prove_no_identity() -> None:
    """Any block without biases hands zeros on, and was taken for a residual one."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), Unbiased(), Unbiased())
    with pytest.raises(CheckError, match=r"no residual block; use how='fresh'"):
        insert_block(net, "1", ((torch.zeros(2, 3, 8, 8),), {}), how="identity")


class InPlace(Residual):
    """Adds to what it is given, which is then what it gives."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.last(self.norm(self.conv(x)).relu())
        return x


def test_a_block_that_writes_into_its_input_is_held_against_what_it_was_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), InPlace(), InPlace())
    deeper = insert_block(net, "1", INPUTS, how="identity")
    torch.testing.assert_close(run(deeper, INPUTS), run(copy.deepcopy(net), INPUTS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "block", "moves"),
    [
        (Named(), "one", {"one": "one.0", "one.conv": "one.0.conv", "two.conv": "two.conv"}),
        (Listed(), "blocks.0", {"blocks.0": "blocks.0", "blocks.1.conv": "blocks.2.conv"}),
        (NETS[2][0], "1", {"0": "0", "1": "1", "2.conv": "3.conv"}),
    ],
    ids=["named", "listed", "sequential"],
)
def test_modules_are_found_where_they_moved_to(net: nn.Module, block: str, moves: dict[str, str]) -> None:
    deeper = insert_block(net, block, INPUTS)
    for before, after in moves.items():
        assert moved_path(net, block, before) == after
        pairs = zip(net.get_submodule(before).parameters(), deeper.get_submodule(after).parameters(), strict=False)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_block_without_a_shortcut_is_no_identity() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Plain(), Plain())
    with pytest.raises(CheckError, match=r"no residual block; use how='fresh'"):
        insert_block(net, "1", INPUTS, how="identity")
    assert len(insert_block(net, "1", INPUTS)) == 4  # type: ignore[arg-type]
