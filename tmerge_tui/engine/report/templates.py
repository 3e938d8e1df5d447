"""The texts and templates of assets/templates, and the one Jinja environment that fills them."""

from __future__ import annotations

import functools
import re

import jinja2

from tmerge_tui import quantities, shipped


def asset(name: str) -> str:
    """A text file of assets/templates."""
    return (shipped.folder() / "templates" / name).read_text(encoding="utf-8")


def cell(value: object) -> str:
    """Text for one cell of a Markdown table: one line, no markup of its own."""
    words = " ".join(str(value).split())
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fence(value: object, language: str = "") -> str:
    """A Markdown code block; its fence is longer than any run of backticks inside."""
    words = str(value).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{words}\n{ticks}"


@functools.cache
def environment() -> jinja2.Environment:
    """Escapes everything in .html templates; .md templates escape with the filters `cell` and `fence`."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = ("bits", "signed", "interval", "number", "count", "size", "duration")
    words = [getattr(quantities, name) for name in names]
    made.filters.update({word.__name__: word for word in words}, cell=cell, fence=fence)
    return made
