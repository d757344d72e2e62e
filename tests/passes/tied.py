"""A net with one weight in two layers, which several passes have to leave one."""

from torch import Tensor, nn


class Tied(nn.Module):
    """An embedding of 9 rows and 6 channels that is the head's weight, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.table(rows))  # type: ignore[no-any-return]
