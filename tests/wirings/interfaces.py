"""Forwards and their surroundings: inputs, outputs, training-only parts, control flow, what fx cannot follow."""

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.wirings.registry import CLASSES, Inputs, conv_bn_relu, generator, image, register, wiring

TWO = ("stem.0.weight", "stem.1.weight", "conv.weight", "fc.weight")


class Small(nn.Module):
    """Stem to 8, conv to 10, classifier; the subclasses differ in how ``forward`` is written."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.conv = nn.Conv2d(8, 10, 3)
        self.fc = nn.Linear(10, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(self.stem(x)).relu()

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x).mean((2, 3)))


@wiring("functional_dropout", grows=TWO, stochastic=True)
class FunctionalDropout(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.stem(x), p=0.2, training=self.training)
        x = self.conv(x).relu().mean((2, 3))
        return self.fc(F.dropout(x, 0.1, self.training))


@wiring("dropout_modules", grows=TWO, stochastic=True)
class DropoutModules(Small):
    def __init__(self) -> None:
        super().__init__()
        self.drop2d, self.drop = nn.Dropout2d(0.2), nn.Dropout(0.2, inplace=True)
        self.alpha = nn.AlphaDropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.drop2d(self.stem(x))).relu().mean((2, 3))
        return self.fc(self.alpha(self.drop(x)))


@wiring("auxiliary_head", grows=(*TWO, "aux.0.weight", "aux.4.weight"), train_outputs=2)
class AuxiliaryHead(Small):
    """GoogLeNet: a second classifier exists in training only, where the output is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(
            nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        aux = self.aux(x) if self.training else None
        out = self.fc(self.conv(x).relu().mean((2, 3)))
        return (out, aux) if aux is not None else out


class NamedOutputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


@wiring("auxiliary_in_named_tuple", grows=(*TWO, "aux.weight"), outputs=1, train_outputs=2)
class AuxiliaryInNamedTuple(Small):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> NamedOutputs:
        x = self.stem(x)
        aux = self.aux(x.mean((2, 3))) if self.training else None
        return NamedOutputs(self.fc(self.conv(x).relu().mean((2, 3))), aux)


@wiring("training_branch", grows=TWO)
class TrainingBranch(Small):
    """Training and evaluation take different ways through the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.training:
            return self.fc(x.mean((2, 3)))
        return self.fc(x.flatten(2).mean(2)).mul(2)


@wiring("stochastic_depth", grows=(*TWO, "block.0.weight"), stochastic=True)
class StochasticDepth(Small):
    """A residual branch is dropped per sample in training, by hand, as in timm's DropPath."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.keep = conv_bn_relu(8, 8), 0.8

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.floor(self.keep + torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device))
        return x.div(self.keep) * kept

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.drop_path(self.block(x))
        return self.fc(self.conv(x).relu().mean((2, 3)))


@wiring("layer_drop", grows=TWO, stochastic=True)
class LayerDrop(Small):
    """A coin in training weakens a whole layer: control flow on a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        keep = torch.rand(1).item() < 0.9 if self.training else True
        x = x + self.block(x).tanh() * (1.0 if keep else 0.5)
        return self.fc(self.conv(x).relu().mean((2, 3)))


def _two_images(batch: int) -> Inputs:
    draw = generator(batch)
    return (torch.randn(batch, 3, 6, 7, generator=draw), torch.randn(batch, 1, 12, 14, generator=draw)), {}


def _keywords(batch: int) -> Inputs:
    draw = generator(batch)
    image, weight = torch.randn(batch, 3, 6, 7, generator=draw), torch.rand(batch, 1, generator=draw)
    return (), {"image": image, "weight": weight}


def _one_dict(batch: int) -> Inputs:
    return (_keywords(batch)[1],), {}


@wiring("two_inputs", _two_images, grows=(*TWO, "depth.weight"))
class TwoInputs(Small):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(1, 8, 3, 2, 1)

    def forward(self, x: Tensor, depth: Tensor) -> Tensor:
        x = self.stem(x) + self.depth(depth)
        return self.fc(self.conv(x).relu().mean((2, 3)))


@wiring("siamese", lambda batch: ((image()(batch)[0][0], image()(batch + 9)[0][0][:batch]), {}), grows=TWO)
class Siamese(Small):
    """One tower over two images; their features are compared element by element."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc((self.features(x).mean((2, 3)) - self.features(y).mean((2, 3))).abs())


@wiring("keyword_inputs", _keywords, grows=TWO)
class KeywordInputs(Small):
    def forward(self, image: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.features(image).mean((2, 3)) * weight
        return self.fc(x if mask is None else x * mask)


@wiring("dict_as_one_input", _one_dict, grows=TWO)
class DictAsOneInput(Small):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.fc(self.features(batch["image"]).mean((2, 3)) * batch["weight"])


@wiring(
    "dict_output", expect="partly", grows=("stem.0.weight", "conv.weight"), outputs=2, pinned=("fc.bias", "conv.bias")
)
class DictOutput(Small):
    """The features are an output too, so the channels that carry them must stay; those before them need not."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.features(x)
        return {"features": x, "logits": self.fc(x.mean((2, 3)))}


@wiring("ordered_dict_output", grows=TWO, outputs=2)
class OrderedDictOutput(Small):
    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.features(x)
        return OrderedDict(logits=self.fc(x.mean((2, 3))), boxes=self.boxes(x).flatten(2).transpose(1, 2))


@wiring("tuple_output", grows=TWO, outputs=2)
class TupleOutput(Small):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x)
        return self.fc(x.mean((2, 3))), self.fc(x.amax((2, 3)))


@wiring("nested_output", grows=TWO, outputs=4)
class NestedOutput(Small):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x = self.features(x).flatten(2)
        scores = [self.fc(x[..., i]) for i in range(2)]
        return self.fc(x.mean(2)), {"scores": scores, "more": (self.fc(x[..., -1]),)}


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


@wiring("dataclass_output", grows=TWO)
class DataclassOutput(Small):
    def forward(self, x: Tensor) -> Result:
        return Result(logits=self.fc(self.features(x).mean((2, 3))))


@wiring("opaque_star_args", grows=TWO)
class OpaqueStarArgs(Small):
    """fx cannot trace a forward that iterates over ``*args``; nothing in it depends on a width."""

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        total = sum(self.features(x) for x in args)
        for name in kwargs:
            raise TypeError(f"unexpected argument {name!r}")
        return self.fc(total.mean((2, 3)))


@wiring("data_dependent_flow", expect="partly", grows=TWO[:3])
class DataDependentFlow(Small):
    """Branches on values of all channels: new channels could turn them, so the last channels may be pinned."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.sum() > 1e9:
            raise FloatingPointError("features exploded")
        x = x.mean((2, 3)) if bool((x >= 0).all()) else x.amax((2, 3))
        return self.fc(x)


@wiring("shape_dependent_flow", grows=TWO)
class ShapeDependentFlow(Small):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.size(1) != 3:
            raise ValueError(f"expected (B, 3, H, W), got {tuple(x.shape)}")
        x = self.features(x)
        if x.shape[-1] > 3:
            x = F.max_pool2d(x, 2)
        return self.fc(x.flatten(2).mean(-1))


@wiring("loop_until_small", image(3, 12, 14), grows=TWO)
class LoopUntilSmall(Small):
    """A loop whose length depends on the image's size."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        while min(x.shape[-2:]) > 4:
            x = F.avg_pool2d(x, 2)
        return self.fc(self.conv(x).relu().mean((2, 3)))


@wiring("gradient_checkpointing", grows=TWO)
class GradientCheckpointing(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint(self.conv, x, use_reentrant=False) if self.training else self.conv(x)
        return self.fc(x.relu().mean((2, 3)))


@wiring("children_called_by_name", grows=TWO)
class ChildrenCalledByName(Small):
    """timm's ``forward_features`` and ``forward_head``, children found by iteration, an identity in place of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.pool = nn.Identity(), nn.AdaptiveAvgPool2d(1)

    def forward_features(self, x: Tensor) -> Tensor:
        for name, child in self.named_children():
            if name in ("stem", "conv"):
                x = child(x)
        return F.silu(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.pool(x).squeeze(-1).squeeze(-1))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Registry(nn.ModuleDict):
    """A container with a forward of its own: a mapping of branches, summed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.values()]).sum(0)


register(
    "module_dict_branches",
    lambda: nn.Sequential(
        Registry({"near": nn.Conv2d(3, 8, 1), "far": nn.Conv2d(3, 8, 3, padding=1)}),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ),
    grows=("0.near.weight", "0.far.weight", "4.weight"),
)


@wiring("cache_filled_in_forward", grows=TWO)
class CacheFilledInForward(Small):
    """A grid is computed at the first call and kept as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.grid is None or self.grid.shape[-2:] != x.shape[-2:]:
            self.grid = torch.linspace(0, 1, x.shape[-1]).expand(x.shape[-2], -1)
        return self.fc(self.conv(x + self.grid.to(x)).relu().mean((2, 3)))


@wiring("detached_and_frozen", grows=TWO)
class DetachedAndFrozen(Small):
    """A branch without gradient and a part computed under ``no_grad``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.no_grad():
            scale = 1 / (1 + x.abs().mean((2, 3), keepdim=True))
        x = self.conv(x * scale + x.detach().tanh())
        return self.fc(x.relu().mean((2, 3)))


@wiring("float64_inside", grows=TWO)
class Float64Inside(Small):
    """Part of the net runs in double precision."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).double().mean((2, 3))
        return self.fc(x.to(self.fc.weight.dtype))
