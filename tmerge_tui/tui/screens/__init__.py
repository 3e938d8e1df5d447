"""One file a screen. `wizard_screen` is the only place that knows which step is which."""

from __future__ import annotations

from textual.screen import Screen


def wizard_screen(step: str) -> Screen:
    """A fresh screen of one step; it fills itself from the draft."""
    if step == "data":
        from tmerge_tui.tui.screens.data import DataScreen

        return DataScreen()
    if step == "method":
        from tmerge_tui.tui.screens.method import MethodScreen

        return MethodScreen()
    if step == "review":
        from tmerge_tui.tui.screens.review import ReviewScreen

        return ReviewScreen()
    from tmerge_tui.tui.screens.models import ModelsScreen

    return ModelsScreen()
