"""What all groups of settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings that refuses names it does not know and cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
