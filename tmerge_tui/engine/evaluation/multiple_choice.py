"""Multiple-choice questions by log-likelihood: the built-in benchmark, from a .jsonl file and nothing else.

A line is {"context", "choices": [...], "label": index}, or one of XCOPA's {"premise", "choice1", "choice2", "question",
"label"}. The model answers with the choice of least bits per byte behind the context; by bytes, because a choice is not
better for being shorter, nor for falling into fewer tokens of one model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.records import shown, whole_text
from tmerge_tui.engine.data.text_files import records
from tmerge_tui.engine.evaluation.bits_per_byte import Text, losses, tokens
from tmerge_tui.errors import DataError
from tmerge_tui.models.config import positions
from tmerge_tui.recipe.evaluation import ChoiceSet

EXPECTED = '{"context", "choices", "label"} or {"premise", "choice1", "choice2", "question", "label"}'


@dataclass(frozen=True)
class Question:
    context: str
    choices: tuple[str, ...]
    label: int  # index of the right one


def read_choices(settings: ChoiceSet) -> list[Question]:
    """The questions of a file. Raises DataError that names the line."""
    path = Path(settings.path)
    try:
        rows, _ = records(path)
    except DataError as error:
        raise DataError(error.found, EXPECTED, error.hint) from error
    except OSError as error:
        raise DataError(f"{path}: {error}", "a .jsonl file of questions", "check evaluation.choices") from error
    found = [_question(row, f"{path}, {where}", settings) for where, row in rows]
    if len(found) < 2:
        raise DataError(f"{path}: {len(found)} questions", "at least 2", "give a longer file")
    return found


def answer(
    model: Any,  # a causal language model in eval mode
    tokenizer: Any,
    questions: Sequence[Question],
    batch_size: int = 16,
    warn: Callable[[str], None] = lambda message: None,
) -> list[int]:
    """1 for each question answered rightly, 0 for the others; of equal choices the first counts as the answer.

    A context that is longer than the model takes loses its beginning, and `warn` says how many. Raises DataError when a
    choice has no token of its own, MemoryShortage, and ModelError for a tokenizer without offsets.
    """
    longest = positions(model.config)
    texts, cut = [], 0
    for question in questions:
        for choice in question.choices:
            text, shortened = choice_of(question.context, choice, tokenizer, longest)
            texts.append(text)
            cut += shortened
    if cut:
        warn(f"{cut} contexts are longer than the model's {longest} tokens: their beginnings were left out")
    bits = iter(losses(model, texts, batch_size, warn))
    right = []
    for question in questions:
        told = [next(bits) / len(choice.encode()) for choice in question.choices]
        right.append(int(told.index(min(told)) == question.label))
    return right


def choice_of(context: str, choice: str, tokenizer: Any, longest: int | None) -> tuple[Text, bool]:
    """The tokens of context and choice, those that reach into the choice scored; and whether the context was cut."""
    glue = "" if not context or context[-1].isspace() or choice[:1].isspace() else " "
    ids, offsets = tokens(context + glue + choice, tokenizer)
    first = next((at for at, (_, end) in enumerate(offsets) if end > len(context)), len(ids))
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    spare = 0 if longest is None else max(len(prefix) + len(ids) - longest, 0)
    ids, first = ids[spare:], first - spare
    if not prefix:
        first = max(first, 1)  # nothing stands before the first token
    if first < 0 or first >= len(ids):
        raise DataError(
            f"choice {choice[:40]!r} leaves no token to score behind its context",
            "choices that are not empty and that the model can hold",
            "correct the file in evaluation.choices",
        )
    return Text((*prefix, *ids), first + len(prefix), len(choice.encode())), spare > 0


def _question(row: Mapping[str, Any], where: str, settings: ChoiceSet) -> Question:
    question = _copa(row, settings) if "premise" in row else _generic(row)
    if question is None:
        raise DataError(f"{where}: {shown(row)}", EXPECTED, "every choice is text, label the index of the right one")
    return question


def _generic(row: Mapping[str, Any]) -> Question | None:
    context, choices = row.get("context"), row.get("choices")
    if not isinstance(context, str) or not isinstance(choices, list):
        return None
    return _checked(context, choices, row.get("label"))


def _copa(row: Mapping[str, Any], settings: ChoiceSet) -> Question | None:
    """The premise and, where the file's language was given a word for it, that word in place of the full stop."""
    premise, asked = row.get("premise"), row.get("question")
    if not isinstance(premise, str) or asked not in ("cause", "effect"):
        return None
    choices = [row.get("choice1"), row.get("choice2")]
    word = settings.cause if asked == "cause" else settings.effect
    if word:
        premise = f"{premise.rstrip().rstrip('.。')} {word}"
        choices = [c[:1].lower() + c[1:] if isinstance(c, str) else c for c in choices]
    return _checked(premise, choices, row.get("label"))


def _checked(context: str, choices: Sequence[Any], label: Any) -> Question | None:
    usable = len(choices) >= 2 and all(isinstance(choice, str) and choice.strip() for choice in choices)
    if not usable or not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        return None
    return Question(whole_text(context), tuple(map(whole_text, choices)), label)
