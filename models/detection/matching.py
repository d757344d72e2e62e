"""Which prediction has to find which box, for both heads; by tensors as a whole, without a loop over boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Match:
    """What each prediction has to find.

    Attributes:
        positive: bool (N, M): it has to find a box.
        truth: int64 (N, M): which box of its image, where positive.
    """

    positive: Tensor
    truth: Tensor

    def of(self, values: Tensor) -> Tensor:
        """What belongs to the box of each positive prediction, P in all: (N, T) or (N, T, K) -> (P,) or (P, K)."""
        images, predictions = self.positive.nonzero(as_tuple=True)
        return values[images, self.truth[images, predictions]]


@torch.no_grad()
def match(merits: Tensor, wanted: Tensor, threshold: float) -> Match:
    """Gives each box one prediction of its own, and all others that suit it by more than the threshold.

    A prediction that suits several boxes goes to the one that got it as its own, then to the one it suits best, then to
    the first. A box without a prediction of its own there is only if they run out.

    Args:
        merits: (N, T, M), how well each prediction suits each box, in [0, 1]; below 0 where it cannot have it.
        wanted: bool (N, T), the boxes that are to be found.
        threshold: of merits.
    """
    own = _one_each(merits, wanted)
    merit, truth = (merits.masked_fill(~wanted[..., None], -1) + 2 * own).max(1)
    return Match(merit > threshold, truth)


def _one_each(merits: Tensor, wanted: Tensor) -> Tensor:
    """One prediction for each wanted box, none for two: bool (N, T, M).

    Each box claims what suits it best of what is free, and a prediction that several claim goes to the one that it
    suits best. Nearly always one round settles all; boxes about one centre take another.
    """
    own = torch.zeros_like(merits, dtype=torch.bool)
    without = wanted
    while without.any():
        open_merits = merits.masked_fill(own.any(1, keepdim=True) | ~without[..., None], -1)
        claims = F.one_hot(open_merits.argmax(2), merits.shape[2]).bool() & (open_merits >= 0)
        claimed = open_merits.masked_fill(~claims, -1)
        won = F.one_hot(claimed.argmax(1), merits.shape[1]).transpose(1, 2).bool() & claims
        if not won.any():
            break
        own = own | won
        without = without & ~won.any(2)
    return own
