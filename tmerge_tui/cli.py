"""The command line: options and which function they lead to. Imports as little as `--version` needs.

Exit codes: 0 done, 1 the run failed, 2 usage, recipe or check, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from tmerge_tui.commands.completion import Preset, RecipeFile, Run, RunOrRecipe
from tmerge_tui.commands.output import complain, hush, say
from tmerge_tui.commands.run_options import TRUST, run_options
from tmerge_tui.edition import edition
from tmerge_tui.errors import TmergeError
from tmerge_tui.system import can_draw, write_utf8

if TYPE_CHECKING:
    from tmerge_tui.commands.batch import Options

NO_TERMINAL = """The wizard needs a terminal, and this is none. Without one:
  tmerge --batch RECIPE    run a recipe (YAML)
  tmerge demo              run the bundled example
  tmerge --help            all commands"""


class Commands(click.Group):
    """Says what was probably meant: a recipe file goes with --batch, a name that is close, `help`, `version`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and self.get_command(ctx, name) is None:
            if name in ("help", "version"):
                raise click.UsageError(f"tmerge --{name} says it", ctx)
            if name.startswith("preset:") or name.endswith((".yaml", ".yml")):
                raise click.UsageError(f"a recipe is run with: tmerge --batch {quote(name)}", ctx)
            if os.path.isfile(os.path.join(name, "tmerge-run.json")):
                there = quote(name)
                raise click.UsageError(f"{name} is a run: tmerge watch {there}, or tmerge resume {there}", ctx)
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            if close:
                raise click.UsageError(f"no such command {name!r}; did you mean {close[0]}?", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(str(edition()), "--version", "-V", prog_name="tmerge", message="%(prog)s %(version)s")
@click.option("--batch", metavar="RECIPE", type=RecipeFile(), help="Run a recipe without the wizard.")
@run_options
@click.pass_context
def tmerge(context: click.Context, batch: str | None, **given: Any) -> int | None:
    """Merge language models of different architectures by optimal transport, and see whether it helped.

    Without arguments the wizard opens.

    \b
    For example:
      tmerge demo                             two small models, no network
      tmerge presets                          the paper's tasks
      tmerge init org/big org/small text.txt > recipe.yaml
      tmerge plan recipe.yaml                 what it needs: time, memory, disk
      tmerge scout recipe.yaml                in a minute: is there anything to carry over?
      tmerge --batch recipe.yaml
      tmerge compare recipe.yaml --methods transport_merge,ot_fusion
      tmerge runs                             every run of this machine
    """
    if context.invoked_subcommand is not None:
        stray = [name for name in ("batch", *given) if {"batch": batch, **given}[name]]
        if stray:
            name = "set" if stray[0] == "changes" else stray[0]
            raise click.UsageError(f"--{name} goes with --batch, or after the command it is meant for")
        return None
    if batch is not None:
        from tmerge_tui.commands.batch import run_file

        return run_file(batch, options(**given))
    if any(given.values()):
        raise click.UsageError("these options need --batch RECIPE")
    return wizard()


def wizard() -> int:
    """Opens the wizard where there is a terminal for it."""
    if not (sys.stdin.isatty() and can_draw()):
        say(NO_TERMINAL)
        return 2
    from tmerge_tui.tui.app import main as open_wizard

    return open_wizard() or 0


def set_offline(offline: bool) -> None:
    """For huggingface_hub, which is to be imported after this, and for child processes."""
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def options(offline: bool, **given: Any) -> Options:
    """The run options."""
    set_offline(offline)
    from tmerge_tui.commands.batch import Options

    return Options(**given)


@tmerge.command()
@run_options
def demo(**given: Any) -> int:
    """Run the bundled example: two small models and text, no network."""
    from tmerge_tui.commands.batch import run_demo

    return run_demo(options(**given))


@tmerge.command()
@click.argument("name", required=False, type=Preset())
def presets(name: str | None) -> int:
    """List the paper's tasks, or print the recipe of preset NAME."""
    from tmerge_tui.commands.presets import presets as show

    return show(name)


@tmerge.command()
@click.argument("source")
@click.argument("target")
@click.argument("text")
@click.option("--output", default="runs/merge", metavar="DIR", help="Run folder.")
@click.option("--to", "file", metavar="FILE", help="Write it there; otherwise it is printed.")
def init(source: str, target: str, text: str, output: str, file: str | None) -> int:
    """Write a commented recipe: SOURCE into TARGET, aligned on TEXT (a file or a data set of the Hub)."""
    from tmerge_tui.commands.init import init as write

    return write(source, target, text, output, file)


@tmerge.command()
@click.argument("words", nargs=-1)
@click.option("--json", is_flag=True, help="Print them as JSON.")
def runs(words: tuple[str, ...], json: bool) -> int:
    """List the runs of this machine: state, verdict, time, models, folder. WORDS filter."""
    from tmerge_tui.commands.listing import runs as show

    return show(words, json)


@tmerge.command()
@click.argument("first", type=RunOrRecipe())
@click.argument("second", type=Run(), required=False)
@click.option("--methods", metavar="NAMES", help="Merge methods to try on the pair of a recipe, such as a,b,c.")
@run_options
def compare(first: str, second: str | None, methods: str | None, **given: Any) -> int:
    """Show two runs side by side; or try several merge methods on the pair of one recipe.

    \b
      tmerge compare RUN RUN        what they achieved, and the settings in which they differ
      tmerge compare RECIPE --methods transport_merge,ot_fusion,ls_merge
                                    each at its best strength beside its placebos, on one page
    """
    if methods is not None:
        if second is not None:
            raise click.UsageError("--methods tries methods on one recipe: tmerge compare RECIPE --methods NAMES")
        chosen = options(**given)
        from tmerge_tui.commands.batch import run_comparison

        return run_comparison(first, methods, chosen)
    if second is None:
        raise click.UsageError("give two runs, or one recipe and --methods NAMES")
    if any(given.values()):
        raise click.UsageError("two runs are only shown: these options go with --methods")
    from tmerge_tui.commands.listing import compare as show

    return show(first, second)


@tmerge.command()
@click.argument("run", type=Run())
@run_options
def resume(run: str, **given: Any) -> int:
    """Go on with the RUN in a folder where it stopped."""
    chosen = options(**given)
    from tmerge_tui.commands.resume import resume as go_on

    return go_on(run, chosen)


@tmerge.command()
@click.argument("run", type=Run())
@click.argument("prompts", nargs=-1, required=True)
@click.option(
    "--model", "folder", metavar="FOLDER", help="Which model of the run, instead of the one its verdict is about."
)
@click.option("--json", is_flag=True, help="Print JSON lines.")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is on this disk.")
@TRUST
def generate(run: str, prompts: tuple[str, ...], folder: str | None, json: bool, offline: bool, trust: bool) -> int:
    """Let target and result of a finished RUN continue PROMPTS."""
    set_offline(offline)
    from tmerge_tui.commands.generate import generate as write

    return write(run, prompts, folder, json, trust)


@tmerge.command()
@click.argument("recipe", type=RecipeFile())
@run_options
def plan(recipe: str, **given: Any) -> int:
    """Print the resolved RECIPE and what it needs of time, memory and disk. Runs nothing; --json prints JSON."""
    chosen = options(**given)
    from tmerge_tui.commands.inspect import plan as show_plan

    return show_plan(recipe, chosen)


@tmerge.command()
@click.argument("recipe", type=RecipeFile())
@run_options
@click.option("--download", is_flag=True, help="Fetch weights that are still on the Hub, and run the models.")
def scout(recipe: str, download: bool, **given: Any) -> int:
    """Try both models of RECIPE for a minute: is there anything to carry over, and how long will it take?"""
    chosen = options(**given)
    from tmerge_tui.commands.scout import scout as try_out

    return try_out(recipe, chosen, download)


@tmerge.command()
@click.argument("recipe_or_model", type=RecipeFile())
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is on this disk.")
@TRUST
def check(recipe_or_model: str, offline: bool, trust: bool) -> int:
    """List every problem of a recipe, or the projections of a model (folder, GGUF file or Hub id) with their shapes."""
    options(offline)
    from tmerge_tui.commands.inspect import check as show_check

    return show_check(recipe_or_model, trust)


@tmerge.command()
@click.argument("run", type=Run())
@click.option("--json", is_flag=True, help="Print the events as JSON lines on stdout.")
def watch(run: str, json: bool) -> int:
    """Follow a RUN folder: going on, finished or crashed. Ctrl-C stops watching, not the run."""
    from tmerge_tui.commands.runs import watch as follow

    return follow(run, json)


@tmerge.command()
@click.argument("run", type=Run())
def cancel(run: str) -> int:
    """Stop the RUN that is going on in a folder; what it has finished is kept."""
    from tmerge_tui.commands.runs import cancel as stop

    return stop(run)


@tmerge.command()
@click.argument("run", type=Run())
def report(run: str) -> int:
    """Write the report of a RUN again from its report.json, and print where it is."""
    from tmerge_tui.commands.runs import report as rebuild

    return rebuild(run)


@tmerge.command("eval")
@click.argument("run", type=Run(), metavar="RUN")
@click.option("--tasks", "tasks", multiple=True, metavar="NAMES", help="Tasks of lm-evaluation-harness, or task files.")
@click.option("--choices", multiple=True, metavar="FILE", help="A .jsonl file of multiple-choice questions.")
@click.option("--include-path", metavar="DIR", help="Folder of more task files.")
@click.option("--limit", type=int, metavar="N", help="Questions of each task at most; the results are partial.")
@click.option("--num-fewshot", type=int, metavar="N", help="Examples before each question, instead of the task's.")
@click.option("--source", "benchmark_source", is_flag=True, default=None, help="Ask the source too.")
@click.option("--general", is_flag=True, help="What was forgotten: bits per byte of general English text.")
@click.option("--general-texts", metavar="TEXTS", help="The same on a file or data set of text of another kind.")
@click.option("--against", metavar="MODEL", help="With --general of a model: another one, and the difference to it.")
@click.option("--attribution", is_flag=True, help="Where the gain comes from: the share of the gap that was closed.")
@click.option("--safety", is_flag=True, help="What is declined, and what is harmless: a screen of prompts that ship.")
@click.option("--safety-prompts", metavar="FILE", help="The same with pairs of prompt and twin of your own besides.")
@click.option("--json", is_flag=True, help="Print the events as JSON lines on stdout.")
@click.option("--quiet", is_flag=True, help="Print the result only, no progress.")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is on this disk.")
@TRUST
def evaluate(run: str, json: bool, quiet: bool, offline: bool, trust: bool, against: str | None, **given: Any) -> int:
    """Ask target and result of a finished RUN more: its report then says it. With --general a model may stand there."""
    chosen = options(offline, json=json, quiet=quiet, trust=trust)
    from tmerge_tui.commands.evaluate import asked_of
    from tmerge_tui.commands.evaluate import evaluate as ask
    from tmerge_tui.commands.evaluate_model import is_model, measure

    if against is not None or is_model(run):
        return measure(run, against, asked_of(**given), chosen)
    return ask(run, asked_of(**given), chosen)


@tmerge.command()
@click.argument("run", type=Run())
@click.option("--repo", required=True, metavar="ORG/NAME", help="Repository on the Hub; made when it is not there.")
@click.option("--model", metavar="FOLDER", help="Which model of the run, instead of the one its verdict is about.")
@click.option("--public", is_flag=True, help="A new repository is public; otherwise it is private.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def push(run: str, repo: str, model: str | None, public: bool, yes: bool) -> int:
    """Upload the model, card, recipe and report of a finished RUN to the Hub."""
    from tmerge_tui.commands.push import push as upload

    return upload(run, repo, model, public, yes)


@tmerge.command()
def models() -> int:
    """List the model families that can be merged, and what cannot."""
    from tmerge_tui.commands.families import families

    return families()


@tmerge.command()
@click.option("--clear", is_flag=True, help="Remove those that no process uses; they are unpacked again when needed.")
def cache(clear: bool) -> int:
    """List the engines that the one-file executable has unpacked."""
    from tmerge_tui.commands.cache import cache as engines

    return engines(clear)


@tmerge.command()
@click.option("--json", is_flag=True, help="Print it as JSON, for a bug report.")
@click.option("--whoami", is_flag=True, help="Ask the Hub whose token it is.")
@click.option("--offline", is_flag=True, help="Never ask the Hub.")
@click.option("--torch", is_flag=True, hidden=True, help="Print what torch sees as JSON: the binary asks its engine.")
def doctor(json: bool, whoami: bool, offline: bool, torch: bool) -> int:
    """Say what tmerge sees of this machine, and what to do about each problem."""
    set_offline(offline)
    from tmerge_tui.commands import doctor as examine

    return examine.torch_as_json() if torch else examine.doctor(json, whoami)


def main() -> int:
    """Runs the command line; the exit code. No error leaves as a traceback (TMERGE_DEBUG=1 shows it)."""
    try:
        write_utf8()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a name in Yoruba on a Latin-1 terminal is no reason to stop
        code = tmerge.main(prog_name="tmerge", standalone_mode=False)
        if sys.stdout is not None:  # closed by the caller: >&-
            sys.stdout.flush()
        return code or 0
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        say(said.getvalue().rstrip())
        return 2
    except TmergeError as error:
        return complain(error)
    except BrokenPipeError:
        hush()
        return 0
    except Exception as error:
        from tmerge_tui.hub.errors import scrub

        say(f"error: unexpected {type(error).__name__}: {scrub(str(error))}")
        if os.environ.get("TMERGE_DEBUG"):
            import traceback

            say(scrub("".join(traceback.format_exception(error))))
        else:
            say("  next: this is a bug in tmerge; TMERGE_DEBUG=1 shows the traceback to report")
        return 1
