"""What the shell offers on tab: runs of this machine, presets, and the names of settings. Nothing here may fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class Run(click.ParamType):
    """A run folder: those that this machine knows, then any folder."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from tmerge_tui.worker.run_index import entries

        known = [_short(entry.path) for entry in entries()]
        return [CompletionItem(path) for path in known if path.startswith(incomplete)] or [
            CompletionItem(incomplete, type="dir")
        ]


class RecipeFile(click.ParamType):
    """A recipe file, or preset:NAME."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from tmerge_tui.recipe.presets import PREFIX, preset_names

        presets = [f"{PREFIX}{name}" for name in preset_names()]
        found = [CompletionItem(name) for name in presets if incomplete and name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


class RunOrRecipe(click.ParamType):
    name = "run or recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        runs = [item for item in Run().shell_complete(ctx, param, incomplete) if item.type == "plain"]
        return [*runs, *RecipeFile().shell_complete(ctx, param, incomplete)]


class Preset(click.ParamType):
    name = "preset"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from tmerge_tui.recipe.presets import preset_names

        return [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]


class Start(click.ParamType):
    """The name of a starting point; what is none is refused with a list of those that there are."""

    name = "best|paper|everything"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from tmerge_tui.recipe.starts import NAMES

        if value not in NAMES:
            self.fail(f"found {value}, expected one of {', '.join(NAMES)}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from tmerge_tui.recipe.starts import STARTS

        return [CompletionItem(one.name, help=one.about) for one in STARTS if one.name.startswith(incomplete)]


class Setting(click.ParamType):
    """section.key=value of --set: the keys, and the values where there are only a few."""

    name = "setting"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from tmerge_tui.recipe import options

        known: dict[str, Any] = dict(options())
        key, equals, _ = incomplete.partition("=")
        if equals:
            values = getattr(known.get(key), "annotation", None)
            choices = [str(one) for one in getattr(values, "__args__", ()) if isinstance(one, str)]
            return [CompletionItem(f"{key}={one}") for one in choices if f"{key}={one}".startswith(incomplete)]
        return [
            CompletionItem(f"{name}=", help=str(f.description)) for name, f in known.items() if name.startswith(key)
        ]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if Path.cwd() in path.parents else str(path)
