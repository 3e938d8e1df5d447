"""The cards at the top of Method: three places to start from, what each does, and how long it takes here."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.style import Style
from textual.widget import Widget

from tmerge_tui.recipe.starts import RECOMMENDED, STARTS

BOXED = 96  # columns from which on the cards stand side by side
TITLE = 22


class Starts(Widget, can_focus=True):
    """Arrows look, space or enter takes. `chosen` is the start that the settings are those of, or empty."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,up", "move(-1)", "Previous", show=False),
        Binding("right,down", "move(1)", "Next", show=False),
        Binding("space,enter", "take", "Take this start", show=False),
    ]
    cursor: reactive[int] = reactive(0)
    chosen: reactive[str] = reactive("")

    @dataclass
    class Taken(Message):
        name: str

    def __init__(self, chosen: str) -> None:
        super().__init__(id="starts")
        self.set_reactive(Starts.chosen, chosen)
        names = [one.name for one in STARTS]
        self.set_reactive(Starts.cursor, names.index(RECOMMENDED))
        self.times: dict[str, str] = {}  # name -> how long it takes here
        self.told = ""  # where the times are from

    def show_times(self, times: dict[str, str], told: str) -> None:
        self.times, self.told = times, told
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def render(self) -> Content:
        return Content("\n").join(self._lines(self.content_size.width))

    def _lines(self, width: int) -> list[Content]:
        return self._boxes(width) if width >= BOXED else self._rows(width)

    def _rows(self, width: int) -> list[Content]:
        """A line a card, and below them what the one under the cursor does."""
        lines = []
        for place, start in enumerate(STARTS):
            left, right = ("‹", "›") if start.name == self.chosen else (" ", " ")
            time = self.times.get(start.name, "")
            note = "recommended" if start.name == RECOMMENDED else ""
            line = Content.styled(f"{left + start.title + right:<{TITLE}}{note:<13}{time}"[:width], self._ink(place))
            lines.append(line.stylize(Style.from_meta({"place": place})))
        about = textwrap.wrap(STARTS[self.cursor].about, max(width - 4, 20))[:3]
        about += [""] * (_most(width - 4) - len(about))
        return lines + [Content.styled(f"  {line}", "$text-muted") for line in about]

    def _boxes(self, width: int) -> list[Content]:
        inner = (width - 2) // len(STARTS) - 4
        rows = max(len(textwrap.wrap(start.about, inner)) for start in STARTS)
        columns = [self._box(place, inner, rows) for place in range(len(STARTS))]
        told = f"  enter takes one; times {self.told}" if self.told else "  enter takes one"
        return [
            *(Content(" ").join(parts) for parts in zip(*columns, strict=True)),
            Content.styled(told, "$text-muted"),
        ]

    def _box(self, place: int, inner: int, rows: int) -> list[Content]:
        start = STARTS[place]
        here = self.has_focus and place == self.cursor
        edge = "$primary" if here or start.name == self.chosen else "$border"
        mark = "‹›" if start.name == self.chosen else ""
        title = f" {start.title} {mark} ".replace("  ", " ")
        time = self.times.get(start.name, "")
        note = "recommended" if start.name == RECOMMENDED else ""
        about = textwrap.wrap(start.about, inner)
        about += [""] * (rows - len(about))
        top = Content.assemble(("╭─", edge), (title, self._ink(place)), ("─" * (inner - len(title) + 1) + "╮", edge))
        room = inner - len(note)
        last = Content.assemble(("│ ", edge), (f"{time:<{room}}"[:room], "bold"), (note, "$success"), (" │", edge))
        middle = [Content.assemble(("│ ", edge), f"{line:<{inner}}", (" │", edge)) for line in about]
        lines = [top, *middle, last, Content.styled("╰" + "─" * (inner + 2) + "╯", edge)]
        return [line.stylize(Style.from_meta({"place": place})) for line in lines]

    def _ink(self, place: int) -> str:
        style = "$primary bold" if STARTS[place].name == self.chosen else "$foreground"
        return f"{style} on $primary 20%" if self.has_focus and place == self.cursor else style

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def action_move(self, by: int) -> None:
        self.cursor = (self.cursor + by) % len(STARTS)

    def action_take(self) -> None:
        self.post_message(self.Taken(STARTS[self.cursor].name))

    def on_click(self, event: Click) -> None:
        place = event.style.meta.get("place")
        if place is not None:
            self.cursor = place
            self.action_take()


def _most(width: int) -> int:
    """Lines of the longest description, so that nothing below moves."""
    return min(3, max(len(textwrap.wrap(start.about, max(width, 20))) for start in STARTS))
