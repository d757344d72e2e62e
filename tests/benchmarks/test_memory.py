"""Bytes that tensors hold at once, against cases counted by hand."""

from __future__ import annotations

import torch

from benchmarks.memory import peak_bytes

SIZE = 4 * 1000


def test_what_is_let_go_is_not_counted_on() -> None:
    x = torch.randn(1000)

    def run() -> None:
        a = x * 2
        b = a + 1
        del a
        b * 3

    assert peak_bytes(run) == 2 * SIZE


def test_views_and_what_was_there_before_hold_nothing_new() -> None:
    x = torch.randn(1000)
    assert peak_bytes(lambda: x.view(10, 100).add_(1)) == 0
    assert peak_bytes(lambda: (x + 1).view(10, 100).t()) == SIZE


def test_what_backward_needs_is_held_until_then() -> None:
    x, w = torch.randn(1000), torch.randn(1000, requires_grad=True)
    w.grad = torch.zeros(1000)
    # the product, its square, and in backward a gradient of either size beside them
    peak = peak_bytes(lambda: (x * w).square().sum().backward())
    assert 3 * SIZE <= peak <= 5 * SIZE + 64
    assert peak_bytes(lambda: (x * w).square().sum().detach()) < peak


def test_the_same_every_time() -> None:
    x = torch.randn(8, 3, 16, 16)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    counts = {peak_bytes(lambda: net(x).sum().backward()) for _ in range(3)}
    assert len(counts) == 1
