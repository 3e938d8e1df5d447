"""The fields that a model card begins with, and the licence it states, as words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tmerge_tui.recipe.yamlfile import read_yaml

HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)


def card_head(readme: Path) -> dict[str, Any]:
    """The fields between the two lines of dashes that a card begins with; none where it does not begin so.

    Raises OSError, yaml.YAMLError, ValueError for a head that is no table of fields.
    """
    found = HEAD.match(readme.read_text(encoding="utf-8-sig"))
    data = read_yaml(found[1]) if found else {}
    if not isinstance(data or {}, dict):
        raise ValueError("it is no table of fields")
    return data or {}


def licence_of(value: Any) -> str | None:
    """A field of a card: several licences joined, none where it says something else than words."""
    given = value if isinstance(value, list) else [value]
    return ", ".join(one for one in given if isinstance(one, str) and one) or None
