"""The recipe's section `evaluation`: what is measured after the merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from tmerge_tui.recipe.safety import Safety
from tmerge_tui.recipe.section import Section, option

GENERAL_TASKS = ("arc_easy", "commonsense_qa", "piqa", "social_iqa", "winogrande")  # the paper's table of them
ENGLISH = "english"  # the general text that ships
EVERY = "all kinds"  # of projections, where one strength is for all


class ChoiceSet(Section):
    """A file of multiple-choice questions, answered by log-likelihood."""

    path: str = option(
        ..., "local .jsonl file of questions: context, choices, label; or as XCOPA has them", "scores", min_length=1
    )
    name: str | None = option(None, "what the report calls it; the file's name when empty", "scores")
    cause: str = option(
        "", "XCOPA: the words between premise and cause in the file's language, such as because", "scores"
    )
    effect: str = option("", "XCOPA: the words between premise and effect, such as so", "scores")

    @property
    def title(self) -> str:
        return self.name or Path(self.path).stem


def _choice_set(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _task_names(value: Any) -> Any:
    """`general` stands for the paper's five; each task once."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        return value
    names: list[Any] = []
    for each in given:
        names += [one for one in (GENERAL_TASKS if each == "general" else (each,)) if one not in names]
    return names


Tasks = Annotated[tuple[str, ...], BeforeValidator(_task_names)]


class General(Section):
    """Text and tasks of another kind than the user's: what a merge may have cost."""

    texts: str = option(
        ENGLISH,
        "text of another kind than yours: a file, a folder, a Hub data set, or english, public-domain text that ships",
        "scores",
        min_length=1,
    )
    revision: str | None = option(None, "branch, tag or commit of that data set", "scores", expert=True)
    config_name: str | None = option(None, "configuration of that data set", "scores", expert=True)
    split: str = option("train", "split of that data set", "scores", expert=True)
    column: str | None = option(
        None, "field that holds the text; found by itself when it is clear", "scores", expert=True
    )
    samples: int = option(200, "general texts to measure on", "scores", unit="samples", expert=True, ge=2, le=10**9)
    tasks: Tasks = option(
        (),
        "general tasks of lm-evaluation-harness; general stands for the paper's five; needs the extra eval",
        "nothing",
    )
    bound: float | None = option(
        None,
        "with select: validation, the most that may be lost on general text: what loses more is not chosen",
        "nothing",
        unit="bits per byte",
        ge=0,
    )
    validation: int = option(
        100, "general texts that the bound is tried on, none of those measured on", "nothing", unit="samples",
        expert=True, ge=2, le=10**9,
    )  # fmt: skip

    @property
    def shipped(self) -> bool:
        """Whether it is the English text of assets/general."""
        return self.texts == ENGLISH


class Attribution(Section):
    """Where a gain comes from: held-out tokens that the source told much better, against the others."""

    threshold: float = option(
        1.0, "a token was told much better by the source when it needed so many bits less", "nothing",
        unit="bits per token", ge=0, le=100,
    )  # fmt: skip


def _general(value: Any) -> Any:
    """true is the text that ships, a name the text of that name."""
    return {"texts": value} if isinstance(value, str) else _switch(value)


def _switch(value: Any) -> Any:
    return ({} if value else None) if isinstance(value, bool) else value


class Evaluation(Section):
    """Measured on the hold-out, and on benchmarks when there are any."""

    batch_size: int = option(
        16, "samples in one forward pass; halved when memory runs out", "nothing", expert=True, ge=1
    )
    resamples: int = option(1000, "bootstrap resamples behind the 95 % intervals", "nothing", expert=True, ge=100)
    margin: float = option(
        0.001, "smallest difference of interest: below it two models are called equal", "nothing", unit="bits per byte",
        ge=0, le=1,
    )  # fmt: skip
    source: bool = option(True, "measure the source model too", "nothing", expert=True)
    controls: tuple[Literal["shrink", "permuted"], ...] = option(
        ("shrink", "permuted"),
        "placebos measured beside the result: rows shrunk, plans with permuted source channels",
        "nothing",
    )
    controls_at: Literal["chosen", "all"] = option(
        "chosen",
        "of several strengths, measure on the hold-out the one that validation text chooses, with its placebos; or all",
        "nothing",
        expert=True,
    )
    prompts: tuple[str, ...] = option((), "prompts continued by target and result, side by side", "scores")
    max_new_tokens: int = option(40, "length of a continuation", "scores", unit="tokens", expert=True, ge=1)
    choices: tuple[Annotated[ChoiceSet, BeforeValidator(_choice_set)], ...] = option(
        (), "files of multiple-choice questions (.jsonl) that target and result answer"
    )
    tasks: Tasks = option(
        (), "tasks of lm-evaluation-harness, by name or as task files (.yaml); needs the extra eval", "nothing"
    )
    include_path: str | None = option(None, "folder of more task files for the harness", "scores", expert=True)
    limit: int | None = option(
        None, "questions of each task at most; such results are partial", "scores", unit="questions", expert=True, ge=1
    )
    num_fewshot: int | None = option(
        None, "examples before each question; as the task says when empty", "scores", expert=True, ge=0
    )
    benchmark_source: bool = option(False, "run the benchmarks on the source too", "nothing", expert=True)

    general: Annotated[General | None, BeforeValidator(_general)] = option(
        None, "text and tasks of another kind than yours: what was forgotten; true for the English text that ships"
    )
    attribution: Annotated[Attribution | None, BeforeValidator(_switch)] = option(
        None, "where a gain comes from: what share of the gap to the source was closed where the source is much better"
    )
    safety: Annotated[Safety | None, BeforeValidator(_switch)] = option(
        None, "prompts that a careful assistant declines, and harmless twins; true for those that ship"
    )

    @model_validator(mode="after")
    def _names(self) -> Evaluation:
        titles = [choices.title for choices in self.choices]
        if len(set(titles)) != len(titles):
            raise ValueError("choices: two files of one name; give each a name of its own")
        return self

    @property
    def all_tasks(self) -> dict[str, str]:
        """Tasks of the harness, the general ones last -> the option that names them."""
        general = () if self.general is None else self.general.tasks
        named = dict.fromkeys(self.tasks, "evaluation.tasks")
        return named | {task: "evaluation.general.tasks" for task in general if task not in named}

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of everything that is asked beyond the hold-out."""
        return (*(choices.title for choices in self.choices), *self.all_tasks)
