"""Tasks of lm-evaluation-harness (the optional extra `eval`), run on a model that is loaded already.

Tasks are names the harness knows, names from a folder of task files (`include_path`), or paths of task files. Importing
the harness and indexing its tasks takes seconds, so both wait until a recipe names tasks.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tmerge_tui.errors import DataError
from tmerge_tui.extras import imported, present
from tmerge_tui.recipe.evaluation import Evaluation
from tmerge_tui.run_folder import key


def problems(evaluation: Evaluation) -> list[str]:
    """What keeps the tasks of `evaluation.tasks` and `evaluation.general.tasks` from running, before any work: no such
    file, no such task, no data for it. That the harness itself is not installed is for `check` to say."""
    asked = evaluation.all_tasks
    if not asked or not present("eval"):
        return []
    folder = evaluation.include_path
    if folder is not None and not Path(folder).is_dir():
        return [f"evaluation.include_path: found no folder {folder}"]
    absent = [task for task in asked if is_file(task) and not Path(task).is_file()]
    if absent:
        return [f"{asked[task]}: found no file {task}" for task in absent]
    manager = _tasks(evaluation)
    known = set(manager.all_tasks)
    unknown = [task for task in asked if not is_file(task) and task not in known]
    found = [f"{asked[task]}: {task} is no task of lm-evaluation-harness {version()}" for task in unknown]
    there = [(task, option) for task, option in asked.items() if task not in unknown]
    return found + [said for task, option in there if (said := _unloadable(task, option, manager))]


def _unloadable(task: str, option: str, manager: Any) -> str:
    """Why a task cannot be had, its data set included, which is fetched for that; empty when it is there."""
    from lm_eval.tasks import get_task_dict

    try:
        get_task_dict([task], manager)
    except Exception as error:  # the harness, its tasks and data sets raise what they like
        first = str(error).strip().splitlines()
        return (
            f"{option}: {task} cannot be loaded: {type(error).__name__}: {first[0] if first else ''}; leave it "
            "out, connect to the Hub, or give a task file with its data on this disk"
        )
    return ""


def is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def version() -> str:
    return importlib.metadata.version("lm_eval")


def identity(task: str, evaluation: Evaluation) -> list[Any]:
    """All that the outcome of a task depends on besides the model: the harness, its settings, and the files of the
    folder that the task comes from, its data among them when that lies there too."""
    folders = [Path(task).parent] if is_file(task) else []
    folders += [Path(evaluation.include_path)] if evaluation.include_path is not None else []
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return ["lm-eval", version(), task, key(states), evaluation.limit, evaluation.num_fewshot]


def run_task(model: Any, tokenizer: Any, task: str, evaluation: Evaluation, seed: int) -> list[dict[str, Any]]:
    """The metrics of one task, or of every task of a group, as plain data.

    Each is {"task", "metric", "value", "stderr" | None, "questions" | None, "documents": its value for every question |
    None where the metric is no mean over questions, "higher_is_better": bool | None}. Raises DataError for whatever
    the harness cannot do: a data set that is neither here nor reachable, a file it does not understand; ExtraMissing.
    """
    with imported("evaluation.tasks", "eval"):
        import lm_eval
        from lm_eval.models.huggingface import HFLM

    try:
        # what the tokenizer and the model do at a text's beginning is left to the harness, as in its own runs
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=evaluation.batch_size)
        found = lm_eval.simple_evaluate(
            wrapped,
            tasks=[task],
            num_fewshot=evaluation.num_fewshot,
            limit=evaluation.limit,
            task_manager=_tasks(evaluation),
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except Exception as error:  # the harness, its tasks and data sets raise what they like
        raise DataError(
            f"lm-evaluation-harness cannot run {task}: {type(error).__name__}: {error}",
            "a task whose data set is on this disk or can be reached",
            "its output is in worker.log; without a network use task files with data on this disk",
        ) from error
    return list(_rows(found))


def _rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    samples = found.get("samples") or {}
    higher = found.get("higher_is_better") or {}
    for task, values in found["results"].items():
        documents = _documents(samples.get(task) or [])
        for name, value in values.items():
            metric, comma, kind = name.partition(",")
            if (
                not comma
                or metric.endswith("_stderr")
                or isinstance(value, bool)
                or not isinstance(value, (int, float))
            ):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            each = documents.get((metric, kind))
            if each is not None and not math.isclose(sum(each) / len(each), value, abs_tol=1e-9):
                each = None  # a metric of the whole set, such as F1: no question has a share in it
            counted = (found.get("n-samples") or {}).get(task) or {}
            yield {
                "task": task,
                "metric": metric if kind == "none" else f"{metric} ({kind})",
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
                "questions": counted.get("effective"),
                "documents": each,
                "higher_is_better": (higher.get(task) or {}).get(metric),
            }


def _documents(samples: list[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """(metric, filter) -> its value for each question, in the order of the data set."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        kind = str(sample.get("filter", "none"))
        for metric in sample.get("metrics") or ():
            value = sample.get(metric)
            if isinstance(value, (int, float)):
                found[metric, kind].append(float(value))
    return dict(found)


def _tasks(evaluation: Evaluation) -> Any:
    """The harness's index of tasks; its own 14,000 only when a name asks for them."""
    with imported("evaluation.tasks", "eval"):
        from lm_eval.tasks import TaskManager

    folder = evaluation.include_path
    own = TaskManager(include_path=folder, include_defaults=False)
    if all(is_file(task) or task in own.all_tasks for task in evaluation.all_tasks):
        return own
    return TaskManager(include_path=folder)
