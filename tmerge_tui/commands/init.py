"""`tmerge init`: a commented recipe to start from, on stdout or in a file."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tmerge_tui.commands.output import data, say
from tmerge_tui.errors import UsageError
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.recipe import is_text_file, make_recipe
from tmerge_tui.recipe.starts import NAMES
from tmerge_tui.recipe.yamlfile import parse_mapping

WIDTH = 120  # columns
SHOWN = (  # what a first run is most likely to change; the comment of each is the option's own
    "calibration.samples", "calibration.holdout", "calibration.max_length",
    "transport.epsilon", "fusion.alpha", "fusion.k", "fusion.coupling",
)  # fmt: skip


def init(source: str, target: str, text: str, output: str, start: str, file: str | None) -> int:
    """Writes the recipe of a start; its names are not looked up: `tmerge check` does that.

    Raises UsageError, RecipeError.
    """
    recipe = _recipe(source, target, text, output, start)
    make_recipe(parse_mapping(recipe, "the new recipe"))
    if file is None:
        data(recipe.rstrip())
        return 0
    path = Path(file)
    if path.exists():
        raise UsageError(f"{file} exists", "a file that is not there yet", "choose another name, or remove it")
    with storage(path):
        write_atomic(path, recipe.encode())
    say(f"wrote {file}; next: tmerge scout {shlex.quote(file)}, then tmerge --batch {shlex.quote(file)}")
    return 0


def _recipe(source: str, target: str, text: str, output: str, start: str) -> str:
    said = NAMES[start].says
    origin = "calibration.path" if is_text_file(text) else "calibration.repo_id"
    names = list(dict.fromkeys([origin, *SHOWN, *said]))
    lines = [
        *textwrap.wrap(
            f"{NAMES[start].title}: {NAMES[start].about}", WIDTH, initial_indent="# ", subsequent_indent="# "
        ),
        "# tmerge --batch runs this; every other option has its default: tmerge plan shows them all",
        f"source: {_scalar(source)}   # the model knowledge comes from; only read",
        f"target: {_scalar(target)}   # the model that is changed and kept",
        f"output: {_scalar(output)}   # run folder; the merged model is in its model/",
        *_tree(names, {**{name: _default(name) for name in names}, **said, origin: text}),
    ]
    if not any(name.startswith("adaptation.") for name in said):
        lines += ["", "# adaptation: {}   # train the merged model afterwards, its transported part frozen"]
    lines.append(
        "# evaluation: {tasks: [arc_easy, piqa]}   # benchmarks of lm-evaluation-harness; needs the extra eval"
    )
    return "\n".join(lines) + "\n"


def _tree(names: Iterable[str], values: Mapping[str, Any]) -> list[str]:
    """Options as nested YAML, sections in the order in which they are first named, each value with its meaning."""
    nested: dict[str, Any] = {}
    for name in names:
        *path, leaf = name.split(".")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = name
    return list(_lines(nested, values, ""))


def _lines(nested: Mapping[str, Any], values: Mapping[str, Any], indent: str) -> Iterable[str]:
    for key, value in nested.items():
        if isinstance(value, str):
            yield from ([] if indent else [""])
            yield from _commented(f"{indent}{key}: {_scalar(values[value])}", _meaning(value), indent)
        else:
            yield from ([] if indent else [""])
            yield f"{indent}{key}:"
            yield from _lines(value, values, indent + "  ")


def _commented(line: str, meaning: str, indent: str) -> list[str]:
    """The meaning beside the value, or above it where a line has no room for both."""
    if len(line) + len(meaning) + 5 <= WIDTH:
        return [f"{line}   # {meaning}"]
    return [*textwrap.wrap(meaning, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "), line]


def _scalar(value: Any) -> str:
    """On one line, quoted where YAML would read something else."""
    return yaml.safe_dump([value], default_flow_style=True, width=1 << 20, allow_unicode=True).strip()[1:-1]


def _default(name: str) -> Any:
    default = _field(name).default
    return list(default) if isinstance(default, tuple) else default


def _meaning(name: str) -> str:
    return str(_field(name).description)


def _field(name: str) -> Any:
    from tmerge_tui import recipe

    return dict(recipe.options())[name]
