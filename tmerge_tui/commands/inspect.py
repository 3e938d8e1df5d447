"""`tmerge plan` and `tmerge check`: what would happen, without it happening."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmerge_tui.commands.batch import Options, change
from tmerge_tui.commands.output import data, say
from tmerge_tui.commands.trust import settle
from tmerge_tui.errors import CheckError, UsageError
from tmerge_tui.quantities import duration, size
from tmerge_tui.recipe import ModelChoice, Recipe, dump_recipe, is_gguf, make_recipe
from tmerge_tui.recipe.presets import read_recipe_mapping

if TYPE_CHECKING:
    from tmerge_tui.engine.prepared import Estimate, Party, Prepared

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.yaml)(?<!\.yml)(:[^@:]+\.gguf)?(@[\w./-]+)?", re.IGNORECASE)


def plan(path: str, options: Options) -> int:
    """Prints the resolved recipe and its needs, as YAML or with --json as JSON.

    Raises RecipeError; CheckError with all problems, after the recipe.
    """
    recipe = make_recipe(change(read_recipe_mapping(path), options))
    settle(recipe, options.trust)
    from tmerge_tui.engine.preflight.check import prepare, with_time
    from tmerge_tui.engine.preflight.estimate import unpacked_bytes

    if options.json:
        data(json.dumps(_as_json(recipe, prepare(recipe)), ensure_ascii=False, indent=1))
        return 0
    data(dump_recipe(recipe).rstrip())
    prepared = prepare(recipe)
    needs = with_time(prepared)
    data("")
    rows = [
        ("source", f"{prepared.source.facts.architecture}, {_shape(prepared.source.facts)}"),
        ("target", f"{prepared.target.facts.architecture}, {_shape(prepared.target.facts)}"),
        ("projections", ", ".join(prepared.matching.kinds)),
        ("device", str(prepared.device)),
        ("time", f"{'at most' if needs.bound else 'about'} {duration(needs.seconds)} on this machine, {_by(needs)}"),
        ("memory", size(needs.memory_bytes)),
        ("disk", size(needs.disk_bytes)),
    ]
    for party in _parties(prepared):
        unpacked = unpacked_bytes(party)
        if unpacked:
            rows.append(("unpack", f"{party.facts.label}: {size(unpacked)} of plain weights, kept for later runs"))
    for name, value in [
        *rows,
        *(("download", f"{name}: {size(b)} in {n} files") for name, b, n in _downloads(prepared)),
    ]:
        data(f"# {name:<12} {value}")  # comments: what is printed is still a recipe
    for note in (*prepared.matching.notes, *prepared.estimate.notes, *prepared.warnings):
        data(f"# {note}")
    return 0


def _by(needs: Estimate) -> str:
    return "measured by scout" if needs.scouted else "from a second of measuring (tmerge scout measures the models)"


def _as_json(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    from tmerge_tui.engine.preflight.check import with_time
    from tmerge_tui.engine.preflight.estimate import unpacked_bytes

    needs = with_time(prepared)
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"resolved"}),
        "source": prepared.source.facts.summary(),
        "target": prepared.target.facts.summary(),
        "projections": list(prepared.matching.kinds),
        "device": str(prepared.device),
        "download": [{"name": name, "bytes": total, "files": n} for name, total, n in _downloads(prepared)],
        "unpack": unpacked_bytes(*_parties(prepared)),
        "estimate": needs.as_json(),
        "notes": [*prepared.matching.notes, *needs.notes],
        "warnings": list(prepared.warnings),
    }


def _parties(prepared: Prepared) -> list[Party]:
    return [prepared.source, prepared.target, *([] if prepared.reference is None else [prepared.reference])]


def _downloads(prepared: Prepared) -> list[tuple[str, int, int]]:
    """(model, bytes, files) of what a run has to fetch; what both need once."""
    pending = {
        (listing.folder, listing.file): listing for party in _parties(prepared) for listing in party.located.downloads
    }
    return [(one.name, sum(file.size for file in one.missing), len(one.missing)) for one in pending.values()]


def check(path: str, trusted: bool) -> int:
    """Checks a recipe, or shows the projections of a model; 2 when there are problems.

    Of a model on the Hub only the small files and the headers of its weights are fetched.
    """
    file = Path(path).is_file() and is_gguf(path)
    if file or (Path(path) / "config.json").is_file() or (HUB_ID.fullmatch(path) and not Path(path).exists()):
        return _check_model(path)
    if Path(path).is_dir():
        raise UsageError(
            f"{path} holds no config.json", "a recipe (YAML file), a model folder or a Hub id", "check the path"
        )
    recipe = make_recipe(read_recipe_mapping(path))
    settle(recipe, trusted)
    from tmerge_tui.engine.preflight.check import examine as problems_of

    problems, notes = problems_of(recipe)
    if problems:
        raise CheckError(problems, "correct them, then check again; nothing was written")
    for note in notes:
        say(f"note: {note}")
    say("no problems found")
    return 0


def _check_model(path: str) -> int:
    from tmerge_tui.engine.preflight.check import open_party
    from tmerge_tui.hub.locate import find

    party = open_party("model", find(ModelChoice(model=path)), trust_remote_code=False)
    facts = party.facts
    data(f"{facts.architecture}, {_shape(facts)}, {facts.dtype}, {size(facts.bytes_on_disk)}")
    if party.located.precision:
        data(f"  packed: {party.located.precision}; read as {facts.dtype}")
    alike: dict[tuple[Any, ...], list[Any]] = {}  # a line for all layers that have the same
    for p in facts.layout.projections:
        alike.setdefault((p.kind, p.d_out, p.d_in, bool(p.bias), str(p.block), p.transposed), []).append(p)
    for found in alike.values():
        p = found[0]
        bias = f" + {p.bias}" if p.bias else ""
        place = f"  {'columns' if p.transposed else 'rows'} {p.block}" if p.block else ""
        turned = "  stored in x out" if p.transposed else ""
        layers = _ranges([one.layer for one in found])
        data(f"  {p.kind:<5} layers {layers:<8} {p.d_out} x {p.d_in}  {p.weight}{bias}{place}{turned}")
    for note in facts.layout.notes:
        data(f"  note: {note}")
    return 0


def _ranges(numbers: list[int]) -> str:
    """`0-3,5`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _shape(facts: object) -> str:
    layers, hidden, parameters = (getattr(facts, name) for name in ("layers", "hidden", "parameters"))
    return f"{layers} layers, hidden {hidden}, {parameters:,} parameters"
