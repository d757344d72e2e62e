"""Calibration: statistics as averages over batches, worked out by hand, for the target and for other widths."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaug_fx
from netaug_fx.errors import InputError
from tests import invariants
from tests.netaug_fx.small_nets import INPUTS, Mlp, X, Y, evaluated

GENERATOR = torch.Generator().manual_seed(5)
BATCHES = [torch.randn(4, 1, 8, 8, generator=GENERATOR) * scale + 1 for scale in (1.0, 3.0)]


def averages(outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over batches of the mean and the unbiased variance of each channel (dimension 1)."""
    flat = [out.transpose(0, 1).flatten(1) for out in outputs]
    means = torch.stack([each.mean(1) for each in flat])
    variances = torch.stack([each.var(1, correction=1) for each in flat])
    return means.mean(0), variances.mean(0)


def stem_outputs(supernet: Any) -> list[Tensor]:
    with torch.no_grad():
        return [supernet.stem.conv(batch) for batch in BATCHES]


def settings(supernet: nn.Module) -> list[Any]:
    return [(name, m.training, m.__dict__.get("momentum")) for name, m in supernet.named_modules()]


def test_the_targets_statistics_are_averages_over_the_batches(supernet: Any) -> None:
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    netaug_fx.calibrate_(supernet, BATCHES)
    mean, variance = averages(stem_outputs(supernet))
    torch.testing.assert_close(supernet.stem.norm.running_mean, mean)
    torch.testing.assert_close(supernet.stem.norm.running_var, variance)
    assert int(supernet.stem.norm.num_batches_tracked) == 2
    changed = {key for key, value in supernet.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.rpartition(".")[2] for key in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    tiny = netaug_fx.extract(supernet)
    assert torch.equal(evaluated(tiny), evaluated(supernet))


def test_later_norms_see_the_batch_as_training_does(model: nn.Module, supernet: Any) -> None:
    """With one batch, calibration gives what one training pass with momentum 1 gives."""
    netaug_fx.calibrate_(supernet, BATCHES[:1])
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(BATCHES[0])
    expected = dict(model.named_buffers())
    for name, buffer in supernet.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, expected[name])


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_momenta_are_put_back(supernet: Any, training: bool) -> None:
    supernet.train(training)
    supernet.blocks[1].train(not training)
    supernet.stem.norm.momentum = None
    supernet.blocks[2].body.expand.norm.momentum = 0.37
    before = settings(supernet)
    netaug_fx.calibrate_(supernet, BATCHES)
    netaug_fx.calibrate_(supernet, BATCHES, supernet.widest)
    assert settings(supernet) == before
    assert supernet.widths == {group.name: group.width for group in supernet.groups}


def test_other_widths_use_their_own_statistics_in_evaluation(supernet: Any) -> None:
    widths, target = supernet.widest, evaluated(supernet)
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    with supernet.augmented(widths):
        mean, variance = averages(stem_outputs(supernet))
        by_batch = evaluated(supernet)
    netaug_fx.calibrate_(supernet, BATCHES, widths)
    with supernet.augmented(widths):
        torch.testing.assert_close(supernet.stem.norm.running_mean, mean)
        torch.testing.assert_close(supernet.stem.norm.running_var, variance)
        together = evaluated(supernet)
        alone = evaluated(supernet, X[:1])
    torch.testing.assert_close(together[:1], alone)  # no longer by batch
    assert not torch.allclose(together, by_batch)
    assert torch.equal(evaluated(supernet), target)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in supernet.named_buffers())


def test_calibrated_statistics_are_kept_and_copied(supernet: Any) -> None:
    netaug_fx.calibrate_(supernet, BATCHES, supernet.widest)
    with supernet.eval().augmented(supernet.widest):
        expected = evaluated(supernet)
    with supernet.augmented(supernet.widest):
        assert torch.equal(evaluated(supernet), expected)
    twin = copy.deepcopy(supernet)
    with twin.eval().augmented(twin.widest):
        assert torch.equal(evaluated(twin), expected)


def test_widths_left_out_are_the_targets(supernet: Any) -> None:
    """Calibrated at the base widths, the augmented pass is the target calibrated on the same batches."""
    netaug_fx.calibrate_(supernet, BATCHES, {})
    netaug_fx.calibrate_(supernet, BATCHES)
    with supernet.eval().augmented({}):
        calibrated = evaluated(supernet)
    torch.testing.assert_close(calibrated, evaluated(supernet))


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, Y), lambda x: [x, Y, "name"], lambda x: {"x": x}],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_what_batches_may_be(supernet: Any, wrap: Any) -> None:
    twin = copy.deepcopy(supernet)
    netaug_fx.calibrate_(twin, BATCHES)
    netaug_fx.calibrate_(supernet, (wrap(batch) for batch in BATCHES))
    invariants.assert_equal(list(supernet.buffers()), list(twin.buffers()), "statistics")


@pytest.mark.parametrize("widths", [None, {}])
def test_an_empty_loader(supernet: Any, widths: Any) -> None:
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    modes = settings(supernet)
    with pytest.raises(InputError, match="loader gave no batches: calibrate_ needs at least one"):
        netaug_fx.calibrate_(supernet, [], widths)
    assert settings(supernet) == modes
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_a_loader_that_fails_changes_nothing(supernet: Any) -> None:
    def broken() -> Iterator[Tensor]:
        yield BATCHES[0]
        raise OSError("disk gone")

    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    modes = settings(supernet)
    for widths in (None, supernet.widest):
        with pytest.raises(OSError, match="disk gone"):
            netaug_fx.calibrate_(supernet, broken(), widths)
        assert settings(supernet) == modes
        assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())
    assert supernet.widths == {group.name: group.width for group in supernet.groups}


def test_widths_out_of_range(supernet: Any) -> None:
    with pytest.raises(InputError, match=r"widths\['stem.conv'\] must be an integer from 8 to 24"):
        netaug_fx.calibrate_(supernet, BATCHES, {"stem.conv": 25})


def test_instance_norms_with_running_statistics() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 6, 1), nn.InstanceNorm1d(6, track_running_stats=True), nn.ReLU(), nn.Conv1d(6, 2, 1)
    )
    supernet: Any = netaug_fx.augment(model)
    batches = [torch.randn(2, 3, 9) * scale for scale in (1, 4)]
    for widths in (None, {"0": 11}):
        netaug_fx.calibrate_(supernet, batches, widths)
        with supernet.eval().augmented(widths or {}), torch.no_grad():
            outputs = [supernet[0](batch) for batch in batches]
            mean = torch.stack([out.mean((0, 2)) for out in outputs]).mean(0)
            variance = torch.stack([out.var(2, correction=1).mean(0) for out in outputs]).mean(0)
            if widths is not None:
                torch.testing.assert_close(supernet[1].running_mean, mean)
                torch.testing.assert_close(supernet[1].running_var, variance)
        if widths is None:
            torch.testing.assert_close(supernet[1].running_mean, mean)
            torch.testing.assert_close(supernet[1].running_var, variance)
    assert supernet[1].momentum == 0.1


def test_nets_without_statistics_are_left_alone() -> None:
    supernet: Any = netaug_fx.augment(Mlp())
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    netaug_fx.calibrate_(supernet, [])
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())


def test_the_invariants_hold_after_calibration(supernet: Any) -> None:
    netaug_fx.calibrate_(supernet, BATCHES, supernet.widest)
    netaug_fx.calibrate_(supernet, BATCHES)
    tiny = netaug_fx.extract(supernet)
    invariants.assert_target_is_the_model(supernet, tiny, INPUTS)
    invariants.assert_extract_restores(supernet, tiny, INPUTS)
