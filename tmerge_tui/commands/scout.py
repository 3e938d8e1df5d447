"""`tmerge scout`: a minute of trying before anything long. Ctrl-C ends it at any moment; what is kept is whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from tmerge_tui.commands.batch import Options, change
from tmerge_tui.commands.output import data
from tmerge_tui.commands.trust import settle
from tmerge_tui.events import Event, Line, Scouted, encode
from tmerge_tui.quantities import bits, duration, interval, known, number, signed, size
from tmerge_tui.recipe import make_recipe
from tmerge_tui.recipe.presets import read_recipe_mapping


def scout(path: str, options: Options, download: bool) -> int:
    """Prints what was found; with --json the events as lines, of which the last one holds it.

    Raises RecipeError, CheckError with all problems, and what running a model raises.
    """
    from rich.console import Console

    from tmerge_tui.commands.render import renderer

    recipe = make_recipe(change(read_recipe_mapping(path), options))
    settle(recipe, options.trust)
    screen = renderer(Console(stderr=True, highlight=False), options.quiet)
    count = 0

    def emit(event: Event) -> None:
        nonlocal count
        line = Line(count, time.time(), event)
        count += 1
        if options.json:
            data(encode(line.event, line.seq, line.t))
        screen.show(line)
        screen.tick()

    try:
        from tmerge_tui.engine.preflight.scout import scout as try_out

        found = try_out(recipe, emit, download)
    finally:
        screen.close()
    if options.json:
        data(encode(Scouted(found), count, time.time()))
    else:
        for line in told(found):
            data(line)
    return 0


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """The verdict first, then numbers as a table, then what each part of the recipe takes."""
    yield found["verdict"]
    for sentence in found["sentences"]:
        yield f"  {sentence}"
    models = found["models"]
    if models:
        yield ""
        yield f"{'bits per byte':<16} {'as it is':>9} {'tuned':>9}   {'s per 1,000 tokens':>18} {'training':>9}"
        for role, one in models.items():
            numbers = f"{bits(one['before']):>9} {bits(one['after']):>9}"
            yield f"{role:<16} {numbers}   {number(one['forward']):>18} {number(one['training']):>9}"
        rows = (("untouched", "both untouched"), ("against_tuned_target", "source against tuned target"),
                ("both_tuned", "both tuned"))  # fmt: skip
        for name, title in rows:
            row = found["headroom"][name]
            if row:
                yield f"  {title}: {signed(row['difference'])} ({interval(row['low'], row['high'])})"
    yield ""
    said = found["tokenizers"]
    shares = [_share(said[name]) for name in ("shared_vocabulary", "positions_with_teacher")]
    yield f"tokenizers       {shares[0]} of the target's vocabulary shared, {shares[1]} of positions with a teacher"
    for one in found["pending"]:
        yield f"on the Hub       {one['name']}: {size(one['bytes'])}; --download fetches it"
    needs, texts = found["estimate"], found["texts"]
    yield f"texts            {texts['measured']} measured, {texts['tuned']} to tune on"
    by = "measured by scout" if needs["scouted"] else "from a second of measuring"
    yield f"whole recipe     {'at most' if needs['bound'] else 'about'} {duration(needs['seconds'])}, {by}"
    for arm in found["arms"]:
        seeds = f" ({arm['seeds']} seeds)" if arm["seeds"] > 1 else ""
        yield f"  {arm['title'] + seeds:<40} {duration(arm['seconds']):>12}"


def _share(value: Any) -> str:
    share = known(value)
    return "unknown" if share is None else f"{share:.0%}"
