"""Random nets that compose the wirings: drawn as plain data, built from it, shrunk by Hypothesis.

A spec is a literal of tuples, dicts, strings, numbers and booleans, so that a counter-example can be printed, and
stored in a test as it stands::

    spec = {"size": (4, 4), "stem": 4, "blocks": [("split", {"how": "slice", "cut": 1, "swap": True})], "head": "mean"}
    model, (args, kwargs) = build(spec), inputs(spec, batch=2)

Every block adapts to whatever comes before it, so blocks can be deleted from a spec, repeated and put in another order.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.random_nets import join_blocks, layer_blocks, move_blocks
from tests.random_nets.parts import KINDS, MIXING, NESTED, OPTIONS, WIDTH, Block, BlockSpec, make, match
from tests.wirings.registry import CLASSES, Inputs, conv_bn_relu, generator, randomise

__all__ = [
    "KINDS",
    "Spec",
    "build",
    "inputs",
    "join_blocks",
    "layer_blocks",
    "mixes",
    "move_blocks",
    "random_block",
    "random_nets",
    "random_spec",
]

Spec = dict[str, Any]
Pick = Callable[[Sequence[Any]], Any]

SIZES = ((4, 4), (6, 4), (5, 6), (8, 8))
HEADS = ("mean", "flatten", "last", "max", "stages")
MOST_BLOCKS = 5
MOST_CHANNELS = 24
ORDERED = sorted(KINDS, key=lambda kind: (NESTED in OPTIONS[kind].values(), kind != "conv", kind))
"""The kinds from simple to nested: Hypothesis shrinks towards the first."""
FLAT = [kind for kind in ORDERED if NESTED not in OPTIONS[kind].values()]


def random_nets() -> st.SearchStrategy[Spec]:
    """Hypothesis strategy for specs; shrinks to fewer blocks of simpler kinds with simpler options."""
    blocks = st.lists(_block_strategy(), min_size=1, max_size=MOST_BLOCKS)
    frame = {"size": SIZES, "stem": WIDTH, "head": HEADS}
    return st.fixed_dictionaries({"blocks": blocks, **{key: st.sampled_from(values) for key, values in frame.items()}})


@st.composite
def _block_strategy(draw: st.DrawFn) -> BlockSpec:
    return _draw_block(lambda options: draw(st.sampled_from(options)), ORDERED)


def random_block(rng: random.Random) -> BlockSpec:
    """One block drawn without Hypothesis."""
    return _draw_block(rng.choice, ORDERED)


def random_spec(rng: random.Random) -> Spec:
    """One spec drawn without Hypothesis, from the same distribution of blocks."""
    blocks = [random_block(rng) for _ in range(rng.randint(1, MOST_BLOCKS))]
    return {"blocks": blocks, "size": rng.choice(SIZES), "stem": rng.choice(WIDTH), "head": rng.choice(HEADS)}


def _draw_block(pick: Pick, kinds: Sequence[str]) -> BlockSpec:
    kind = pick(kinds)
    options = OPTIONS[kind].items()
    return kind, {name: _draw_block(pick, FLAT) if values is NESTED else pick(values) for name, values in options}


def build(spec: Spec, seed: int = 0) -> nn.Module:
    """The net of a spec in training mode, all weights and statistics drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(RandomNet(**spec)).train()


def inputs(spec: Spec, batch: int) -> Inputs:
    """(args, kwargs) for the net of a spec: one image batch (B, 3, *size), the same at every call."""
    return (torch.randn(batch, 3, *spec["size"], generator=generator(batch)),), {}


def mixes(spec: Spec) -> bool:
    """Whether a norm in the net spans channels; see ``Wiring.mixes``."""

    def in_block(block: BlockSpec) -> bool:
        return any(in_block(value) if isinstance(value, tuple) else value in MIXING for value in block[1].values())

    return any(in_block(block) for block in spec["blocks"])


class RandomNet(nn.Module):
    """Stem, blocks, head: (B, 3, H, W) to logits (B, CLASSES)."""

    def __init__(self, size: tuple[int, int], stem: int, blocks: list[BlockSpec], head: str) -> None:
        super().__init__()
        self.head = head
        self.stem = conv_bn_relu(3, stem)
        self.blocks = nn.ModuleList()
        channels, stages = stem, 0
        for spec in blocks:
            block: Block = make(spec, channels, tuple(size))
            squeeze = match(block.out, min(block.out[0], MOST_CHANNELS), block.out[1])
            self.blocks.append(nn.Sequential(block, squeeze) if len(squeeze) else block)
            channels, size = min(block.out[0], MOST_CHANNELS), block.out[1]
            stages += channels
        widths = {"stages": stages, "flatten": channels * size[0] * size[1], "last": channels * size[0] * size[1]}
        self.classifier = nn.Linear(widths.get(head, channels), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        stages = []
        for block in self.blocks:
            x = block(x)
            stages.append(x.mean((2, 3)))
        if self.head == "flatten":
            x = torch.flatten(x, 1)
        elif self.head == "last":
            x = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        elif self.head == "max":
            x = x.amax((-2, -1))
        else:
            x = torch.cat(stages, 1) if self.head == "stages" else stages[-1]
        return self.classifier(x)
