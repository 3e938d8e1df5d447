"""`tmerge eval`: more benchmarks for a run that has finished, and what else it has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tmerge_tui import stopping
from tmerge_tui.commands.batch import Options
from tmerge_tui.commands.batch import run as run_recipe
from tmerge_tui.commands.output import data, say
from tmerge_tui.errors import RunFolderError, UsageError
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.quantities import bits, interval, signed
from tmerge_tui.recipe import make_recipe, task_name
from tmerge_tui.recipe.yamlfile import read_mapping
from tmerge_tui.run_folder import RunDir

LISTS = ("tasks", "choices")
# of `evaluation`, which can be switched on -> the option that a name given with them is
SECTIONS = {"general": "texts", "attribution": "", "safety": "path"}


def evaluate(path: str, asked: dict[str, Any], options: Options) -> int:
    """Runs the run's recipe again with more to measure: everything else is there already. The exit code.

    `asked` are fields of `evaluation`; lists add to what the recipe has, sections too (a name is a text or a file),
    other values replace it, None leaves it. When it fails, or leaves a benchmark out of the report, the recipe stays as
    it was. Raises UsageError without anything to ask, RunFolderError for a run that has not finished.
    """
    run = RunDir.open(path)
    if not any(asked[name] for name in (*LISTS, *SECTIONS)):
        raise UsageError(
            "nothing to ask",
            "--tasks NAME, --choices FILE, --general, --attribution or --safety",
            "for example --general --safety",
        )
    if not (run.path / "report.json").exists():
        raise RunFolderError(f"{path} has not finished", "a finished run", "run its recipe to the end first")
    before = run.recipe.read_bytes()
    recipe = read_mapping(run.recipe)
    recipe["output"] = str(run.path)  # the folder may have been moved
    recipe["evaluation"] = _with(recipe.get("evaluation") or {}, asked)
    with stopping.held():  # the recipe is not left with what was not answered
        code = run_recipe(make_recipe(recipe), options)
        results = json.loads((run.path / "report.json").read_text(encoding="utf-8")) if code == 0 else {}
        left_out = [warning["message"] for warning in results.get("warnings") or [] if warning["where"] == "benchmark"]
        if code != 0 or left_out:
            with storage(run.recipe):
                write_atomic(run.recipe, before)
    for message in left_out:
        say(f"error: {message}")
    if not options.json:
        for line in (*answers(results), *sentences(results, asked)):
            data(line)
    return code or int(bool(left_out))


def asked_of(
    tasks: Sequence[str],
    choices: Sequence[str],
    general: bool,
    general_texts: str | None,
    safety: bool,
    safety_prompts: str | None,
    **given: Any,
) -> dict[str, Any]:
    """What the options of the command line ask for, as `evaluate` takes it."""
    names = [task_name(name.strip()) for names in tasks for name in names.split(",") if name.strip()]
    prompts = None if safety_prompts is None else _absolute(safety_prompts)
    sections = {"general": general_texts or general, "safety": prompts or safety}
    return {"tasks": names, "choices": [_absolute(path) for path in choices], **sections, **given}


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def answers(results: Mapping[str, Any]) -> Iterator[str]:
    """The benchmarks of report.json, one line for each model and metric."""
    for row in results.get("benchmarks") or []:
        model = row["model"] if row["alpha"] is None else f"{row['model']} at alpha {row['alpha']:g}"
        told = f"{row['task']}, {row['metric']}: {model} {bits(row['value'])}"
        if row["stderr"] is not None:
            told += f" ± {bits(row['stderr'])}"
        if row["difference"] is not None:
            told += f", {signed(row['difference'])} to the target"
        if row["difference_low"] is not None:
            told += f" ({interval(row['difference_low'], row['difference_high'])})"
        yield told if row["limit"] is None else f"{told}, partial: {row['limit']} questions at most"


def sentences(results: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What the report says of the sections that were asked for."""
    from tmerge_tui.engine.report.besides import SAYS, result_of

    if not results.get("verdict"):
        return []
    who = result_of(results["verdict"], results)
    return [line for name in SECTIONS if asked[name] for line in SAYS[name](results, who)]


def _with(evaluation: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    changed = dict(evaluation)
    for name, value in asked.items():
        if name == "choices":
            had = list(evaluation.get(name) or [])
            known = [one["path"] if isinstance(one, dict) else one for one in had]
            changed[name] = had + [path for path in value if path not in known]
        elif name == "tasks":
            changed[name] = list(dict.fromkeys([*(evaluation.get(name) or []), *value]))
        elif name in SECTIONS and value:
            named = {SECTIONS[name]: value} if isinstance(value, str) else {}
            changed[name] = {**(evaluation.get(name) or {}), **named}
        elif name not in SECTIONS and value is not None:
            changed[name] = value
    return changed
