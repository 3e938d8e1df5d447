"""The optional extras: what each adds, whether it is there, and how it is had. Imports none of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tmerge_tui.errors import ExtraMissing


@dataclass(frozen=True)
class Extra:
    module: str  # as it is imported
    package: str  # as it is installed
    adds: str  # what it is for


EXTRAS = {
    "eval": Extra("lm_eval", "lm-eval", "tasks of lm-evaluation-harness"),
    "lora": Extra("peft", "peft", "LoRA adapters as models, and low-rank training"),
    "ray": Extra("ray", "ray", "transport plans over several GPUs and machines"),
}
# option of the recipe -> (extra, the value that needs it; None: any value but nothing)
NEEDED_BY: dict[str, tuple[str, str | None]] = {
    "evaluation.tasks": ("eval", None),
    "evaluation.general.tasks": ("eval", None),
    "adaptation.method": ("lora", "lora"),
    "adaptation.teacher.tune": ("lora", "lora"),
    "transport.executor": ("ray", "ray"),
}


def present(name: str) -> bool:
    """Whether the extra can be imported by this process; nothing is imported to find out.

    The screens of the binary run without the engine: they ask their helper process instead.
    """
    return importlib.util.find_spec(EXTRAS[name].module) is not None


def how_to_get(name: str) -> str:
    """What a person does to have the extra."""
    command = f'pip install "tmerge-tui[{name}]"'
    if getattr(sys, "frozen", False):
        return f"this single file comes without {EXTRAS[name].package}; tmerge as a Python package has it: {command}"
    return command


def needed_by(option: str, value: object) -> str:
    """The extra that this value of an option needs; empty when none."""
    name, only = NEEDED_BY.get(option, ("", None))
    return name if value and only in (None, value) else ""


def missing(what: str, name: str, why: str = "not installed") -> ExtraMissing:
    extra = EXTRAS[name]
    return ExtraMissing(
        f"{what}: the package {extra.package} is needed and is {why}",
        f"the extra {name} ({extra.adds})",
        how_to_get(name),
    )


def require(what: str, name: str) -> None:
    """Raises ExtraMissing, naming `what` needs the extra, when it is not there."""
    if not present(name):
        raise missing(what, name)


@contextmanager
def imported(what: str, name: str) -> Iterator[None]:
    """For the block that imports the extra. Raises ExtraMissing for an installation that is absent or broken."""
    require(what, name)
    try:
        yield
    except ImportError as error:
        raise missing(what, name, f"broken here ({error})") from error
