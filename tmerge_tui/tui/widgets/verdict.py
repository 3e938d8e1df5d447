"""Between the two models: can they be merged, what is fused, what is skipped and why."""

from __future__ import annotations

from typing import Any

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from tmerge_tui.recipe import PROJECTIONS

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

    def _update(self, content: Content) -> None:
        self.query_one(Static).update(content)
        self.scroll_home(animate=False)
        self.call_after_refresh(self._reach)

    def _reach(self) -> None:
        self.can_focus = self.max_scroll_y > 0

    def wait(self, text: str) -> None:
        self.said = None
        self._update(Content.styled(text, "$foreground 60%"))

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
        depth = Content.assemble(("depth ", "$foreground 60%"), f"{source_layers} → {target_layers} layers")
        width = Content.assemble(("width ", "$foreground 60%"), f"{source_width:,} → {target_width:,} channels")
        tall = self.size.height >= TALL
        if self.size.width < WIDE:
            return [yes, *([] if tall else [_names(said)]), depth, width, *(_table(said) if tall else [])]
        gap = Content("   ")
        if tall:
            return [gap.join([yes, depth, width]), *_table(said)]
        return [gap.join([yes, _names(said)]), gap.join([depth, width])]


def _names(said: dict[str, Any]) -> Content:
    styles = {True: "$success bold", False: "$foreground 35% strike"}
    return Content(" ").join([Content.styled(kind, styles[kind in said["kinds"]]) for kind in PROJECTIONS])


def _table(said: dict[str, Any]) -> list[Content]:
    """A line for every kind: its outputs x inputs in the source and in the target."""
    sides = {kind: [_shape(shapes) for shapes in pair] for kind, pair in said["shapes"].items()}
    left, right = (max(len(pair[side]) for pair in sides.values()) for side in (0, 1))
    left, right = max(left, 6), max(right, 6)
    lines = [Content.styled(f"{'':5} {'source':>{left}}   {'target':>{right}}   out x in", "$foreground 60%")]
    for kind in PROJECTIONS:
        if kind in sides:
            source, target = sides[kind]
            text = f" {source:>{left}} → {target:>{right}}"
            lines.append(Content.assemble((f"{kind:<5}", "$success bold"), text))
        else:
            lines.append(Content.assemble((f"{kind:<5}", "$foreground 35%"), (" left as it is", "$foreground 60%")))
    return lines


def _shape(shapes: list[list[int]]) -> str:
    """`96 x 192`; with a sign that other layers have others."""
    return f"{shapes[0][0]:,} x {shapes[0][1]:,}" + (" …" if len(shapes) > 1 else "")


def _remarks(said: dict[str, Any]) -> list[Content]:
    skipped = [Content.assemble(("skipped ", "$foreground 60%"), note) for note in said["notes"]]
    return [Content.assemble(("! ", "$warning bold"), warning) for warning in said["warnings"]] + skipped
