"""Between the two models: can they be merged, what is fused, what is skipped and why."""

from __future__ import annotations

from typing import Any

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from tmerge_tui.recipe import PROJECTIONS
from tmerge_tui.tui.widgets.static import Static

FAINT = "$text-muted"
WIDE = 60  # columns from which on it is a strip below the models, not a column between them
TALL = 12  # lines from which on every kind of projection has one


class Verdict(VerticalScroll, can_focus=False):
    """Says "choose two models" until it is told more. A stop for the tab key only while it has more than it shows."""

    def __init__(self) -> None:
        super().__init__(id="verdict", classes="card")
        self.border_title = "Verdict"
        self.said: dict[str, Any] | None = None  # what is shown, when it is an answer

    def compose(self) -> ComposeResult:
        yield Static("", id="verdict-text")

    def on_resize(self) -> None:
        if self.said is not None:
            self.show(self.said)

    def on_mount(self) -> None:
        self.watch(self, "show_vertical_scrollbar", self._reach)

    def _reach(self, more: bool) -> None:
        self.can_focus = more

    def _update(self, content: Content) -> None:
        self.query_one(Static).update(content)
        self.scroll_home(animate=False)

    def wait(self, text: str) -> None:
        self.said = None
        self._update(Content.styled(text, FAINT))

    def refuse(self, text: str, hint: str = "") -> None:
        self.said = None
        self._update(
            Content.assemble(("✗ cannot be merged\n", "$error bold"), text, (f"\n→ {hint}" if hint else "", "$accent"))
        )

    def show(self, said: dict[str, Any]) -> None:
        """What the helper process found."""
        if not said["kinds"]:
            self.refuse("they have no projection in common: " + "; ".join(said["notes"]))
            return
        self.said = said
        self._update(Content("\n").join([*self._pair(said), *_remarks(said)]))

    def _pair(self, said: dict[str, Any]) -> list[Content]:
        """Depth, width and what is fused: every kind with its shapes where there is room, else their names."""
        (source_layers, target_layers), (source_width, target_width) = said["layers"], said["hidden"]
        yes = Content.styled("✓ can be merged", "$success bold")
        depth = Content.assemble(("depth ", FAINT), f"{source_layers} → {target_layers} layers")
        width = Content.assemble(("width ", FAINT), f"{source_width:,} → {target_width:,} channels")
        tall = self.size.height >= TALL
        if self.size.width < WIDE:
            return [yes, *([] if tall else [_names(said)]), depth, width, *(_table(said, False) if tall else [])]
        gap = Content("   ")
        if tall:
            return [gap.join([yes, depth, width]), *_table(said, True)]
        return [gap.join([yes, _names(said)]), gap.join([depth, width])]


def _names(said: dict[str, Any]) -> Content:
    styles = {True: "$success bold", False: "$text-muted strike"}
    return Content(" ").join([Content.styled(kind, styles[kind in said["kinds"]]) for kind in PROJECTIONS])


def _table(said: dict[str, Any], wide: bool) -> list[Content]:
    """A line for every kind: its outputs x inputs in the source and in the target."""
    sides = [_column([pair[side] for pair in said["shapes"].values()]) for side in (0, 1)]
    shown = dict(zip(said["shapes"], zip(*sides, strict=True), strict=True))
    left, right = (max(len("source"), *map(len, column)) for column in sides)
    lines = [Content.styled(f"{'':5} {'source':>{left}}   {'target':>{right}}{'   out x in' if wide else ''}", FAINT)]
    for kind in PROJECTIONS:
        if kind in shown:
            source, target = shown[kind]
            lines.append(
                Content.assemble((f"{kind:<5}", "$success bold"), f" {source:>{left}} → {target:>{right}}".rstrip())
            )
        else:
            lines.append(Content.assemble((f"{kind:<5}", "$text-muted"), (" left as it is", FAINT)))
    return lines


def _column(kinds: list[list[list[int]]]) -> list[str]:
    """`192 x  96`, one under the other; with a sign where other layers have other shapes."""
    first = [shapes[0] for shapes in kinds]
    rows, columns = (max(len(str(shape[axis])) for shape in first) for axis in (0, 1))
    various = any(len(shapes) > 1 for shapes in kinds)
    more = {True: " …", False: "  "} if various else {False: ""}
    return [f"{s[0][0]:>{rows}} x {s[0][1]:>{columns}}{more[len(s) > 1]}" for s in kinds]


def _remarks(said: dict[str, Any]) -> list[Content]:
    skipped = [Content.assemble(("skipped ", FAINT), note) for note in said["notes"]]
    return [Content.assemble(("! ", "$warning bold"), warning) for warning in said["warnings"]] + skipped
