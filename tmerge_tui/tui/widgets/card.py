"""One model of the pair: an input that searches while one types, and the card of facts of what was chosen."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import ContentSwitcher, Input

from tmerge_tui.errors import TmergeError
from tmerge_tui.quantities import NONE, magnitude, size
from tmerge_tui.recipe import is_folder, is_gguf
from tmerge_tui.tui import catalog
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.widgets.finder import LISTED, MODELS, Finder, type_into
from tmerge_tui.tui.widgets.static import Static

TITLES = {"source": "Source", "target": "Target"}
ROLES = {"source": "is only read", "target": "is changed and kept"}


class ModelCard(VerticalScroll, can_focus=False):
    """Chooses one model; posts Chosen when its facts are known or have failed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close_list", "Back", id="card.close"),
        Binding("down", "into_list", "Into the list", id="card.down", show=False),
    ]

    @dataclass
    class Named(Message):
        """The person has chosen a name; "" takes the choice back."""

        role: str
        name: str

    @dataclass
    class Typed(Message):
        """Not chosen yet, but not to be lost either."""

        role: str
        text: str

    @dataclass
    class Chosen(Message):
        role: str
        found: catalog.Found | None
        facts: dict[str, Any] | None

    def __init__(self, role: str, probe: Probe) -> None:
        super().__init__(id=role, classes="card")
        self.role, self.probe = role, probe
        self.border_title, self.border_subtitle = TITLES[role], ROLES[role]
        self.chosen = ""

    def compose(self) -> ComposeResult:
        yield Input(placeholder="search the Hub, an id, or a folder", compact=True, classes="model-name")
        with ContentSwitcher(initial=f"{self.role}-facts"):
            yield Static("", id=f"{self.role}-facts", classes="facts")
            yield Finder(MODELS, id=f"{self.role}-list")

    @property
    def input(self) -> Input:
        return self.query_one(Input)

    @property
    def finder(self) -> Finder:
        return self.query_one(Finder)

    @property
    def listing(self) -> bool:
        return self.query_one(ContentSwitcher).current == f"{self.role}-list"

    def _switch(self, to: str) -> None:
        self.query_one(ContentSwitcher).current = f"{self.role}-{to}"

    # choosing

    def choose(self, name: str) -> None:
        """Takes `name` as the choice and looks up its facts."""
        name = catalog.tidy(name)
        self.chosen = name
        title = f"{TITLES[self.role]} · {last_part(name)}" if name else TITLES[self.role]
        self.border_title = Content(title)  # a string would be markup
        with self.prevent(Input.Changed):
            self.input.value = name
        self.input.cursor_position = len(name)
        self._switch("facts" if name else "list")
        self.finder.stop()
        self.workers.cancel_group(self, "folders")
        self.post_message(self.Named(self.role, name))
        if name:
            self._say(Content.styled("reading …", "$text-muted"))
            self._look_up(name)
        else:
            self.finder.search("")  # what is on this machine
            self.post_message(self.Chosen(self.role, None, None))

    @work(exclusive=True, group="facts", exit_on_error=False)
    async def _look_up(self, name: str) -> None:
        found, facts = None, None
        try:
            found = await asyncio.to_thread(catalog.resolve, name)
            self._say(Content.assemble(hub_card(found), ("\n\nreading the configuration …", "$text-muted")))
            facts = await self.probe.ask("facts", **catalog.model_args(found))
            self._say(facts_card(facts, found))
        except TmergeError as error:
            known = found is not None and found.folder is None  # what the Hub says stays below what is wrong
            self._say(Content("\n\n").join([problem(error), hub_card(found)]) if known and found else problem(error))
            found = None
        self.post_message(self.Chosen(self.role, found, facts))

    def _say(self, content: Content) -> None:
        self.query_one(f"#{self.role}-facts", Static).update(content)

    # searching

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Typed(self.role, catalog.tidy(event.value)))
        self._search(event.value)

    def _search(self, query: str) -> None:
        query = catalog.tidy(query)
        self._switch("list")
        if is_folder(query) or query.startswith(("/", "~", ".")):
            self.finder.stop()
            self._list_folders(query)
        else:
            self.workers.cancel_group(self, "folders")
            self.finder.search(query)

    @work(exclusive=True, group="folders", exit_on_error=False)
    async def _list_folders(self, query: str) -> None:
        found = await asyncio.to_thread(_folders, query)
        self.finder.fill(found, "folders" if found else f"no folder begins with {query}")

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.choose(event.value.strip())

    @on(Finder.Taken)
    def _picked(self, event: Finder.Taken) -> None:
        event.stop()
        self.input.focus()
        self.choose(event.name)

    @on(Finder.Typed)
    def _typed_in_the_list(self, event: Finder.Typed) -> None:
        event.stop()
        type_into(self.input, event.character)

    @on(Input.Blurred)
    @on(Finder.Left)
    def _left(self, event: Input.Blurred | Finder.Left) -> None:
        """What stands in the input when one goes on is the choice, unless one goes on into the list."""
        event.stop()
        if self.screen.focused in (self.input, self.finder):
            return
        if catalog.tidy(self.input.value) != self.chosen:
            self.choose(self.input.value)
        elif self.chosen:
            self._switch("facts")

    def on_resize(self) -> None:
        """The end of a long name is its telling part."""
        self.call_after_refresh(show_end, self.input)

    def action_into_list(self) -> None:
        if self.listing:
            self.finder.go_in()
        elif self.input.has_focus and not self.listing:
            self._search(self.input.value.strip())

    def action_close_list(self) -> None:
        """Escape closes the list first and leaves the screen only then."""
        if not self.listing or not (self.chosen or self.input.value):
            raise SkipAction()
        self._switch("facts" if self.chosen else "list")
        self.finder.stop()
        if not self.chosen:
            self.finder.search("")
        with self.prevent(Input.Changed):
            self.input.value = self.chosen
        self.post_message(self.Typed(self.role, self.chosen))
        self.input.focus()


def last_part(name: str) -> str:
    """What tells one model from another: `source-llama` of a path, `Llama-3.1-8B` of an id."""
    return name.rstrip("/").rpartition("/")[2] or name


def show_end(field: Input) -> None:
    """The cursor, and with it the view, at the end; not while someone types."""
    if not field.has_focus:
        field.cursor_position = 0
        field.cursor_position = len(field.value)


def facts_card(facts: dict[str, Any], found: catalog.Found) -> Content:
    """Two aligned columns of what the configuration and the headers say."""
    heads = f"{facts['heads']}" + (f", kv {facts['kv_heads']}" if facts["kv_heads"] != facts["heads"] else "")
    rows = [
        ("family", f"{facts['model_type']}  {facts['architecture']}"),
        ("parameters", magnitude(facts["parameters"])),
        ("layers", str(facts["layers"])),
        ("hidden", f"{facts['hidden']:,}"),
        ("heads", f"{heads}, {facts['head_dim']} wide"),
        ("vocabulary", f"{facts['vocab']:,}"),
        ("dtype", f"{facts['dtype']}, {size(facts['bytes_on_disk'])}"),
        ("template", "chat template" if facts["chat_template"] else "none: plain text"),
        ("licence", facts["licence"] or found.licence or "not stated"),
        ("gated", "yes, and you have been let in" if found.gated else "no"),
        ("from", _origin(facts, found)),
    ]
    if found.origin != "hub":
        rows = [row for row in rows if row[0] != "gated"]
    if not facts["note"]:
        return _rows(rows)
    return Content.assemble(_rows(rows), ("\n! ", "$warning bold"), facts["note"])


def _origin(facts: dict[str, Any], found: catalog.Found) -> str:
    if facts["download"]:
        return f"the Hub: {size(facts['download'])} to download"
    return {"folder": "a folder", "cache": "the local cache", "hub": "the Hub, and already here"}[found.origin]


def hub_card(found: catalog.Found) -> Content:
    """What the Hub says about a model whose weights are not here."""
    rows = [
        ("family", found.family or NONE),
        ("parameters", magnitude(found.parameters)),
        ("size", size(found.bytes)),
        ("downloads", magnitude(found.downloads)),
        ("licence", found.licence or "not stated"),
        ("gated", "yes" if found.gated else "no"),
    ]
    if found.origin == "folder":
        rows = [("family", found.family or NONE), ("size", size(found.bytes)), ("from", "a folder")]
    return _rows(rows)


def problem(error: TmergeError) -> Content:
    parts: list[Any] = [("✗ ", "$error bold"), (error.found, "$error")]
    if error.expected:
        parts.append(f"\n\nneeded: {error.expected}")
    if error.hint:
        parts.append(("\n\n→ " + error.hint, "$accent"))
    return Content.assemble(*parts)


def _rows(rows: list[tuple[str, str]]) -> Content:
    return Content("\n").join([Content.assemble((f"{name:<11}", "$text-muted"), value) for name, value in rows])


def _folders(query: str) -> list[catalog.Found]:
    """Folders and GGUF files that begin like `query`; those that are models say so."""
    typed = Path(query or ".").expanduser()
    whole = query.endswith(("/", os.sep)) or typed.name in ("", ".", "..")
    parent, start = (typed, "") if whole else (typed.parent, typed.name)
    try:
        inside = sorted(p for p in parent.iterdir() if (p.is_dir() or _packed(p)) and p.name.startswith(start))
    except OSError:
        return []
    shown = [p for p in inside if start.startswith(".") or not p.name.startswith(".")]
    models = [p for p in (typed, *shown) if _packed(p) or (p / "config.json").is_file()]
    others = [p for p in shown if p not in models]
    found = [catalog.Found(str(p), "folder", p, 1) for p in dict.fromkeys(models)]
    return found + [catalog.Found(f"{p}/", "folder", p) for p in others[:LISTED]]


def _packed(path: Path) -> bool:
    return is_gguf(path) and path.is_file()
