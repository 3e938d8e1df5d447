"""A file picker: a tree from the current folder, an input for a path, and the parent folder one key away."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Button, DirectoryTree, Footer, Input
from textual.widgets.directory_tree import DirEntry
from textual.widgets.tree import TreeNode

from tmerge_tui.run_folder import MARK
from tmerge_tui.tui.catalog import tidy
from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.tui.widgets.toosmall import TooSmall


class _Tree(DirectoryTree):
    """Folders, and files with one of `suffixes`; models and runs say what they are. A letter goes to the next entry
    that begins with it, right opens a folder, left closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "open(True)", "Open", show=False),
        Binding("left", "open(False)", "Close", show=False),
    ]

    def __init__(self, path: Path, suffixes: tuple[str, ...]) -> None:
        super().__init__(path)
        self.suffixes = suffixes

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [p for p in paths if not p.name.startswith(".") and (p.is_dir() or p.suffix.lower() in self.suffixes)]

    def render_label(self, node: TreeNode[DirEntry], base_style: Style, style: Style) -> Text:
        label = super().render_label(node, base_style, style)
        if node.data is not None and node.allow_expand:
            label.append(_kind(node.data.path), "dim")
        return label

    def action_open(self, opened: bool) -> None:
        node = self.cursor_node
        if node is None:
            return
        if opened and node.allow_expand:
            node.expand()
        elif not opened and node.is_expanded and node.allow_expand:
            node.collapse()
        elif not opened and node.parent is not None:
            self.move_cursor(node.parent)

    def on_key(self, event: Key) -> None:
        if not event.is_printable or event.character is None or event.key == "space":
            return
        event.stop()
        event.prevent_default()
        letter, start, lines = event.character.lower(), self.cursor_line + 1, self.last_line + 1
        for node in (self.get_node_at_line(line % lines) for line in range(start, start + lines)):
            if node is not None and str(node.label).lower().startswith(letter):
                self.move_cursor(node)
                return


def _kind(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return "  model"
    return "  run" if (folder / MARK).is_file() else ""


class PickFolder(ModalScreen[Path | None]):
    """Answers a path, or None. With `folders` a folder is picked, otherwise a file with one of `suffixes`; with
    `either` a folder will do as well."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="pick.close"),
        Binding("backspace", "up", "Parent folder", id="pick.up"),
        Binding("ctrl+n", "take", "Choose", id="pick.take"),
    ]

    def __init__(
        self, title: str, start: Path, folders: bool = False, suffixes: tuple[str, ...] = (), either: bool = False
    ) -> None:
        super().__init__()
        self.either = either
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

    def _say(self, path: Path) -> None:
        field = self.query_one(Input)
        field.value = str(path)
        field.cursor_position = len(field.value)

    @on(DirectoryTree.NodeHighlighted)
    def _highlighted(self, event: DirectoryTree.NodeHighlighted) -> None:
        entry = event.node.data
        if entry is not None:
            self._say(entry.path)

    @on(DirectoryTree.FileSelected)
    def _file(self, event: DirectoryTree.FileSelected) -> None:
        if self.either or not self.folders:
            self.dismiss(event.path)

    @on(Input.Submitted)
    @on(Button.Pressed, "#take")
    def action_take(self) -> None:
        path = Path(tidy(self.query_one(Input).value)).expanduser()
        if path.exists() and (self.either or self.folders == path.is_dir()):
            self.dismiss(path)
        else:
            self.notify(f"{path} is no {'folder' if self.folders else 'file'}", severity="warning")

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self.dismiss(None)

    def action_up(self) -> None:
        """The parent of the tree's folder; the path that would be taken goes with it."""
        tree = self.query_one(_Tree)
        tree.path = Path(tree.path).absolute().parent
        self._say(Path(tree.path))
