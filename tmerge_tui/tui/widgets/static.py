"""Words on the screen. They are shown as they are: a name in brackets is no markup, wherever it came from."""

from __future__ import annotations

from textual.visual import VisualType
from textual.widgets import Static as _Static


class Static(_Static):
    """Textual's own, but a string is read as markup only where that is asked for."""

    def __init__(self, content: VisualType = "", *, markup: bool = False, **given: str | bool | None) -> None:
        super().__init__(content, markup=markup, **given)  # type: ignore[arg-type]
