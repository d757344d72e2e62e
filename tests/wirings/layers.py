"""Layer types: kinds of convolution, activations with parameters, embeddings, recurrent layers, pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.chains import BlockNet
from tests.wirings.registry import CLASSES, conv_bn_relu, features, register, tokens, wiring

register(
    "grouped_conv",
    lambda: BlockNet(8, [nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.ReLU()], 12),
    grows=("stem.0.weight", "blocks.0.weight", "head.weight"),
)
register(
    "depthwise",
    lambda: BlockNet(10, [nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False), nn.BatchNorm2d(10), nn.ReLU6()], 10),
    grows=("stem.0.weight", "blocks.0.weight", "blocks.1.weight", "head.weight"),
)
register(
    "depthwise_multiplier",
    lambda: BlockNet(6, [nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.ReLU()], 12),
    grows=("stem.0.weight", "blocks.0.weight", "head.weight"),
)
register(
    "conv_transpose",
    lambda: BlockNet(6, [nn.ConvTranspose2d(6, 9, 2, stride=2), nn.ReLU(), nn.BatchNorm2d(9)], 9),
    grows=("stem.0.weight", "blocks.0.weight", "blocks.0.bias", "head.weight"),
)
register(
    "conv_transpose_grouped",
    lambda: BlockNet(8, [nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1, groups=2), nn.ReLU()], 12),
    grows=("stem.0.weight", "blocks.0.weight", "head.weight"),
)
register(
    "conv_transpose_depthwise",
    lambda: BlockNet(7, [nn.ConvTranspose2d(7, 7, 4, stride=2, padding=1, groups=7, bias=False), nn.PReLU()], 7),
    grows=("stem.0.weight", "blocks.0.weight", "head.weight"),
)
register(
    "prelu_per_channel",
    lambda: BlockNet(8, [nn.Conv2d(8, 9, 1), nn.PReLU(9), nn.Conv2d(9, 6, 1), nn.PReLU(6)], 6),
    grows=("stem.0.weight", "blocks.0.weight", "blocks.1.weight", "blocks.3.weight", "head.weight"),
)
register(
    "prelu_scalar",
    lambda: BlockNet(8, [nn.Conv2d(8, 6, 1), nn.PReLU()], 6),
    grows=("stem.0.weight", "blocks.0.weight", "head.weight"),
    pinned=("blocks.1.weight",),
)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project, sum."""

    def __init__(self, channels: int, hidden: int, groups: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv_bn_relu(channels, hidden, 1),
            conv_bn_relu(hidden, hidden, groups=groups or hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


register(
    "inverted_residual",
    lambda: BlockNet(6, [InvertedResidual(6, 14), InvertedResidual(6, 10)], 6),
    grows=("stem.0.weight", "blocks.0.conv.0.0.weight", "blocks.0.conv.1.0.weight", "blocks.1.conv.2.weight"),
)
register(
    "resnext_block",
    lambda: BlockNet(9, [InvertedResidual(9, 12, groups=3)], 9),
    grows=("stem.0.weight", "blocks.0.conv.0.0.weight", "blocks.0.conv.1.0.weight", "head.weight"),
)


class PoolNet(nn.Module):
    """Every pooling torch has for images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 10, 1)
        self.pools = nn.ModuleList(
            [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.LPPool2d(2, 1), nn.AdaptiveMaxPool2d((6, 7))]
        )
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = sum(pool(x) for pool in self.pools)
        x = F.adaptive_avg_pool2d(self.conv(x), 2)
        return self.fc(x.flatten(1))


register("pools", PoolNet, grows=("stem.weight", "conv.weight", "fc.weight"))


def _conv1d_net() -> nn.Module:
    return nn.Sequential(
        nn.ConstantPad1d((2, 0), 0.0),
        nn.Conv1d(4, 6, 3, bias=False),
        nn.BatchNorm1d(6),
        nn.ELU(),
        nn.Conv1d(6, 12, 3, groups=2, dilation=2, padding=2),
        nn.GELU(),
        nn.MaxPool1d(2),
        nn.Conv1d(12, 12, 3, groups=12),
        nn.SiLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


def _conv3d_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.ConvTranspose3d(6, 5, 2, stride=2),
        nn.LeakyReLU(0.1),
        nn.AvgPool3d(2),
        nn.Conv3d(5, 7, (1, 3, 3)),
        nn.Softplus(),
        nn.AdaptiveMaxPool3d(1),
        nn.Flatten(),
        nn.Linear(7, CLASSES),
    )


register("conv1d", _conv1d_net, features(4, 11), grows=("1.weight", "2.weight", "4.weight", "7.weight", "11.weight"))
register(
    "conv3d", _conv3d_net, features(2, 4, 5, 6), grows=("0.weight", "1.weight", "3.weight", "6.weight", "10.weight")
)


def _mlp_with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12, bias=False),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(12, 8),
        nn.Mish(),
        nn.Linear(8, CLASSES),
    )


register(
    "batch_norm1d_after_linear",
    _mlp_with_batch_norm,
    features(6),
    grows=("0.weight", "1.weight", "4.weight", "4.bias", "6.weight"),
    stochastic=True,
)


@wiring("embedding_mean_pooled", tokens(11, 6), grows=("embedding.weight", "hidden.weight", "fc.weight"))
class EmbeddingMeanPooled(nn.Module):
    """The vocabulary is fixed by the input; the embedding's width is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=None)
        self.hidden = nn.Linear(8, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.embedding(numbers).mean(dim=1)
        return self.fc(torch.relu(self.hidden(x)))


@wiring("text_cnn", tokens(13, 9), grows=("convs.0.weight", "convs.1.weight", "fc.weight"), stochastic=True)
class TextCnn(nn.Module):
    """Embedding with padding, 1-D convs of three sizes, max over time, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(6, width, size) for width, size in ((4, 2), (5, 3), (7, 4)))
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.embedding(numbers).transpose(1, 2)
        x = torch.cat([F.relu(conv(x)).max(dim=2)[0] for conv in self.convs], 1)
        return self.fc(F.dropout(x, 0.1, self.training))


@wiring("embedding_bag", tokens(11, 6), expect="partly", grows=("fc.weight",))
class EmbeddingBagNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 8, mode="mean")
        self.hidden = nn.Linear(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.fc(self.hidden(self.bag(numbers)).relu())


@wiring("recurrent", features(7, 4), expect="partly", grows=("fc.weight", "embed.weight"))
class Recurrent(nn.Module):
    """torch's GRU is one fused op over stacked gate weights; what lies before and after it can grow or be pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 9)
        self.squeeze = nn.Linear(9, 5)
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.hidden = nn.Linear(6, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.embed(x).tanh())
        _, state = self.gru(x)
        return self.fc(self.hidden(state[-1]).relu())


@wiring("gru_cell_by_hand", features(5, 4), grows=("inputs.weight", "state.weight", "fc.weight"))
class GruCellByHand(nn.Module):
    """Three gates in one matrix, taken apart with ``chunk``; the state starts at zeros of a literal width.

    The loop over time has as many steps as the example: plain torch.fx cannot follow it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.state = nn.Linear(4, 21), nn.Linear(7, 21)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 7)
        for step in x.unbind(1):
            r_in, z_in, n_in = self.inputs(step).chunk(3, -1)
            r_h, z_h, n_h = self.state(h).chunk(3, -1)
            z = torch.sigmoid(z_in + z_h)
            h = (1 - z) * torch.tanh(n_in + torch.sigmoid(r_in + r_h) * n_h) + z * h
        return self.fc(h)


@wiring("bilinear", features(6), expect="partly", grows=("fc.weight",))
class BilinearNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 7)
        self.bilinear = nn.Bilinear(4, 7, 8)
        self.hidden = nn.Linear(8, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bilinear(self.left(x).relu(), self.right(x).tanh())
        return self.fc(self.hidden(x).relu())


@wiring("unfold_as_conv", expect="partly", grows=("stem.weight", "fc.weight"))
class UnfoldAsConv(nn.Module):
    """im2col, a matrix, col2im: channels are the outer factor of the unfolded dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.mix = nn.Linear(4 * 9, 6 * 4)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.stem(x).relu())
        h, w = x.shape[-2:]
        columns = self.mix(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2)
        return self.fc(F.fold(columns, (2 * h, 2 * w), 2, stride=2).relu().mean((2, 3)))
