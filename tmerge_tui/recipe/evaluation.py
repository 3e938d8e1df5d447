"""The recipe's section `evaluation`: what is measured after the merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from tmerge_tui.recipe.section import Section, option

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
    tasks: tuple[str, ...] = option(
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

    @model_validator(mode="after")
    def _names(self) -> Evaluation:
        titles = [choices.title for choices in self.choices]
        if len(set(titles)) != len(titles):
            raise ValueError("choices: two files of one name; give each a name of its own")
        return self

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of everything that is asked beyond the hold-out."""
        return (*(choices.title for choices in self.choices), *self.tasks)
