"""`tmerge plan` and `tmerge check`: what would happen, without it happening."""

from __future__ import annotations

import re
from pathlib import Path

from tmerge_tui.commands.batch import Options, change
from tmerge_tui.commands.output import data, say
from tmerge_tui.errors import CheckError, UsageError
from tmerge_tui.quantities import size
from tmerge_tui.recipe import ModelChoice, dump_recipe, load_recipe, make_recipe
from tmerge_tui.recipe.presets import read_recipe_mapping

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.yaml)(?<!\.yml)(@[\w./-]+)?")


def plan(path: str, options: Options) -> int:
    """Prints the resolved recipe and its needs. Raises RecipeError, CheckError with all problems."""
    recipe = make_recipe(change(read_recipe_mapping(path), options))
    from tmerge_tui.engine.preflight.check import prepare

    prepared = prepare(recipe)
    data(dump_recipe(recipe).rstrip())
    data("")
    rows = [
        ("source", f"{prepared.source.facts.architecture}, {_shape(prepared.source.facts)}"),
        ("target", f"{prepared.target.facts.architecture}, {_shape(prepared.target.facts)}"),
        ("projections", ", ".join(prepared.matching.kinds)),
        ("device", str(prepared.device)),
    ]
    pending = {listing.folder: listing for p in (prepared.source, prepared.target) for listing in p.located.downloads}
    for listing in pending.values():
        missing = listing.missing
        rows.append(("download", f"{listing.name}: {size(sum(f.size for f in missing))} in {len(missing)} files"))
    for name, value in rows:
        data(f"# {name:<12} {value}")  # comments: what is printed is still a recipe
    for note in (*prepared.matching.notes, *prepared.estimate.notes, *prepared.warnings):
        data(f"# {note}")
    return 0


def check(path: str) -> int:
    """Checks a recipe, or shows the projections of a model; 2 when there are problems.

    Of a model on the Hub only the small files and the headers of its weights are fetched.
    """
    if (Path(path) / "config.json").is_file() or (HUB_ID.fullmatch(path) and not Path(path).exists()):
        return _check_model(path)
    if Path(path).is_dir():
        raise UsageError(
            f"{path} holds no config.json", "a recipe (YAML file), a model folder or a Hub id", "check the path"
        )
    recipe = load_recipe(path)
    from tmerge_tui.engine.preflight.check import check as problems_of

    problems = problems_of(recipe)
    if problems:
        raise CheckError(problems, "correct them, then check again; nothing was written")
    say("no problems found")
    return 0


def _check_model(path: str) -> int:
    from tmerge_tui.engine.preflight.check import open_party
    from tmerge_tui.hub.locate import find

    facts = open_party("model", find(ModelChoice(model=path)), trust_remote_code=False).facts
    data(f"{facts.architecture}, {_shape(facts)}, {facts.dtype}, {size(facts.bytes_on_disk)}")
    for p in facts.layout.projections:
        bias = f" + {p.bias}" if p.bias else ""
        place = f"  {'columns' if p.transposed else 'rows'} {p.block}" if p.block else ""
        turned = "  stored in x out" if p.transposed else ""
        data(f"  layer {p.layer:>3}  {p.kind:<5} {p.d_out} x {p.d_in}  {p.weight}{bias}{place}{turned}")
    for note in facts.layout.notes:
        data(f"  note: {note}")
    return 0


def _shape(facts: object) -> str:
    layers, hidden, parameters = (getattr(facts, name) for name in ("layers", "hidden", "parameters"))
    return f"{layers} layers, hidden {hidden}, {parameters:,} parameters"
