"""A classifier's body as a backbone: what its blocks give at several strides, with its weights under its names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from netaug_fx.errors import CheckpointError, InputError
from netaug_fx.models.inverted import InvertedResidualNet

_SHOWN = 3


class Backbone(nn.Module):
    """Stem and blocks of a net of inverted bottlenecks, tapped where a stride is about to end.

    A tap is the last block that works at its stride. The blocks after the last tap are left out, and so are the
    classifier's head, pooling and linear layer. Modules are shared with the net that is given, not copied, and keep its
    names, so that a trained classifier's weights load by name (:func:`load_classifier_`).

    Args:
        net: the classifier.
        strides: of the feature maps, growing.

    Shapes: (N, in_channels, H, W) -> a tuple of (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Attributes:
        strides: pixels of the image for one pixel of each feature map.
        channels: of each feature map.
        taps: index of the block that gives each feature map.
        example_input_shape: (in_channels, H, W) of one input, without the batch dimension.

    Raises:
        InputError: the net has no stem and blocks, or works at none of its blocks at a stride that is asked for.
    """

    def __init__(self, net: InvertedResidualNet, strides: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        if not isinstance(net, InvertedResidualNet):
            raise InputError(
                f"a backbone is made of an InvertedResidualNet, not of {type(net).__name__}; give a net such as "
                "netaug_fx.models.create('mcunet')."
            )
        last = _last_blocks(net)
        if not strides or list(strides) != sorted(set(strides)) or not set(strides) <= set(last):
            raise InputError(
                f"strides is {tuple(strides)}; expected some of {', '.join(map(str, last))}, growing: the strides at "
                "which this net's blocks work."
            )
        self.strides = tuple(strides)
        self.taps = tuple(last[stride] for stride in strides)
        self.example_input_shape = net.example_input_shape
        self.stem = net.stem
        self.blocks = nn.Sequential(*list(net.blocks)[: self.taps[-1] + 1])
        self.channels = tuple(_out_channels(net.blocks[tap]) for tap in self.taps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a batch of images, finest first."""
        x = self.stem(images)
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return tuple(features)


def load_classifier_(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load a trained classifier's weights into a backbone: this carries pre-training over to detection.

    Everything the backbone has must be in the state_dict with the same shape. What it has besides (the blocks after the
    last tap, head and classifier) is left out.

    Args:
        backbone: changed in place.
        state_dict: of the classifier that the backbone was made of, or of a supernet around it, whose extra weights are
            left out as well.

    Returns:
        The names that were left out.

    Raises:
        CheckpointError: nothing fits, something is missing, or a tensor has another shape; nothing is loaded then.
    """
    own = backbone.state_dict()
    missing = [name for name in own if not isinstance(state_dict.get(name), Tensor)]
    if len(missing) == len(own):
        raise CheckpointError(
            f"none of the backbone's {len(own)} tensors is in the state_dict, which has {_some(list(state_dict))}; "
            f"expected {_some(list(own))}. Give the state_dict of a classifier made of the same net."
        )
    if missing:
        raise CheckpointError(
            f"{len(missing)} of the backbone's {len(own)} tensors are not in the state_dict: {_some(missing)}. It is "
            "another net's, or cut short; give the state_dict of a classifier made of the same net."
        )
    unlike = [name for name, tensor in own.items() if state_dict[name].shape != tensor.shape]
    if unlike:
        name = unlike[0]
        raise CheckpointError(
            f"{len(unlike)} of the backbone's {len(own)} tensors have another shape in the state_dict, the first is "
            f"{name}: {list(state_dict[name].shape)}, expected {list(own[name].shape)}. It is another net's"
            + ("; in_channels differs: pre-train with that of the detector." if name.startswith("stem.conv") else ".")
        )
    backbone.load_state_dict({name: state_dict[name] for name in own})
    return tuple(name for name in state_dict if name not in own)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "nothing"


def _last_blocks(net: InvertedResidualNet) -> dict[int, int]:
    """The last block at each stride that blocks work at, by stride."""
    stride = _stride(net.stem)
    last = {}
    for index, block in enumerate(net.blocks):
        stride *= _stride(block)
        last[stride] = index
    return last


def _stride(module: nn.Module) -> int:
    """The product of the strides of all convolutions in a module, which come one after the other."""
    strides = [int(each.stride[0]) for each in module.modules() if isinstance(each, nn.Conv2d)]
    return math.prod(strides)


def _out_channels(block: nn.Module) -> int:
    """What the last convolution of a block, its projection, gives."""
    return [each.out_channels for each in block.modules() if isinstance(each, nn.Conv2d)][-1]
