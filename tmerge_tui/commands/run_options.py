"""The options that every command which runs a recipe has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tmerge_tui.commands.completion import Setting

TRUST = click.option("--trust", is_flag=True, help="Let the Python code of models run that the recipe trusts.")
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
    click.option(
        "--set",
        "changes",
        multiple=True,
        type=Setting(),
        metavar="KEY=VALUE",
        help="Change the recipe: fusion.alpha=0.05.",
    ),
    TRUST,
]


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command
