"""Where one is in the wizard: a column of steps on a wide screen, one line on a narrow one."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widget import Widget

from tmerge_tui.tui.draft import STEPS, Draft, step_problems

TITLES = {"models": "Models", "data": "Data", "method": "Method", "review": "Review", "run": "Run", "result": "Result"}


class Rail(Widget):
    """Marks: ✓ complete, ● here, ○ to do. A click on a step of the form goes there."""

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
            elif position < here or (
                position <= STEPS.index(self.draft.reached) and not step_problems(self.draft, name)
            ):
                mark, style = "✓", "$success"
            else:
                mark, style = "○", "$foreground 60%"
            number = f"{position + 1} " if upright else ""
            parts.append(Content.from_markup(f"[{style}]{mark} {number}{title}[/]"))
        if upright:
            return Content("\n\n").join(parts)
        return Content.from_markup("[$border] › [/]").join(parts)

    def on_click(self, event: Click) -> None:
        """The step under the pointer."""
        if self.size.height > 2:
            position = event.y // 2
        else:
            widths = [len(TITLES[name]) + 5 for name in STEPS]
            position = next((i for i in range(len(STEPS)) if event.x < sum(widths[: i + 1])), len(STEPS))
        if position < len(STEPS):
            self.post_message(self.Chosen(STEPS[position]))
