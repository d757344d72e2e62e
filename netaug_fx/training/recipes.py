"""Settings files: those of the user, and the papers' recipes, which ship with the package and go by their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from netaug_fx.errors import InputError

EXTENDS = "extends"


def recipe_names() -> list[str]:
    """Names that ``--config`` takes beside files."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def read_settings(name: Path, base: str | None = None) -> dict[str, Any]:
    """The settings of a file or of a recipe; where it ``extends`` another, that one's stand below its own.

    Args:
        name: The file's path, or the recipe's name.
        base: What a file extends that does not say so; recipes stand by themselves.

    Raises:
        InputError: there is no such file or recipe, it cannot be read, or it extends itself.
    """
    return _read(name, (), base if name.is_file() else None)


def _read(name: Path, below: tuple[str, ...], default: str | None = None) -> dict[str, Any]:
    file = _found(name)
    if str(file) in below:
        raise InputError(f"--config {name}: it extends itself, by way of {' and '.join(below)}")
    settings = _parsed(file)
    base = settings.pop(EXTENDS, default)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise InputError(f"--config {file}: {EXTENDS!r} must be the name of a file or recipe, not {base!r}")
    beside = file.parent / base
    return merged(_read(beside if beside.is_file() else Path(base), (*below, str(file))), settings)


def _folder() -> Any:
    return files("netaug_fx.models").joinpath("recipes")


def _found(name: Path) -> Path:
    if name.is_file():
        return name
    recipe = Path(str(_folder())) / f"{name}.yaml"
    if name.parent == Path() and recipe.is_file():
        return recipe
    names = recipe_names()
    close = difflib.get_close_matches(str(name), names, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"--config {name}: there is no such file, and no recipe of that name. {hint}Give the path of a YAML file, or "
        f"one of: {', '.join(names)}."
    )


def _parsed(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file} cannot be read: {error}. Give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {file} is not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InputError(
            f"--config {file} holds a {type(settings).__name__}; expected settings such as 'optim: {{epochs: 10}}'"
        )
    return settings


# Settings that are mappings themselves: a new one takes the old one's place.
_WHOLE = frozenset({"ratio", "kwargs", "teacher_kwargs"})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them: sections are merged, settings replaced."""
    together = dict(below)
    for name, value in above.items():
        old = together.get(name)
        both = isinstance(old, dict) and isinstance(value, dict) and name not in _WHOLE
        together[name] = merged(old, value) if both else value  # type: ignore[arg-type]
    return together
