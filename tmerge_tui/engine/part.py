"""What a stage hands to the report: one named section of report.json, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    key: str  # its name in report.json
    data: Any  # plain JSON: dictionaries, lists, strings, numbers, None
