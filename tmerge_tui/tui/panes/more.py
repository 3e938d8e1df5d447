"""What else a merge has changed: general text, what is declined, where a gain comes from, texts that changed most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content

from tmerge_tui.engine.report import besides_views, safety_view
from tmerge_tui.tui.panes.report import Report
from tmerge_tui.tui.widgets.scores import FAINT
from tmerge_tui.tui.widgets.static import Static

Shown = Mapping[str, Any]


class MorePane(VerticalScroll, can_focus=True):
    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def compose(self) -> ComposeResult:
        if general := self.report.part("general"):
            yield Static(_general(besides_views.general(general)), classes="block")
        if safety := self.report.part("safety"):
            said = [*safety_view.sentences(safety), safety_view.CAVEAT]
            yield Static(
                Content("\n").join([Content.styled("Safety screen", "bold"), *map(Content, said)]), classes="block"
            )
        if attribution := self.report.part("attribution"):
            shown = besides_views.attribution(attribution)
            yield Static(_attribution(shown), classes="block")
            for one in shown["texts"]:
                yield Static(Content.styled(f"Texts that changed most: {one['title']}", "bold"), classes="block")
                with Horizontal(classes="excerpts"):
                    for word, texts in one["columns"]:
                        with Vertical(classes="card") as card:
                            card.border_title = f"{word} most"
                            yield from map(_excerpt, texts)


def _general(shown: Shown) -> Content:
    head = f"{'on general text':<24}{'alpha':>6}{'bits/byte':>11}{'to target':>10}  95 % interval"
    lines = [Content.styled(head, FAINT)]
    for name, alpha, value, difference, ends, word in shown["rows"]:
        line = f"{name[:24]:<24}{alpha:>6}{value:>11}"
        change = "" if word == "baseline" else f"{difference:>10}  {ends} {word}"
        lines.append(Content.assemble(line, (change, {"worse": "$error", "better": ""}.get(word, FAINT))))
    return Content("\n").join([*lines, *_told(shown)])


def _attribution(shown: Shown) -> Content:
    head = f"{'share of the gap closed':<24}{'alpha':>6}  {'there':<25}bits/byte elsewhere"
    lines = [Content.styled(head, FAINT)]
    for name, alpha, there, _, _, elsewhere, _ in shown["rows"]:
        lines.append(Content(f"{name[:24]:<24}{alpha:>6}  {there:<25}{elsewhere}"))
    return Content("\n").join([*lines, *_told(shown)])


def _told(shown: Shown) -> Iterator[Content]:
    yield Content.styled(shown["told"], FAINT)


def _excerpt(text: tuple[str, str]) -> Static:
    """A text as it is: no markup."""
    change, words = text
    return Static(Content.assemble((change, FAINT), f"\n{words}\n"), classes="excerpt")
