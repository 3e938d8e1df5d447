"""Choices in a row that wraps: arrows move, space or enter takes. `OneOf` holds one value, `AnyOf` a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.style import Style
from textual.widget import Widget


class _Row(Widget, can_focus=True):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Previous", show=False),
        Binding("right", "move(1)", "Next", show=False),
        Binding("space,enter", "take", "Choose", show=False),
    ]
    cursor: reactive[int] = reactive(0)

    class Changed(Message):
        """`value` is a text for OneOf, a list of texts for AnyOf."""

        def __init__(self, row: _Row, value: Any) -> None:
            super().__init__()
            self.row, self.value = row, value

        @property
        def control(self) -> _Row:
            return self.row

    def __init__(self, options: Sequence[str], id: str | None = None) -> None:
        super().__init__(id=id)
        self.options = tuple(options)

    def _is_on(self, position: int) -> bool:
        raise NotImplementedError

    def _pair(self, position: int) -> tuple[str, str]:
        raise NotImplementedError

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def render(self) -> Content:
        lines = self._lines(self.content_size.width)
        return Content("\n").join(Content(" ").join(map(self._drawn, line)) for line in lines)

    def _lines(self, width: int) -> list[list[int]]:
        """Options broken into lines of `width` columns, every line beginning alike: places, not spaces, are cut."""
        lines: list[list[int]] = [[]]
        used = 0
        for position, option in enumerate(self.options):
            wide = len(option) + 2
            if lines[-1] and used + 1 + wide > width:
                lines.append([])
            used = wide if not lines[-1] else used + 1 + wide
            lines[-1].append(position)
        return lines

    def _drawn(self, position: int) -> Content:
        left, right = self._pair(position)
        style = "$primary bold" if self._is_on(position) else "$text-muted"
        if self.has_focus and position == self.cursor:
            style += " on $primary 20%"
        part = Content.styled(f"{left}{self.options[position]}{right}", style)
        return part.stylize(Style.from_meta({"position": position}))

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def action_move(self, by: int) -> None:
        self.cursor = (self.cursor + by) % len(self.options)

    def action_take(self) -> None:
        raise NotImplementedError

    def on_click(self, event: Click) -> None:
        position = event.style.meta.get("position")
        if position is not None:
            self.cursor = position
            self.action_take()


class OneOf(_Row):
    """Moving is choosing, as with radio buttons."""

    def __init__(self, options: Sequence[str], value: str, id: str | None = None) -> None:
        super().__init__(options, id)
        self.value = value
        self.set_reactive(_Row.cursor, self.options.index(value) if value in self.options else 0)

    def _is_on(self, position: int) -> bool:
        return self.options[position] == self.value

    def _pair(self, position: int) -> tuple[str, str]:
        return ("‹", "›") if self._is_on(position) else (" ", " ")

    def action_move(self, by: int) -> None:
        super().action_move(by)
        self.action_take()

    def action_take(self) -> None:
        if self.value != self.options[self.cursor]:
            self.value = self.options[self.cursor]
            self.refresh()
            self.post_message(self.Changed(self, self.value))

    def put(self, value: str) -> None:
        """A value that was not taken here: nothing is posted."""
        self.value = value
        self.set_reactive(_Row.cursor, self.options.index(value))
        self.refresh()


class AnyOf(_Row):
    def __init__(self, options: Sequence[str], values: Sequence[str], id: str | None = None) -> None:
        super().__init__(options, id)
        self.values = [option for option in options if option in values]

    def _is_on(self, position: int) -> bool:
        return self.options[position] in self.values

    def _pair(self, position: int) -> tuple[str, str]:
        return ("[", "]") if self._is_on(position) else (" ", " ")

    def action_take(self) -> None:
        chosen = self.options[self.cursor]
        kept = set(self.values) ^ {chosen}
        self.values = [option for option in self.options if option in kept]
        self.refresh()
        self.post_message(self.Changed(self, list(self.values)))
