"""Building blocks shared by the zoo's nets: nothing here knows of any particular net.

Every block is written for readers and for torch.fx: modules are called in a fixed order, activations are modules and
not in place, and a shortcut is the plain sum ``x + body(x)``.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from netaug_fx.errors import InputError

Activation = Callable[[], nn.Module]
Squeeze = Callable[[int, int], nn.Module]


def round_channels(width: float, divisor: int = 8) -> int:
    """Round a width to a multiple of ``divisor``, never more than 10 % below what was wanted.

    This is the rounding of the MobileNet papers. ``round_channels(11.2)`` is 16, because 8 would lose 29 %.
    """
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


def check_arguments(num_classes: int, in_channels: int, dropout: float) -> None:
    """Refuse arguments that no net of the zoo can be built with.

    Raises:
        InputError: naming the argument, what was given and what is expected.
    """
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; expected an integer of at least 1. Give for example {name}=3.")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise InputError(
            f"dropout is {dropout!r}; expected a probability in [0, 1). Give for example dropout=0.2, or 0 for none."
        )


def dropout_layer(probability: float) -> nn.Module:
    """``nn.Dropout`` for a positive probability, else an identity, so that state_dict keys do not depend on it."""
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


@torch.no_grad()
def initialise_(model: nn.Module) -> None:
    """Initialise every layer of ``model`` in place, as is usual for these nets.

    Convolutions: Kaiming normal by fan-out (He et al., arXiv 1502.01852), zero bias. Norms: weight one, bias zero.
    Linear layers: normal with standard deviation 0.01, zero bias.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm and, unless ``activation`` is None, an activation.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)), for odd kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = nn.ReLU6,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        layers["norm"] = nn.BatchNorm2d(out_channels)
        if activation is not None:
            layers["act"] = activation()
        super().__init__(layers)


class SqueezeExcite(nn.Module):
    """Channel gate: global mean, two 1x1 convolutions with bias, a sigmoid of some kind, product.

    Args:
        channels: channels of input and output.
        hidden: channels between the convolutions; None for those of MobileNetV3, ``max(round_channels(channels / 4),
            16)``.
        activation: between the convolutions.
        gate: after them; gives values in [0, 1].

    Shapes: (N, C, H, W) -> (N, C, H, W).

    Papers: Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507; with the defaults, Howard et al., Searching
    for MobileNetV3, arXiv 1905.02244.
    """

    def __init__(
        self,
        channels: int,
        hidden: int | None = None,
        activation: Activation = nn.ReLU,
        gate: Activation = nn.Hardsigmoid,
    ) -> None:
        super().__init__()
        hidden = max(round_channels(channels / 4), 16) if hidden is None else hidden
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = activation()
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``x`` by its gate in [0, 1]."""
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return x * gate


class InvertedResidual(nn.Module):
    """Inverted bottleneck: 1x1 expand, depthwise, optional squeeze-excite, linear 1x1 projection, optional shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        inner: channels of the depthwise convolution, or None for no expansion convolution before it.
        kernel: depthwise kernel size, odd.
        stride: depthwise stride.
        activation: of the expansion and the depthwise convolution; the projection has none.
        squeeze: makes the gate behind the depthwise convolution, from the channels of the block's input and the inner
            ones; None for no gate.
        shortcut: whether the input is added to the output; needs stride 1 and equal widths.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: a shortcut is asked for where input and output differ in shape.

    Paper: Sandler et al., MobileNetV2, arXiv 1801.04381.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        inner: int | None,
        kernel: int = 3,
        stride: int = 1,
        activation: Activation = nn.ReLU6,
        squeeze: Squeeze | None = None,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        if shortcut and (stride != 1 or in_channels != out_channels):
            raise InputError(
                f"InvertedResidual: shortcut=True with stride {stride} and channels {in_channels} -> {out_channels}; "
                "an identity shortcut needs stride 1 and equal channels. Use shortcut=False or change these."
            )
        body: OrderedDict[str, nn.Module] = OrderedDict()
        if inner is None:
            inner = in_channels
        else:
            body["expand"] = ConvNormAct(in_channels, inner, activation=activation)
        body["depthwise"] = ConvNormAct(inner, inner, kernel, stride, groups=inner, activation=activation)
        if squeeze is not None:
            body["squeeze"] = squeeze(in_channels, inner)
        body["project"] = ConvNormAct(inner, out_channels, activation=None)
        self.body = nn.Sequential(body)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + body(x)`` with a shortcut, else ``body(x)``."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y
