"""The engine of a one-file executable being unpacked, as a share of it, in the title line; nothing at other times."""

from __future__ import annotations

from tmerge_tui.tui.widgets.static import Static

REFRESH = 0.2  # seconds


class Unpacking(Static):
    def on_mount(self) -> None:
        self._timer = self.set_interval(REFRESH, self._look)
        self._look()

    def _look(self) -> None:
        share = self.app.unpacked  # type: ignore[attr-defined]
        self.display = share is None or share < 1.0
        if share is None:
            self.update("the engine is not unpacked")
        elif share < 1.0:
            self.update(f"unpacking the engine, once: {share:.0%}")
        else:
            self._timer.stop()
