"""Where weights come from: functional calls, parameters assembled in forward, shared modules, buffers."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from tests.wirings.chains import BlockNet
from tests.wirings.registry import CLASSES, conv_bn_relu, features, register, tokens, wiring


@wiring("einsum_on_images", grows=("stem.0.weight", "mix", "head.weight"))
class EinsumOnImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.mix = nn.Parameter(torch.zeros(10, 8))
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,oc->bohw", self.stem(x), self.mix)
        return self.head(x.relu().mean((2, 3)))


@wiring("einsum_on_tokens", features(4, 6), grows=("first", "second", "head.weight"))
class EinsumOnTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(6, 9)), nn.Parameter(torch.zeros(9, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bnc,cd->bnd", x, self.first).relu()
        x = torch.einsum("...c,cd->...d", x, self.second)
        return self.head(x.mean(1))


@wiring("functional_weights", grows=("w1", "b1", "norm_weight", "w2", "w3", "w4"))
class FunctionalWeights(nn.Module):
    """No module but the root: parameters meet data in F.conv2d, F.batch_norm, F.linear, ``@`` and torch.addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.zeros(6, 3, 3, 3)), nn.Parameter(torch.zeros(6))
        self.norm_weight, self.norm_bias = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))
        self.w2 = nn.Parameter(torch.zeros(6, 8))
        self.w3 = nn.Parameter(torch.zeros(8, 10))
        self.w4, self.b4 = nn.Parameter(torch.zeros(10, CLASSES)), nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.w1, self.b1, padding=1).square()
        x = F.batch_norm(x, self.running_mean, self.running_var, self.norm_weight, self.norm_bias, self.training)
        x = F.linear(x.relu().mean((2, 3)), self.w2.t())
        return torch.addmm(self.b4, (x.tanh() @ self.w3).relu(), self.w4)


@wiring("conv_as_batched_matmul", grows=("stem.0.weight", "weight", "head.weight"), expect="grows")
class ConvAsBatchedMatmul(nn.Module):
    """A 1x1 conv as a matrix broadcast over the batch, onto flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.weight = nn.Parameter(torch.zeros(9, 8))
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        x = torch.bmm(self.weight.expand(x.shape[0], -1, -1), x)
        return self.head(x.relu().mean(2))


@wiring("assembled_bias", features(4, 6), expect="partly", grows=("mlp.0.weight", "mlp.2.weight"))
class AssembledBias(nn.Module):
    """BEiT's attention: the bias of the fused projection is [q_bias, 0, v_bias], put together in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.embed = nn.Linear(6, 8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
        self.proj = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 11), nn.ReLU(), nn.Linear(11, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        return self.mlp((x + self.proj(y)).mean(1))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: every filter to mean 0 and variance 1 before use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BatchNormStandardisedConv(nn.Conv2d):
    """timm's spelling: the filters as channels of a batch of one, standardised by F.batch_norm."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-5).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _conv_net(conv: Any) -> Any:
    """Stem to 6 channels, the given conv 6 -> 8, a plain conv to 9: a factory."""
    return lambda: BlockNet(6, [conv(), nn.ReLU(), nn.Conv2d(8, 9, 1), nn.ReLU()], 9)


class LowRankConv(nn.Module):
    """A conv's weight plus a product of two thin matrices (LoRA)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 1, 1))
        self.down, self.up = nn.Parameter(torch.zeros(2, in_channels)), nn.Parameter(torch.zeros(out_channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + (self.up @ self.down)[:, :, None, None])


class ReparameterisedConv(nn.Module):
    """RepVGG-like: a 1x1 kernel padded to 3x3 and a per-channel kernel of ones are added to the 3x3 kernel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.narrow = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.wide.weight + F.pad(self.narrow.weight, [1, 1, 1, 1])) * self.scale.view(-1, 1, 1, 1)
        return F.conv2d(x, kernel, self.wide.bias * self.scale, padding=1)


def _hooked() -> nn.Module:
    with warnings.catch_warnings():  # deprecated, and in many nets
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(nn.Conv2d(6, 8, 3))


AROUND = ("stem.0.weight", "blocks.2.weight", "head.weight")
register(
    "weight_standardisation",
    _conv_net(lambda: StandardisedConv(6, 8, 3, padding=1)),
    grows=AROUND,
    expect="partly",
    mixes=True,
)
register(
    "weight_standardisation_by_batch_norm",
    _conv_net(lambda: BatchNormStandardisedConv(6, 8, 3, padding=1)),
    grows=("blocks.2.weight", "head.weight"),
    expect="partly",
    mixes=True,
)
register(
    "weight_norm_hook",
    _conv_net(_hooked),
    grows=AROUND[1:],
    expect="partly",
    mixes=True,
    copies=False,
)
register(
    "weight_norm_parametrization",
    _conv_net(lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 3))),
    grows=AROUND[1:],
    expect="partly",
    mixes=True,
)
register(
    "spectral_norm_parametrization",
    _conv_net(lambda: parametrizations.spectral_norm(nn.Conv2d(6, 8, 3))),
    grows=AROUND[1:],
    expect="partly",
    mixes=True,
)
register("low_rank_update", _conv_net(lambda: LowRankConv(6, 8)), grows=(*AROUND, "blocks.0.weight", "blocks.0.up"))
register(
    "reparameterised_kernels",
    _conv_net(lambda: ReparameterisedConv(6, 8)),
    grows=(*AROUND, "blocks.0.wide.weight", "blocks.0.narrow.weight", "blocks.0.scale"),
)


class LayerScaleLast(nn.Module):
    """A 1-D scale on channels-last features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class LayerScaleFour(nn.Module):
    """A (1, C, 1, 1) scale and shift, and a (C, 1, 1) one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale, self.shift = (
            nn.Parameter(torch.ones(1, channels, 1, 1)),
            nn.Parameter(torch.zeros(1, channels, 1, 1)),
        )
        self.outer = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.outer + (self.scale * self.conv(x) + self.shift).relu()


SCALED = ("stem.0.weight", "blocks.0.conv.weight", "head.weight")
register("layer_scale_last", lambda: BlockNet(9, [LayerScaleLast(9)], 9), grows=(*SCALED, "blocks.0.gamma"))
register(
    "layer_scale_four_dims",
    lambda: BlockNet(6, [LayerScaleFour(6)], 6),
    grows=(*SCALED, "blocks.0.scale", "blocks.0.shift", "blocks.0.outer"),
)


class BufferScale(nn.Module):
    """Constants per channel in buffers, one of them not saved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, channels, 1, 1) + 0.5)
        self.register_buffer("mask", (torch.rand(channels, 1, 1) > 0.3).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + x.tanh() * self.mask


register("buffers_with_channels", lambda: BlockNet(7, [BufferScale(7)], 7), grows=("stem.0.weight", "head.weight"))


@wiring("block_applied_twice", grows=("stem.0.weight", "block.0.weight", "head.weight"))
class BlockAppliedTwice(nn.Module):
    """The same block two times in a row, its batch norm's statistics updated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_bn_relu(3, 8), conv_bn_relu(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.block(x)
        return self.head(x.mean((2, 3)))


@wiring("conv_shared_at_two_places", grows=("narrow.weight", "wide.weight", "shared.weight", "fc.weight"))
class ConvSharedAtTwoPlaces(nn.Module):
    """A detection head on two scales: one conv, two names, each scale with its own norm."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.shared = nn.Conv2d(6, 9, 1, bias=False)
        self.alias = self.shared
        self.norms = nn.ModuleList([nn.BatchNorm2d(9), nn.BatchNorm2d(9)])
        self.fc = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norms[0](self.shared(self.narrow(x))).relu()
        large = self.norms[1](self.alias(self.wide(x))).relu()
        return self.fc(torch.cat([small.mean((2, 3)), large.mean((2, 3))], 1))


@wiring("tied_embedding", tokens(CLASSES, 6), grows=("embedding.weight", "hidden.weight"))
class TiedEmbedding(nn.Module):
    """A language model's classifier is its embedding: the vocabulary is both input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 8)
        self.hidden, self.back = nn.Linear(8, 11), nn.Linear(11, 8)
        self.classifier = nn.Linear(8, CLASSES, bias=False)
        self.classifier.weight = self.embedding.weight

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.embedding(numbers).mean(1)
        return self.classifier(x + self.back(self.hidden(x).relu()))


@wiring("tied_transposed", features(6), grows=("encode", "bias", "fc.weight"), expect="grows")
class TiedTransposed(nn.Module):
    """An autoencoder whose decoder is the encoder's matrix, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.zeros(8))
        self.fc = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        code = (x @ self.encode + self.bias).relu()
        return self.fc(torch.cat([code, code @ self.encode.T - x], -1))


@wiring("parameter_containers", grows=("table.in", "scales.0", "scales.1", "table.out"))
class ParameterContainers(nn.Module):
    """Weights in a ParameterDict and a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.ParameterDict({"in": torch.zeros(8, 3, 1, 1), "out": torch.zeros(CLASSES, 8)})
        self.scales = nn.ParameterList([torch.ones(8), torch.ones(8, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.table["in"]) * self.scales[1]
        x = x.relu().mean((-2, -1)) * self.scales[0]
        return F.linear(x, self.table["out"])


def _conditioned(batch: int) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(batch)
    return (torch.randn(batch, 3, 6, 7, generator=generator), torch.randn(batch, 4, generator=generator)), {}


@wiring("film", _conditioned, grows=("stem.0.weight", "film.weight", "film.bias", "head.weight"))
class Film(nn.Module):
    """Scale and shift of the channels come from a second input through one linear layer and a ``chunk``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.film, self.head = conv_bn_relu(3, 8), nn.Linear(4, 16), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return self.head((self.stem(x) * (1 + scale) + shift).relu().mean((2, 3)))


@wiring("mixture_of_kernels", expect="partly", grows=("head.weight",))
class MixtureOfKernels(nn.Module):
    """CondConv: each sample's kernel is a mixture of three, applied as one grouped conv over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router = conv_bn_relu(3, 6), nn.Linear(6, 3)
        self.experts = nn.Parameter(torch.zeros(3, 8 * 6 * 3 * 3))
        self.mix, self.head = nn.Conv2d(8, 10, 1), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        kernels = (self.router(x.mean((2, 3))).sigmoid() @ self.experts).view(b * 8, c, 3, 3)
        x = F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b).view(b, 8, h, w)
        return self.head(self.mix(x.relu()).relu().mean((2, 3)))
