"""What a search has found while one types: models or data sets, taken with the arrow keys or the mouse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual import on, work
from textual.content import Content
from textual.events import Key
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from tmerge_tui.errors import TmergeError
from tmerge_tui.quantities import magnitude, size
from tmerge_tui.tui import catalog, human

DEBOUNCE = 0.25  # seconds of silence before the Hub is asked
LISTED = 24  # of a search
COLUMNS = 70  # from which on a line holds a name and everything about it


@dataclass(frozen=True)
class Shelf:
    """Where names of one kind are found; both calls block."""

    kind: str
    here: Callable[[str], list[catalog.Found]]  # on this machine, whose name holds a text
    hub: Callable[[str, int], list[catalog.Found]]  # on the Hub, at most so many; raises TmergeError
    empty: str  # what is said when nothing is typed and nothing is here
    offline: str  # what can be done without the Hub


MODELS = Shelf(
    "model",
    lambda query: catalog.here(query),
    lambda query, limit: catalog.search(query, limit),
    "Type a few letters to search the Hub, or the path of a folder. Nothing is cached on this machine.",
    "choose a cached model or a folder",
)
DATA_SETS = Shelf(
    "data set",
    lambda query: [],
    lambda query, limit: catalog.search_datasets(query, limit),
    "type a few letters to search the Hub, or an id such as org/name",
    "an id can be typed all the same; a file needs no Hub",
)


class Finder(OptionList):
    """Posts Taken with a name. Takes no focus while it has no entries, and hands on what is typed.

    Whoever has the input says what is searched for, and shows or hides the list.
    """

    @dataclass
    class Taken(Message):
        finder: Finder
        name: str

        @property
        def control(self) -> Finder:
            return self.finder

    class Left(Message):
        """The focus has gone elsewhere."""

    @dataclass
    class Typed(Message):
        """A letter, or None for a step back: it is meant for the input."""

        character: str | None

    def __init__(self, shelf: Shelf, id: str | None = None) -> None:
        super().__init__(id=id, compact=True)
        self.shelf = shelf
        self.found: tuple[catalog.Found, ...] = ()
        self.note = ""
        self.can_focus = False  # until there is something to take

    @work(exclusive=True, group="search", exit_on_error=False)
    async def search(self, query: str) -> None:
        """First what is here, then, once typing pauses, what the Hub has."""
        local = await asyncio.to_thread(self.shelf.here, query)
        if not query:
            self.fill(local, "on this machine" if local else self.shelf.empty)
            return
        self.fill(local, "searching the Hub …")
        await asyncio.sleep(DEBOUNCE)
        try:
            hub = await asyncio.to_thread(self.shelf.hub, query, LISTED)
        except TmergeError as error:
            offline = isinstance(error, catalog.OfflineError)
            self.fill(local, f"offline: {error.found}; {self.shelf.offline}" if offline else error.found)
            return
        here = {found.name for found in local}
        every = [*local, *(found for found in hub if found.name not in here)]
        self.fill(every, "" if every else f"no {self.shelf.kind} on the Hub has {query!r} in its name")

    def stop(self) -> None:
        self.workers.cancel_group(self, "search")

    def fill(self, found: Sequence[catalog.Found], note: str) -> None:
        """Lists what was found, and below it a remark that cannot be taken."""
        self.found, self.note = tuple(found), note
        self._draw()
        if not self.found and self.has_focus:
            self.post_message(self.Typed(""))
        self.can_focus = bool(self.found)

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        chosen = self.highlighted
        width = max(self.scrollable_content_region.width - 1, 20)
        self.clear_options()
        self.add_options(Option(_entry(one, width), id=str(number)) for number, one in enumerate(self.found))
        if self.note:
            self.add_option(Option(Content.styled(self.note, "$text-muted"), disabled=True))
        self.highlighted = chosen if chosen is not None and chosen < len(self.found) else None

    def on_blur(self) -> None:
        self.post_message(self.Left())

    def go_in(self) -> None:
        """The focus, at once: enter may follow in the same breath."""
        if self.found:
            self.screen.set_focus(self)
            self.action_first()

    def action_cursor_up(self) -> None:
        """From the first entry back into the input."""
        if not self.highlighted:
            self.post_message(self.Typed(""))
        else:
            super().action_cursor_up()

    def on_key(self, event: Key) -> None:
        """What is typed here is meant for the input."""
        if event.is_printable or event.key == "backspace":
            event.stop()
            event.prevent_default()
            self.post_message(self.Typed(event.character if event.is_printable else None))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Taken(self, self.found[int(str(event.option.id))].name))


def type_into(field: Input, character: str | None) -> None:
    """The focus for the input, and a letter at its end; None takes the last one away, "" does neither."""
    field.select_on_focus = False  # the next letter is not to replace this one
    field.focus()
    if character is None:
        field.value = field.value[:-1]
    elif character:
        field.value += character
    field.cursor_position = len(field.value)


def _entry(found: catalog.Found, width: int) -> Content:
    """One line; of the Hub two where a name and all about it have no room side by side."""
    if found.origin != "hub":
        right = f"cached {size(found.bytes)}" if found.origin == "cache" else "model" if found.bytes else "folder"
        name = human.tail(found.name, max(width - len(right) - 2, 8))
        return Content.assemble(name, " " * max(width - len(name) - len(right), 1), (right, "$text-muted"))
    downloads = f"↓{magnitude(found.downloads)}"
    counted = "" if found.parameters is None else magnitude(found.parameters)
    gated, licence, updated = "gated" if found.gated else "", found.licence or "", (found.modified or "")[:7]
    if width >= COLUMNS:
        facts = f"{counted:>7}  " if counted else ""
        facts += f"{downloads:>7}  {gated:5}  {human.shorten(licence, 14):14}  {updated:7}"
        name = human.tail(found.name, width - len(facts) - 2)
        return Content.assemble(f"{name:<{width - len(facts)}}", (facts, "$text-muted"))
    facts = "  ".join(part for part in (counted, downloads, gated, human.shorten(licence, 14), updated) if part)
    return Content.assemble(human.tail(found.name, width), ("\n  " + facts[: width - 2], "$text-muted"))
