"""All settings of a kind of run, as a file that ``--config`` reads: what a setting means stands above it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

LINE = 120


def settings_page(settings: BaseModel) -> str:
    """The settings as commented YAML."""
    return "\n".join(_lines(settings, ""))


def _lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        yield from textwrap.wrap(
            field.description or "",
            LINE,
            break_on_hyphens=False,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(value)}"  # JSON is YAML
