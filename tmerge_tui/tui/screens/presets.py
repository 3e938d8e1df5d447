"""The paper's tasks to start from: the pair, the text, and what each of them does."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, OptionList
from textual.widgets.option_list import Option

from tmerge_tui.recipe.presets import Card, preset_cards
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toosmall import TooSmall


class PresetsScreen(ModalScreen[str | None]):
    """Answers the name of a preset, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="presets.close"),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
    ]

    def __init__(self, start: str = "") -> None:
        super().__init__()
        self.cards = preset_cards()
        self.start = start

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -presets"):
            yield Static("Start from a preset", classes="dialog-title")
            yield OptionList(*(Option(_entry(card), id=card.name) for card in self.cards), compact=True)
            yield Static("", id="preset-about", markup=False)
        yield Footer()
        yield TooSmall()

    def on_mount(self) -> None:
        names = [card.name for card in self.cards]
        listed = self.query_one(OptionList)
        listed.highlighted = names.index(self.start) if self.start in names else 0
        listed.focus()

    @on(OptionList.OptionHighlighted)
    def _about(self, event: OptionList.OptionHighlighted) -> None:
        card = self.cards[event.option_index]
        self.query_one("#preset-about", Static).update(
            f"{card.source} into {card.target}\ntext: {card.data}\nsets: {card.sets}"
        )

    @on(OptionList.OptionSelected)
    def _taken(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(str(event.option.id))

    def action_close(self) -> None:
        self.dismiss(None)

    def action_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()


def _entry(card: Card) -> Content:
    return Content.assemble((f"{card.name:<12}", "bold"), (card.title, "$text-muted"))
