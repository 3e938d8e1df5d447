"""`tmerge init`: a commented recipe to start from, on stdout or in a file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from tmerge_tui.commands.output import data, say
from tmerge_tui.errors import UsageError
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.recipe import is_text_file, make_recipe
from tmerge_tui.recipe.yamlfile import parse_mapping

SHOWN = (  # what a first run is most likely to change; the comment of each is the option's own
    "calibration.samples", "calibration.holdout", "calibration.max_length",
    "transport.epsilon", "fusion.alpha", "fusion.k", "fusion.coupling",
)  # fmt: skip


def init(source: str, target: str, text: str, output: str, file: str | None) -> int:
    """Writes the recipe; its names are not looked up: `tmerge check` does that. Raises UsageError, RecipeError."""
    recipe = _recipe(source, target, text, output)
    make_recipe(parse_mapping(recipe, "the new recipe"))
    if file is None:
        data(recipe.rstrip())
        return 0
    path = Path(file)
    if path.exists():
        raise UsageError(f"{file} exists", "a file that is not there yet", "choose another name, or remove it")
    with storage(path):
        write_atomic(path, recipe.encode())
    say(f"wrote {file}; next: tmerge check {shlex.quote(file)}, then tmerge --batch {shlex.quote(file)}")
    return 0


def _recipe(source: str, target: str, text: str, output: str) -> str:
    is_file = is_text_file(text)
    lines = [
        "# tmerge --batch runs this; every other option has its default: tmerge plan shows them all",
        f"source: {_scalar(source)}   # the model knowledge comes from; only read",
        f"target: {_scalar(target)}   # the model that is changed and kept",
        f"output: {_scalar(output)}   # run folder; the merged model is in its model/",
    ]
    section = ""
    for name in ("calibration.path" if is_file else "calibration.repo_id", *SHOWN):
        head, _, leaf = name.partition(".")
        if head != section:
            section = head
            lines += ["", f"{head}:"]
        value = text if leaf in ("path", "repo_id") else _default(name)
        lines.append(f"  {leaf}: {_scalar(value)}   # {_meaning(name)}")
    lines += [
        "",
        "# adaptation: {}   # train the merged model afterwards, its transported part frozen",
        "# evaluation: {tasks: [arc_easy, piqa]}   # benchmarks of lm-evaluation-harness; needs the extra eval",
    ]
    return "\n".join(lines) + "\n"


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
