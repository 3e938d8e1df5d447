"""Answers to multiple-choice questions against log-likelihoods taken with F.cross_entropy; files a user may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_model
from tmerge_tui.engine.evaluation.multiple_choice import Question, answer, read_choices
from tmerge_tui.errors import DataError
from tmerge_tui.recipe.evaluation import ChoiceSet

COPA = [
    {"premise": "The wheel had stopped.", "choice1": "The river was dry.", "choice2": "The miller sang.",
     "question": "cause", "label": 0, "idx": 0},
    {"premise": "She lit seven lamps.", "choice1": "The cat left.", "choice2": "The room was bright.",
     "question": "effect", "label": 1, "idx": 1},
]  # fmt: skip
QUESTIONS = [
    Question("Two rivers meet where the", ("old road bends.", "cat is grey.", "word"), 0),
    Question("Nobody asked the miller", ("why the wheel had stopped.", "x"), 1),
    Question("Bread, salt,", ("water", "lamps, nine doors and one grey cat that must wait"), 0),
    Question("In the beginning\n", ("was the word", "naïve café — ŋ"), 1),
    Question("", ("A small boat can cross.", "Boat small a cross can."), 0),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = make_model(tmp_path_factory.mktemp("choices") / "model")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def by_hand(model: Any, tokenizer: Any, question: Question) -> int:
    """The choice of least loss per byte; context and choice tokenized together, as no token of these spans both."""
    told = []
    for choice in question.choices:
        glue = "" if not question.context or question.context[-1].isspace() else " "
        before = [0, *tokenizer(question.context, add_special_tokens=False)["input_ids"]]
        ids = [0, *tokenizer(question.context + glue + choice, add_special_tokens=False)["input_ids"]]
        assert ids[: len(before)] == before
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        loss = F.cross_entropy(logits[len(before) - 1 : -1], torch.tensor(ids[len(before) :]), reduction="sum")
        told.append(float(loss) / len(choice.encode()))
    return told.index(min(told))


def test_the_answer_is_the_choice_of_least_loss_per_byte(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    expected = [int(by_hand(model, tokenizer, question) == question.label) for question in QUESTIONS]
    assert answer(model, tokenizer, QUESTIONS, batch_size=3) == expected
    turned = [Question(q.context, q.choices, by_hand(model, tokenizer, q)) for q in QUESTIONS]
    assert answer(model, tokenizer, turned) == [1] * len(QUESTIONS)


def test_a_long_context_loses_its_beginning_and_says_so(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    long = Question("word " * 300 + "Two rivers meet where the", QUESTIONS[0].choices, 0)
    warnings: list[str] = []
    answer(model, tokenizer, [long, QUESTIONS[0]], warn=warnings.append)
    assert warnings == ["3 contexts are longer than the model's 256 tokens: their beginnings were left out"]


def test_a_choice_longer_than_the_model(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="no token to score"):
        answer(*loaded, [Question("a", ("word " * 300, "b"), 0)])


def test_without_a_begin_of_text_token_an_empty_context_still_works(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = loaded
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path / "other"))
    tokenizer.bos_token = None
    assert set(answer(model, tokenizer, QUESTIONS)) <= {0, 1}


def write(path: Path, rows: list[Any]) -> ChoiceSet:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return ChoiceSet(path=str(path))


def test_both_kinds_of_line(tmp_path: Path) -> None:
    generic = {"context": "Bread, salt,", "choices": ["water", "doors", "cats"], "label": 0}
    found = read_choices(write(tmp_path / "q.jsonl", [*COPA, "", generic]))
    assert [q.context for q in found] == ["The wheel had stopped.", "She lit seven lamps.", "Bread, salt,"]
    assert [q.label for q in found] == [0, 1, 0]
    assert found[1].choices == ("The cat left.", "The room was bright.")


def test_words_between_premise_and_choice(tmp_path: Path) -> None:
    plain = write(tmp_path / "q.jsonl", COPA)
    found = read_choices(plain.model_copy(update={"cause": "because", "effect": "so"}))
    assert [q.context for q in found] == ["The wheel had stopped because", "She lit seven lamps so"]
    assert found[0].choices == ("the river was dry.", "the miller sang.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ([1], "line 2"),
        ({"context": "a", "choices": ["b"], "label": 0}, "line 2"),
        ({"context": "a", "choices": ["b", ""], "label": 0}, "line 2"),
        ({"context": "a", "choices": ["b", "c"], "label": 2}, "line 2"),
        ({"context": "a", "choices": ["b", "c"], "label": True}, "line 2"),
        ({"context": "a", "choices": ["b", "c"]}, "line 2"),
        ({**COPA[0], "question": "why"}, "line 2"),
        ({**COPA[0], "choice2": None}, "line 2"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as failure:
        read_choices(write(tmp_path / "q.jsonl", [COPA[0], row]))
    assert "premise" in failure.value.expected


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_choices(ChoiceSet(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(DataError, match="1 questions"):
        read_choices(write(tmp_path / "one.jsonl", COPA[:1]))
