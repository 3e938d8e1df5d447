"""`tmerge --batch` and `tmerge demo`: start the worker, follow it, show it, stop it on Ctrl-C."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tmerge_tui import bundle, stopping
from tmerge_tui.commands.engine import unpack
from tmerge_tui.commands.output import complain, data, say
from tmerge_tui.commands.trust import settle
from tmerge_tui.errors import TmergeError, UsageError
from tmerge_tui.events import RunFailed, RunFinished, encode
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.recipe import Recipe, dump_recipe, make_recipe
from tmerge_tui.recipe.demo import demo_mapping
from tmerge_tui.recipe.presets import read_recipe_mapping
from tmerge_tui.recipe.yamlfile import read_scalar
from tmerge_tui.run_folder import RunDir
from tmerge_tui.visible import visible
from tmerge_tui.worker import spawn
from tmerge_tui.worker.follow import POLL, REPORT, Ended, Follower, cancel, has_report


@dataclass(frozen=True)
class Options:
    """What the command line adds to a recipe."""

    json: bool = False
    quiet: bool = False
    device: str | None = None
    executor: str | None = None
    ray_address: str | None = None
    output: str | None = None
    trust: bool = False  # of code that comes with models
    changes: tuple[str, ...] = ()  # section.key=value


def run_file(path: str, options: Options) -> int:
    return run(make_recipe(change(read_recipe_mapping(path), options)), options)


def run_comparison(path: str, methods: str, options: Options) -> int:
    """The recipe with `compare_methods`, names between commas."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    mapping = change(read_recipe_mapping(path), options) | {"compare_methods": names}
    return run(make_recipe(mapping | {"method": names[0] if names else None}), options)


def run_demo(options: Options) -> int:
    """The bundled recipe; its models and text lie beside it."""
    recipe = demo_mapping(bundle.assets() / "demo")
    recipe["output"] = "tmerge-demo"
    return run(make_recipe(change(recipe, options)), options)


def run(recipe: Recipe, options: Options) -> int:
    """Runs `recipe` in the foreground; the exit code.

    Raises RunFolderError and StorageError when the output cannot be used, UsageError when a model's own code may not
    run; what else goes wrong is printed.
    """
    settle(recipe, options.trust)
    folder = RunDir.create(recipe.output)
    spawn.refuse_if_busy(folder)
    before = folder.recipe.read_bytes() if (folder.path / REPORT).is_file() else None
    with storage(folder.recipe):
        write_atomic(folder.recipe, dump_recipe(recipe).encode())
    unpack()
    follower = Follower(folder, from_start=False)
    with stopping.held():  # the worker goes with this process
        worker = spawn.start(folder)
        follower.worker = worker
        ended = show(follower, options)
        if ended is None:
            cancel(folder, worker)
            stopping.explain(visible(interrupted(folder)))
            return stopping.asked() or 0
        worker.wait(spawn.LEAVING)  # so that the same command may follow at once
        code = conclude(folder, ended, options)
        if before is not None and code != 0:  # refused, or failed: the finished run keeps the recipe that made it
            with storage(folder.recipe):
                write_atomic(folder.recipe, before)
            say(f"the result in {folder.path} is as it was: tmerge watch {shlex.quote(str(folder.path))}")
        return code


def show(follower: Follower, options: Options, skip: int = 0) -> Ended | None:
    """Renders events until the end; None when this process is asked to stop before. To be called `stopping.held`.

    The first `skip` events only enter the state of an earlier moment and are not shown.
    """
    from rich.console import Console

    from tmerge_tui.commands.render import renderer

    screen = renderer(Console(stderr=True, highlight=False), options.quiet)
    try:
        while follower.ended is None and stopping.asked() is None:
            for line in follower.poll():
                if line.seq < skip:
                    continue
                if options.json:
                    data(encode(line.event, line.seq, line.t))
                screen.show(line)
            screen.tick()
            if follower.ended is None:
                time.sleep(POLL)
    finally:
        screen.close()
    return follower.ended


def conclude(folder: RunDir, ended: Ended, options: Options) -> int:
    """Prints how a run ended: the result on stdout, an error in full on stderr."""
    event = ended.event
    if not isinstance(event, RunFinished) and has_report(folder):
        say(f"the result of the earlier run is kept: {folder.path / 'report.html'}")
    if isinstance(event, RunFinished):
        if not options.json:
            for line in [*result(event), *advice(folder)]:
                data(line)
    elif isinstance(event, RunFailed):
        say(f"error: {TmergeError(event.message, event.expected, event.hint)}")
        if event.details and event.kind not in _known():
            say(f"  the traceback is at the end of {folder.log}")
    elif ended.error is not None:
        return complain(ended.error)
    else:
        say(interrupted(folder))
    return ended.exit_code


def result(event: RunFinished) -> Iterable[str]:
    yield event.verdict
    yield f"model   {event.output}"
    yield f"report  {event.report}"


def advice(folder: RunDir) -> Iterable[str]:
    """What to change next, as the report has it: words, and the options that do it."""
    from tmerge_tui.engine.report.next_steps import as_options

    if not has_report(folder):
        return
    with storage(folder.path):
        steps = json.loads((folder.path / "report.json").read_text(encoding="utf-8")).get("next") or []
    for place, step in enumerate(steps):
        yield f"{'' if place else 'next':<7} {step['text']}"
        if step["set"]:
            yield f"{'':<8}  {as_options(step)}"


def interrupted(folder: RunDir) -> str:
    return f"stopped; the same command continues where it stopped ({folder.path})"


def change(recipe: dict[str, Any], options: Options) -> dict[str, Any]:
    """The recipe's mapping with the command line's values; keys are checked later with all others.

    Raises UsageError for a --set that is not section.key=value.
    """
    for text in options.changes:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {text}", "section.key=value", "for example --set fusion.alpha=0.05")
        _put(recipe, name.strip().split("."), read_scalar(value))
    if options.device is not None:
        recipe["device"] = options.device
    if options.executor is not None:
        _put(recipe, ["transport", "executor"], options.executor)
        if options.executor == "local":
            _put(recipe, ["transport", "ray_address"], "")  # the recipe's is for ray
    if options.ray_address is not None:
        _put(recipe, ["transport", "ray_address"], options.ray_address)
    if options.output is not None:
        recipe["output"] = options.output
    return recipe


def _put(mapping: dict[str, Any], keys: list[str], value: Any) -> None:
    *sections, last = keys
    for name in sections:
        inner = mapping.get(name)
        if isinstance(inner, str):  # source: org/name, the short form of source.model
            inner = {"model": inner}
        mapping[name] = inner = dict(inner) if isinstance(inner, dict) else {}
        mapping = inner
    mapping[last] = value


def _known() -> set[str]:
    def names(cls: type[TmergeError]) -> set[str]:
        return {cls.__name__}.union(*(names(sub) for sub in cls.__subclasses__()))

    return names(TmergeError)
