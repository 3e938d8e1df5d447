"""Where one is in the wizard: a column of steps on a wide screen, one line on a narrow one."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widget import Widget

from tmerge_tui.tui.draft import STEPS, Draft

TITLES = {"models": "Models", "data": "Data", "method": "Method", "review": "Review", "run": "Run", "result": "Result"}
MARKS = {"checked": ("✓", "$success"), "refused": ("✗", "$error"), "open": ("○", "$text-muted")}
RUN = STEPS.index("run")


class Rail(Widget):
    """Marks: ✓ checked, ✗ checked and refused, ● here, ○ neither. A click on a step of the form goes there."""

    @dataclass
    class Chosen(Message):
        step: str

    def __init__(self, step: str, draft: Draft, id: str | None = None) -> None:
        super().__init__(id=id)
        self.step, self.draft = step, draft

    def render(self) -> Content:
        here = STEPS.index(self.step)
        parts = []
        upright = self.size.height > 2
        for position, name in enumerate(STEPS):
            title = TITLES[name]
            if name == self.step:
                mark, style = "●", "$primary bold"
            elif here >= RUN:  # a run or its result: what led there was checked by the run
                mark, style = MARKS["checked" if position < here else "open"]
            else:
                mark, style = MARKS[self.draft.standing(name)]
            number = f"{position + 1} " if upright else ""
            parts.append(Content.from_markup(f"[{style}]{mark} {number}{title}[/]"))
        if upright:
            return Content("\n\n").join(parts)
        return Content.from_markup(f"[$border]{self.between}[/]").join(parts)

    @property
    def between(self) -> str:
        return " › " if self.size.width >= 66 else " "

    def on_click(self, event: Click) -> None:
        """The step under the pointer."""
        if self.size.height > 2:
            position = event.y // 2
        else:
            widths = [len(TITLES[name]) + 2 + len(self.between) for name in STEPS]
            position = next((i for i in range(len(STEPS)) if event.x < sum(widths[: i + 1])), len(STEPS))
        if position < len(STEPS):
            self.post_message(self.Chosen(STEPS[position]))
