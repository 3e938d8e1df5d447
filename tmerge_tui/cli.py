"""The command line: options and which function they lead to. Imports as little as `--version` needs.

Exit codes: 0 done, 1 the run failed, 2 usage, recipe or check, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tmerge_tui.commands.output import complain, hush, say
from tmerge_tui.edition import edition
from tmerge_tui.errors import TmergeError
from tmerge_tui.system import can_draw, write_utf8

if TYPE_CHECKING:
    from tmerge_tui.commands.batch import Options

NO_TERMINAL = """The wizard needs a terminal, and this is none. Without one:
  tmerge --batch RECIPE    run a recipe (YAML)
  tmerge demo              run the bundled example
  tmerge --help            all commands"""

RUN_OPTIONS = [
    click.option("--json", is_flag=True, help="Print the events of the run as JSON lines on stdout."),
    click.option("--quiet", is_flag=True, help="Print the result only, no progress."),
    click.option("--device", metavar="NAME", help="auto, cpu, mps, cuda or cuda:N, instead of the recipe's."),
    click.option("--executor", metavar="NAME", help="local, or ray: where transport plans are solved."),
    click.option(
        "--ray-address", metavar="HOST:PORT", help="A running Ray cluster, or auto; without it one starts here."
    ),
    click.option("--output", metavar="DIR", help="Run folder, instead of the recipe's."),
    click.option("--offline", is_flag=True, help="Never ask the Hub; use what is on this disk."),
    click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe: fusion.alpha=0.05."),
]


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(str(edition()), prog_name="tmerge", message="%(prog)s %(version)s")
@click.option("--batch", metavar="RECIPE", help="Run a recipe without the wizard.")
@run_options
@click.pass_context
def tmerge(context: click.Context, batch: str | None, **given: Any) -> int | None:
    """Merge language models of different architectures by optimal transport, and see whether it helped.

    Without arguments the wizard opens.
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
@click.argument("recipe")
@run_options
def plan(recipe: str, **given: Any) -> int:
    """Print the resolved RECIPE and what it needs of memory, disk and work. Runs nothing."""
    chosen = options(**given)
    from tmerge_tui.commands.inspect import plan as show_plan

    return show_plan(recipe, chosen)


@tmerge.command()
@click.argument("recipe_or_model")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is on this disk.")
def check(recipe_or_model: str, offline: bool) -> int:
    """List every problem of a recipe, or the projections of a model (folder or Hub id) with their shapes."""
    options(offline)
    from tmerge_tui.commands.inspect import check as show_check

    return show_check(recipe_or_model)


@tmerge.command()
@click.argument("run")
@click.option("--json", is_flag=True, help="Print the events as JSON lines on stdout.")
def watch(run: str, json: bool) -> int:
    """Follow a RUN folder: going on, finished or crashed. Ctrl-C stops watching, not the run."""
    from tmerge_tui.commands.runs import watch as follow

    return follow(run, json)


@tmerge.command()
@click.argument("run")
def cancel(run: str) -> int:
    """Stop the RUN that is going on in a folder; what it has finished is kept."""
    from tmerge_tui.commands.runs import cancel as stop

    return stop(run)


@tmerge.command()
@click.argument("run")
def report(run: str) -> int:
    """Write the report of a RUN again from its report.json, and print where it is."""
    from tmerge_tui.commands.runs import report as rebuild

    return rebuild(run)


@tmerge.command("eval")
@click.argument("run")
@click.option("--tasks", "tasks", multiple=True, metavar="NAMES", help="Tasks of lm-evaluation-harness, or task files.")
@click.option("--choices", multiple=True, metavar="FILE", help="A .jsonl file of multiple-choice questions.")
@click.option("--include-path", metavar="DIR", help="Folder of more task files.")
@click.option("--limit", type=int, metavar="N", help="Questions of each task at most; the results are partial.")
@click.option("--num-fewshot", type=int, metavar="N", help="Examples before each question, instead of the task's.")
@click.option("--source", "benchmark_source", is_flag=True, default=None, help="Ask the source too.")
@click.option("--json", is_flag=True, help="Print the events as JSON lines on stdout.")
@click.option("--quiet", is_flag=True, help="Print the result only, no progress.")
@click.option("--offline", is_flag=True, help="Never ask the Hub; use what is on this disk.")
def evaluate(
    run: str, json: bool, quiet: bool, offline: bool, tasks: tuple[str, ...], choices: tuple[str, ...], **given: Any
) -> int:
    """Ask target and result of a finished RUN more questions, and add them to its report."""
    chosen = options(offline, json=json, quiet=quiet)
    from tmerge_tui.commands.evaluate import evaluate as ask
    from tmerge_tui.recipe import task_name

    names = [task_name(name.strip()) for names in tasks for name in names.split(",") if name.strip()]
    files = [os.path.abspath(os.path.expanduser(path)) for path in choices]
    return ask(run, {"tasks": names, "choices": files, **given}, chosen)


@tmerge.command()
@click.argument("run")
@click.option("--repo", required=True, metavar="ORG/NAME", help="Repository on the Hub; made when it is not there.")
@click.option("--model", default="model", metavar="FOLDER", help="Which model of a run with several alphas.")
@click.option("--public", is_flag=True, help="A new repository is public; otherwise it is private.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def push(run: str, repo: str, model: str, public: bool, yes: bool) -> int:
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
        error.show()
        return 2
    except TmergeError as error:
        return complain(error)
    except BrokenPipeError:
        hush()
        return 0
    except Exception as error:
        if os.environ.get("TMERGE_DEBUG"):
            raise
        say(f"error: unexpected {type(error).__name__}: {error}")
        say("  next: this is a bug in tmerge; TMERGE_DEBUG=1 shows the traceback to report")
        return 1
