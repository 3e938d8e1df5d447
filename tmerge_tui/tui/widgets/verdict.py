"""Between the two models: can they be merged, what is fused, what is skipped and why."""

from __future__ import annotations

from typing import Any

from textual.content import Content
from textual.widgets import Static

from tmerge_tui.recipe import PROJECTIONS


class Verdict(Static):
    """Says "choose two models" until it is told more."""

    def __init__(self) -> None:
        super().__init__(id="verdict", classes="card")
        self.border_title = "Verdict"
        self.said: dict[str, Any] | None = None  # what is shown, when it is an answer

    def on_resize(self) -> None:
        if self.said is not None:
            self.show(self.said)

    def wait(self, text: str) -> None:
        self.said = None
        self.update(Content.styled(text, "$foreground 60%"))

    def refuse(self, text: str, hint: str = "") -> None:
        self.said = None
        self.update(
            Content.assemble(("✗ cannot be merged\n", "$error bold"), text, (f"\n→ {hint}" if hint else "", "$accent"))
        )

    def show(self, said: dict[str, Any]) -> None:
        """What the helper process found."""
        if not said["kinds"]:
            self.refuse("they have no projection in common: " + "; ".join(said["notes"]))
            return
        self.said = said
        (source_layers, target_layers), (source_width, target_width) = said["layers"], said["hidden"]
        kinds = Content(" ").join(
            [
                Content.styled(kind, "$success bold" if kind in said["kinds"] else "$foreground 35% strike")
                for kind in PROJECTIONS
            ]
        )
        gap = "   " if self.size.width > 60 else "\n"  # a column on a wide screen, a strip on a narrow one
        lines = [
            Content.assemble(("✓ can be merged", "$success bold"), gap, kinds),
            Content.assemble(
                ("depth ", "$foreground 60%"),
                f"{source_layers} → {target_layers} layers",
                gap,
                ("width ", "$foreground 60%"),
                f"{source_width:,} → {target_width:,} channels",
            ),
        ]
        lines += [Content.assemble(("skipped ", "$foreground 60%"), note) for note in said["notes"]]
        lines += [Content.assemble(("! ", "$warning bold"), warning) for warning in said["warnings"]]
        self.update(Content("\n").join(lines))
