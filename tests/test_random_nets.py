"""The invariants on random nets that compose the wirings; what was found broken is kept in ``test_regressions*.py``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

from benchmarks.coverage_maps import prove
from benchmarks.coverage_table import NOT_PROVEN
from netaug_fx.api import compile_model, hand_over
from netaug_fx.errors import PlanError
from tests import invariants, random_nets

EXAMPLES_PER_SHARD = 70  # benchmarks/coverage.py --zoo random runs thousands


def assert_invariants(spec: Any) -> bool:
    """Holds one net against all invariants; False if nothing in it can grow (with a reason)."""
    model, inputs = random_nets.build(spec), random_nets.inputs(spec, 2)
    try:
        compiled = compile_model(model, 3, example_inputs=inputs)
    except PlanError:
        return False
    supernet = hand_over(compiled)
    invariants.assert_target_is_the_model(supernet, model, inputs)
    invariants.assert_extract_restores(supernet, model, inputs)
    invariants.assert_a_step_trains_everything(supernet, inputs)
    assert prove(compiled, supernet, inputs).answer in ("ok", NOT_PROVEN)
    return True


def _shard(number: int) -> Callable[[], None]:
    @seed(number)
    @settings(max_examples=EXAMPLES_PER_SHARD, deadline=None, suppress_health_check=list(HealthCheck))
    @given(random_nets.random_nets())
    def test(spec: Any) -> None:
        assert_invariants(spec)

    return test


# four shards of examples, so that test processes share the work
test_random_nets_first = _shard(1)
test_random_nets_second = _shard(2)
test_random_nets_third = _shard(3)
test_random_nets_fourth = _shard(4)


@pytest.mark.parametrize("number", range(20))
def test_most_random_nets_grow(number: int) -> None:
    """Pinning everything would satisfy every invariant, so nets with room to grow are counted."""
    spec = random_nets.random_spec(random.Random(number))
    assert assert_invariants(spec)
