"""The licence that a model card states, as words."""

from __future__ import annotations

from typing import Any


def licence_of(value: Any) -> str | None:
    """A field of a card: several licences joined, none where it says something else than words."""
    given = value if isinstance(value, list) else [value]
    return ", ".join(one for one in given if isinstance(one, str) and one) or None
