"""Finding nets by name, and what the messages say when a name or an argument is wrong."""

import doctest

import pytest
from torch import nn

from netaug_fx.errors import InputError
from netaug_fx.models import create, names, register, registry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register nets without leaving them behind."""
    monkeypatch.setattr(registry.CLASSIFIERS, "builders", dict(registry.CLASSIFIERS.builders))


def test_names_are_sorted_and_unique() -> None:
    assert list(names()) == sorted(set(names()))


@pytest.mark.usefixtures("own_registry")
def test_a_registered_function_is_found_and_returned_unchanged() -> None:
    def my_net(*, width: int = 3) -> nn.Module:
        return nn.Linear(width, 1)

    assert register(my_net) is my_net
    assert "my_net" in names()
    built = create("my_net", width=5)
    assert isinstance(built, nn.Linear)
    assert built.in_features == 5


@pytest.mark.usefixtures("own_registry")
def test_a_name_cannot_be_taken_twice() -> None:
    def mcunet() -> nn.Module:
        return nn.Identity()

    with pytest.raises(InputError, match="'mcunet' is already registered"):
        register(mcunet)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no model is named 'mobilenet_v2_tyni'\. Did you mean 'mobilenet_v2_tiny'"):
        create("mobilenet_v2_tyni")


def test_name_like_no_other_lists_all() -> None:
    with pytest.raises(InputError) as caught:
        create("zzz")
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in names())


def test_unknown_argument_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'mcunet'.*classes.*num_classes, in_channels, dropout"):
        create("mcunet", classes=3)


def test_the_example_in_the_documentation_holds() -> None:
    result = doctest.testmod(registry)
    assert result.attempted > 0
    assert result.failed == 0
