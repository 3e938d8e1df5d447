"""A file picker: a tree from the current folder, an input for a path, and the home and parent folders one key away."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, DirectoryTree, Footer, Input, Static

from tmerge_tui.tui.widgets.toosmall import TooSmall


class _Tree(DirectoryTree):
    """Folders, and files with one of `suffixes`."""

    def __init__(self, path: Path, suffixes: tuple[str, ...]) -> None:
        super().__init__(path)
        self.suffixes = suffixes

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [p for p in paths if not p.name.startswith(".") and (p.is_dir() or p.suffix.lower() in self.suffixes)]


class PickFolder(ModalScreen[Path | None]):
    """Answers a path, or None. With `folders` a folder is picked, otherwise a file with one of `suffixes`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="pick.close"),
        Binding("backspace", "up", "Parent folder", id="pick.up"),
        Binding("ctrl+n", "take", "Choose", id="pick.take"),
    ]

    def __init__(self, title: str, start: Path, folders: bool = False, suffixes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.heading, self.folders, self.suffixes = title, folders, suffixes
        self.start = start if start.is_dir() else Path.cwd()

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -pick"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            yield Input(str(self.start), compact=True)
            yield _Tree(self.start, self.suffixes)
            with Horizontal(classes="dialog-buttons"):
                yield Button("Choose", id="take", variant="primary", compact=True)
                yield Button("Close", id="close", compact=True)
        yield Footer()
        yield TooSmall()

    def on_mount(self) -> None:
        self.query_one(_Tree).focus()

    @on(DirectoryTree.NodeHighlighted)
    def _highlighted(self, event: DirectoryTree.NodeHighlighted) -> None:
        entry = event.node.data
        if entry is not None:
            self.query_one(Input).value = str(entry.path)

    @on(DirectoryTree.FileSelected)
    def _file(self, event: DirectoryTree.FileSelected) -> None:
        if not self.folders:
            self.dismiss(event.path)

    @on(Input.Submitted)
    @on(Button.Pressed, "#take")
    def action_take(self) -> None:
        path = Path(self.query_one(Input).value).expanduser()
        if self.folders == path.is_dir() and path.exists():
            self.dismiss(path)
        else:
            self.notify(f"{path} is no {'folder' if self.folders else 'file'}", severity="warning")

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self.dismiss(None)

    def action_up(self) -> None:
        tree = self.query_one(_Tree)
        tree.path = Path(tree.path).parent
