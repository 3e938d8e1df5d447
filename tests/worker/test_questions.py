"""Answers that need a model in memory. Reference: the continuation of the same model loaded by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.pair import make_pair
from tests.tiny import make_model, make_text
from tmerge_tui.engine.data import corpus
from tmerge_tui.engine.data.corpus import read_corpus
from tmerge_tui.events import StageProgressed, decode
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.generation import continue_prompts
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe import Calibration, dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import questions
from tmerge_tui.worker.helper import Cancelled, Request


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    yield
    questions._runnable.cache_clear()


def ask(run: Path, **args: Any) -> Request:
    return Request(1, "generate", {"run": str(run), "prompt": "Two rivers", **args})


def finished(tmp_path: Path, **changes: Any) -> Path:
    """A run folder with a recipe and a model in it."""
    mapping = {**make_pair(tmp_path), **changes}
    run = RunDir.create(mapping["output"])
    run.recipe.write_text(dump_recipe(make_recipe(mapping)))
    make_model(run.model, "llama", seed=4)
    return run.path


@pytest.mark.parametrize("model", ["target", "fused"])
def test_the_wizard_writes_what_the_report_does(tmp_path: Path, model: str) -> None:
    run = finished(tmp_path)
    folder = tmp_path / "target" if model == "target" else run / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (expected,) = continue_prompts(loaded, load_tokenizer(folder), ["Two rivers"], questions.NEW_TOKENS)
    answer = questions.generate(ask(run, model=model))
    assert answer["text"] == expected
    assert 0 < answer["tokens"] <= questions.NEW_TOKENS and answer["seconds"] > 0


def test_a_cancelled_question_ends_at_the_next_token(tmp_path: Path) -> None:
    request = ask(finished(tmp_path), model="fused")
    request.stop.set()
    with pytest.raises(Cancelled):
        questions.generate(request)


def test_the_recipes_memory_holds_for_both_models_together(tmp_path: Path) -> None:
    facts = read_facts(make_model(tmp_path / "known"), "m")
    whole = facts.weight_bytes(torch.float32)
    room = 2 * whole - 2  # for all of one and not quite all of two
    run = finished(tmp_path, memory=room)
    answer = questions.generate(ask(run, model="fused"))
    loaded, _ = questions._runnable(str(run / "model"), False, "cpu", room)
    assert any(parameter.is_meta for parameter in loaded.parameters())
    plain = questions.generate(ask(finished(tmp_path / "plain"), model="fused"))
    assert answer["text"] == plain["text"]


def test_reading_says_how_far_it_is_and_a_cancelled_look_is_not_lost(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "TOLD", 10)
    text = make_text(tmp_path / "text.txt", 40)
    heard: list[str] = []
    request = Request(1, "preview", {"calibration": {"path": str(text), "samples": 20, "holdout": 5}})
    request.told = heard.append
    request.stop.set()
    with pytest.raises(Cancelled):
        questions.preview(request)
    said = [line.event for line in map(decode, heard) if line is not None]
    assert [(event.done, event.total) for event in said if isinstance(event, StageProgressed)] == [
        (done, 40) for done in (0, 10, 20, 30)
    ]
    monkeypatch.setattr(questions, "read_pool", lambda *given: pytest.fail("read again"))
    again = Request(2, "preview", {"calibration": {"path": str(text), "samples": 30, "holdout": 5}})
    assert questions.preview(again)["calibration"] == 30


def test_a_file_is_read_once_for_all_numbers_and_again_when_it_has_changed(tmp_path: Path, monkeypatch) -> None:
    text = make_text(tmp_path / "text.txt", 40)
    read: list[str] = []
    whole = questions.read_pool
    monkeypatch.setattr(questions, "read_pool", lambda *given: read.append("once") or whole(*given))
    for samples in (10, 20, 30):
        made = Calibration(path=str(text), samples=samples, holdout=5)
        assert questions._corpus(made, 0) == read_corpus(made, 0)
    assert len(read) == 1
    text.write_text(text.read_text() + "one more line of text\n")
    os.utime(text, ns=(1, 1))
    questions._corpus(Calibration(path=str(text), samples=10, holdout=5), 0)
    assert len(read) == 2
