"""The running average of a net's weights, which is validated and delivered in its place."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import netaug_fx
from netaug_fx.supernet import is_supernet


class TargetAverage:
    """Exponential moving average of the target's weights and running statistics.

    Only the target is averaged: what surrounds it is thrown away after training.

    Attributes:
        averaged: torch's ``AveragedModel``; its ``module`` is a plain net of the model's class.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """Args:
        net: A plain net or a supernet, on its device.
        decay: Weight of the old average in each update, reached by and by: after n updates it is at most
            (1 + n) / (10 + n).
        """
        self.target = plain_view(net)
        self.decay = decay
        self.averaged = AveragedModel(self.target, multi_avg_fn=self._average, use_buffers=True)

    def _average(self, averages: Any, values: Any, count: Any) -> None:
        # At the full decay from the start on, a short run would deliver its first weights.
        updates = int(count)
        decay = min(self.decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(averages, values, count)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take the present weights in; to be called after each optimizer step."""
        self.averaged.update_parameters(self.target)

    def restart(self) -> None:
        """Start anew at the next update: sorting has made the target another net."""
        self.averaged.n_averaged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The averages and their number of updates."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.averaged.load_state_dict(state)


def plain_view(net: nn.Module) -> nn.Module:
    """A plain net that shares the target's parameters and buffers with ``net``; the net itself where it is plain."""
    if not is_supernet(net):
        return net
    view = netaug_fx.extract(net)
    for path, module in view.named_modules():
        original = net.get_submodule(path)
        for name in module._parameters:
            module._parameters[name] = original._parameters[name]
        for name in module._buffers:
            module._buffers[name] = original._buffers[name]
    return view
