"""The examples in public docstrings are run."""

import doctest
import importlib
import sys

import pytest

import netaug_fx

MODULES = sorted({sys.modules[vars(netaug_fx)[name].__module__].__name__ for name in netaug_fx.__all__})


@pytest.mark.parametrize("name", [*MODULES, "netaug_fx"])
def test_examples_give_what_they_say(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_functions_of_the_top_level_have_examples() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    shown = {name for name in netaug_fx.__all__ for test in finder.find(vars(netaug_fx)[name], name) if test.examples}
    assert {"augment", "enlarge", "evolve", "extract", "inspect", "step"} <= shown
