"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """NOTE has advice that may be left alone, PROBLEM should be looked at, MISSING keeps tmerge from working."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One line for a person, what to do about it (empty when all is well), and figures for a bug report."""

    what: str
    found: str
    advice: str = ""
    level: Level = Level.OK
    facts: Mapping[str, Any] = field(default_factory=dict)


def checked(what: str, found: str, advice: str, **facts: Any) -> Finding:
    """A problem when there is advice, else all is well."""
    return Finding(what, found, advice, Level.PROBLEM if advice else Level.OK, facts)
