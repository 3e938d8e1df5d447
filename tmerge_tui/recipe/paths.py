"""Paths in a recipe: what is a folder and what a Hub id, and every path made absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmerge_tui.recipe.recipe import ModelChoice, Recipe

TEXTS = (".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".gz", ".parquet")
GGUF = ".gguf"
SPLIT = re.compile(r"^(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)  # llama-gguf-split's names


def is_folder(name: str) -> bool:
    """Whether `name` means a folder (or a GGUF file) and not a Hub id: it looks like a path, or it is one."""
    if name.startswith(("/", "./", "../", "~", ".\\", "..\\")) or name in (".", ".."):
        return True
    path = Path(name)
    if is_gguf(path) and path.is_file():
        return True
    return path.is_absolute() or path.expanduser().is_dir()  # absolute: C:\models


def is_text_file(name: str) -> bool:
    """Whether `name` means a file or folder of text and not a data set of the Hub."""
    return name.count("/") != 1 or Path(name).expanduser().exists() or is_folder(name) or name.lower().endswith(TEXTS)


def is_gguf(name: str | Path) -> bool:
    """Whether a path or a file's name says that it is a GGUF file."""
    return str(name).lower().endswith(GGUF)


def hub_file(name: str) -> tuple[str, str | None]:
    """(repository, file) of `org/name:file.gguf`; of any other name itself and None."""
    repo, _, file = name.partition(":")
    return (repo, file) if is_gguf(file) and not is_folder(name) else (name, None)


def gguf_parts(file: str) -> tuple[str, ...]:
    """The names of all files that the model in `file` consists of: of a split model as many as its name says."""
    found = SPLIT.match(file)
    if found is None:
        return (file,)
    count = int(found["count"])
    return tuple(f"{found['stem']}-{no:05d}-of-{count:05d}{file[-len(GGUF) :]}" for no in range(1, count + 1))


def task_name(task: str) -> str:
    """A task of the harness by its name, or the absolute path of a task file."""
    return str(Path(task).expanduser().absolute()) if task.endswith((".yaml", ".yml")) else task


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Relative ones are taken from the current directory."""

    def absolute(value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser().absolute())

    def model(choice: ModelChoice) -> ModelChoice:
        return choice.model_copy(update={"model": absolute(choice.model)}) if choice.is_folder else choice

    calibration = recipe.calibration.model_copy(
        update={"path": absolute(recipe.calibration.path), "holdout_path": absolute(recipe.calibration.holdout_path)}
    )
    fusion = recipe.fusion
    if fusion.reference is not None and is_folder(fusion.reference):
        fusion = fusion.model_copy(update={"reference": absolute(fusion.reference)})
    measured, general, safety = recipe.evaluation, recipe.evaluation.general, recipe.evaluation.safety
    if general is not None:
        texts = absolute(general.texts) if is_text_file(general.texts) and not general.shipped else general.texts
        tasks = tuple(task_name(task) for task in general.tasks)
        general = general.model_copy(update={"texts": texts, "tasks": tasks})
    evaluation = measured.model_copy(
        update={
            "choices": tuple(c.model_copy(update={"path": absolute(c.path)}) for c in measured.choices),
            "tasks": tuple(task_name(task) for task in measured.tasks),
            "include_path": absolute(measured.include_path),
            "general": general,
            "safety": safety and safety.model_copy(update={"path": absolute(safety.path)}),
        }
    )
    adaptation = recipe.adaptation
    if adaptation is not None:
        adaptation = adaptation.model_copy(update={"path": absolute(adaptation.path)})
    return recipe.model_copy(
        update={
            "adaptation": adaptation,
            "source": model(recipe.source),
            "target": model(recipe.target),
            "calibration": calibration,
            "fusion": fusion,
            "evaluation": evaluation,
            "output": absolute(recipe.output),
        }
    )
