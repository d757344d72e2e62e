"""Running models without leaving a trace in the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from netaug_fx.passes.running import SELDOM, seldom_collected


@pytest.fixture(autouse=True)
def _thresholds_put_back() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "within"),
    [
        ((700, 10, 10), SELDOM),
        ((200_000, 5, 50), (200_000, 20, 50)),
        ((0, 10, 10), (0, 10, 10)),  # switched off stays off
    ],
)
def test_garbage_is_collected_less_often_and_never_more_often(
    before: tuple[int, int, int], within: tuple[int, int, int]
) -> None:
    found = []

    @seldom_collected()
    def breaks() -> None:
        found.append(gc.get_threshold())
        raise ValueError("broken")

    gc.set_threshold(*before)
    with pytest.raises(ValueError, match="broken"):
        breaks()
    assert found == [within]
    assert gc.get_threshold() == before


def test_calls_may_overlap() -> None:
    gc.set_threshold(700, 10, 10)
    first, second = seldom_collected(), seldom_collected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == SELDOM
    second.__exit__(None, None, None)
    assert gc.get_threshold() == (700, 10, 10)
