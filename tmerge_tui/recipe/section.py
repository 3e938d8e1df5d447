"""What the sections of a recipe are made of: fields that carry their meaning, unit and equation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def option(
    default: Any, meaning: str, *, unit: str = "", equation: str = "", expert: bool = False, **constraints: Any
) -> Any:
    """A recipe field: `meaning` is one line a person reads beside it."""
    extra: dict[str, Any] = {"unit": unit, "equation": equation, "expert": expert}
    return Field(default, description=meaning, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
