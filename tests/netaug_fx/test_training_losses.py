"""Losses beside the labels, held against their definitions, and the batches of pairs that they need."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netaug_fx.errors import DataError
from netaug_fx.training.data import DataConfig, load_task, make_loaders
from netaug_fx.training.data.loaders import PairOrder
from netaug_fx.training.losses import ClassWise, Triplet, partners_of


def test_partners_are_the_next_of_the_class_in_a_circle() -> None:
    partners, alone = partners_of(torch.tensor([0, 1, 0, 2, 0, 1]))
    assert alone.tolist() == [False, False, False, True, False, False]
    assert [int(partner) for partner, none in zip(partners, alone, strict=True) if not none] == [2, 5, 4, 0, 1]


def test_class_wise_distillation_is_the_divergence_from_the_partners_output() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]], requires_grad=True)
    loss = ClassWise(weight=0.5, temperature=4.0)(logits, torch.tensor([1, 1, 0]))
    p, q = (torch.softmax(row / 4, 0) for row in logits.detach()[:2])
    by_hand = (q * (q / p).log()).sum() + (p * (p / q).log()).sum()
    assert float(loss) == pytest.approx(0.5 * 16 * float(by_hand) / 3, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    one = logits.detach()[:1].requires_grad_()
    target = torch.softmax(logits.detach()[1] / 4, 0)
    (0.5 * 16 / 3 * -(target * torch.log_softmax(one[0] / 4, 0)).sum()).backward()  # type: ignore[no-untyped-call]
    assert one.grad is not None
    assert torch.allclose(logits.grad[0], one.grad[0], atol=1e-6), "a gradient through the partner"
    assert logits.grad[2].abs().sum() == 0


def features_loss(features: list[list[float]], labels: list[int], margin: float) -> float:
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
    loss = Triplet(weight=2.0, margin=margin, classifier="1")
    with loss.watching(net):
        logits = net(torch.tensor(features))
    return float(loss(logits, torch.tensor(labels)))


def test_triplets_take_the_hardest_of_the_batch() -> None:
    """Four directions on a circle, of whatever length: chords of 45, 90 and 135 degrees."""
    directions = [[3.0, 0.0], [1.0, 1.0], [0.0, 5.0], [-1.0, 1.0]]
    chord = {angle: 2 * math.sin(math.radians(angle / 2)) for angle in (45, 90, 135)}
    margin = 0.3
    terms = [
        margin + chord[90] - chord[45],  # 0 degrees: its own at 90, another at 45
        margin + chord[90] - chord[45],  # 45 degrees: its own at 135, others at 0 and 90
        margin + chord[90] - chord[45],
        margin + chord[90] - chord[45],
    ]
    assert features_loss(directions, [0, 1, 0, 1], margin) == pytest.approx(2 * sum(terms) / 4, rel=1e-4)


def test_triplets_without_a_positive_or_a_negative_add_nothing() -> None:
    assert features_loss([[1.0, 0.0], [0.0, 1.0]], [0, 0], 5.0) == 0
    assert features_loss([[1.0, 0.0], [0.0, 1.0]], [0, 1], 5.0) == 0


def test_hooks_do_not_stay() -> None:
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
    with Triplet(1.0, 0.2, "1").watching(net):
        assert net[1]._forward_pre_hooks
    assert not net[1]._forward_pre_hooks


@pytest.mark.parametrize("size", [8, 9])
def test_every_image_of_a_batch_of_pairs_has_another_of_its_class(size: int) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1, 1] * 4)
    order = PairOrder(labels, size, seed=3)
    batches = list(order)
    assert len(batches) == len(order) == 40 // size
    assert all(len(batch) == size for batch in batches)
    half = size // 2
    for batch in batches:
        leading, partners = batch[: size - half], batch[size - half :]
        assert all(a != b and labels[a] == labels[b] for a, b in zip(leading, partners, strict=False))
    leaders = [index for batch in batches for index in batch[: size - half]]
    assert len(set(leaders)) == len(leaders)
    order.start = 2
    assert list(order) == batches[2:]
    order.start, order.epoch = 0, 1
    assert list(order) != batches


def test_digits_come_in_pairs() -> None:
    task = load_task(DataConfig(), 0)
    train, _, _ = make_loaders(task, DataConfig(), 0, in_pairs=True)
    for number, (_, labels) in enumerate(train):
        assert not partners_of(labels)[1].any()
        if number == 2:
            break


class Stream:
    """As much of a stream as is asked for before it is read."""

    def divide(self, lanes: int) -> None:
        raise AssertionError("not reached")

    def __len__(self) -> int:
        return 1000

    def batch(self, step: int, size: int, epoch: int) -> tuple[Any, list[int], Tensor]:
        raise AssertionError("not reached")


def test_a_stream_has_no_pairs() -> None:
    task = dataclasses.replace(load_task(DataConfig(), 0), train=Stream())
    with pytest.raises(DataError, match=r"is read as a stream.*evolve\.loss: labels"):
        make_loaders(task, DataConfig(), 0, in_pairs=True)
