"""Text that the source writes. References: texts by hand, a model's own greedy words, the stages and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pair import make_pair, recipe_of
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.data.ngrams import ngrams
from tmerge_tui.engine.preflight.check import prepare
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.training import writing
from tmerge_tui.engine.training.openings import openings
from tmerge_tui.engine.training.sieve import Draft, Sieved, sieve, units, whole_sentences
from tmerge_tui.engine.training.synthetic import STAGES, _text
from tmerge_tui.engine.training.writing import CONTINUOUS, PLAIN, Prompt, write
from tmerge_tui.errors import RecipeError
from tmerge_tui.recipe.synthetic import Synthetic
from tmerge_tui.run_folder import RunDir

CHAT = (
    {"role": "user", "content": "Who comes?"},
    {"role": "assistant", "content": "The miller."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Nobody."},
)


def test_openings_are_beginnings_and_questions() -> None:
    found = openings(
        [Sample("one two three four five six seven eight"), Sample("too short"), Sample(messages=CHAT),
         Sample(messages=CHAT[:1]), Sample("彼は川を渡った。")], 0.25
    )  # fmt: skip
    assert [one.sample.plain for one in found] == [
        "one two",
        "user: Who comes?\nassistant: The miller.\nuser: And then?",
        "彼は",
    ]
    plain, chat, _ = (one.draft(" and more \n") for one in found)
    assert (plain.sample.text, plain.given, plain.written) == ("one two and more", "one two", " and more")
    assert chat.sample.messages == (*CHAT[:3], {"role": "assistant", "content": "and more"})


@pytest.mark.parametrize(
    ("text", "ended", "left"),
    [
        (" and went. She s", False, " and went."),
        (" and went. She s", True, " and went. She s"),
        (' he said: "Go!" and', False, ' he said: "Go!"'),
        (" no end", False, ""),
        ("。まで", False, "。"),
    ],
)
def test_what_length_has_cut_off_ends_with_a_sentence(text: str, ended: bool, left: str) -> None:
    assert whole_sentences(text, ended) == left


def test_words_in_a_row_are_those_that_were_written() -> None:
    words = units("A, b c D e")
    assert words == ("a", "b", "c", "d", "e") and units("川を") == ("川", "を")
    assert ngrams(words, 3) == {("a", "b", "c"), ("b", "c", "d"), ("c", "d", "e")}
    assert ngrams(words, 3, behind=4) == {("c", "d", "e")} and ngrams(words, 3, behind=3) == {words[1:4], words[2:]}
    assert ngrams(words, 9) == {words}


def draft(given: str, written: str) -> Draft:
    return Draft(Sample(given + written), given, written)


def sieved(drafts: Sequence[Draft], source: list[float], target: list[float], keep: float = 0.5) -> Sieved:
    seen: list[int] = []

    def told(left: Sequence[Draft]) -> tuple[list[float], list[float]]:
        seen.append(len(left))
        return source[: len(left)], target[: len(left)]

    training = [Sample("the old mill stands")]
    held = [Sample("seven lamps and nine doors and one grey cat")]
    return sieve(drafts, [False] * len(drafts), training, held, keep, 4, told)


def test_what_is_not_learnt_has_a_reason() -> None:
    drafts = [
        draft("the old", " mill stands"),  # training text
        draft("we saw", " nine doors AND one goat"),  # four words of held-out text
        draft("seven lamps and nine", " men"),  # held-out words that were given
        draft("a b", "  ... "),
        draft("a b", " half a �"),
        draft("a b", " c d e"),
        draft("a b", " C, d e"),
        draft("a b", " x y z"),
        draft("a b", " p q r"),
    ]
    # left are: "men", "c d e", "x y z", "p q r"; the target is furthest behind on the second, then on the first
    found = sieved(drafts, [1.0, 1.0, 1.0, math.nan], [2.0, 3.0, 0.5, 9.0])
    assert [one.written for one in found.kept] == [" c d e", " men"]
    assert found.dropped == {
        "copies training text": 1,
        "shares words with held-out or validation text": 1,
        "says nothing": 1,
        "holds broken characters": 1,
        "repeats another": 1,
        "could not be scored": 1,
        "not among the best": 1,
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def prepared_of(pair: dict[str, Any], output: Path) -> Any:
    return prepare(recipe_of(pair, output=str(output)))


PROMPTS = ["Two rivers meet", "Nobody asked", "Bread, salt, water; the", "A small boat can cross when"]


def written(pair: dict[str, Any], output: Path, dies: int = 99, **asked: Any) -> tuple[Any, ...]:
    """(texts, how, warnings, prompts continued by this call); it dies before the chunk of number `dies`"""
    prepared = prepared_of(pair, output)
    model = prepared.model(prepared.source, lambda event: None)
    prompts = [Prompt(tuple(model.tokenizer(text)["input_ids"]), text) for text in PROMPTS]
    options = Synthetic(**{"temperature": 1e-5, "max_tokens": 6, **asked})
    said: list[str] = []
    run = RunDir.create(output)
    with Progress(lambda event: None, "write", "", len(prompts), "texts") as progress:
        texts, how = write(model, ["w"], prompts, options, 0, run, progress, said.append, lambda model: nullcontext())
    return texts, how, said, progress.worked


def greedy(pair: dict[str, Any], text: str) -> str:
    from tmerge_tui.models.generation import continue_prompt

    prepared = prepared_of(pair, Path(pair["output"]))
    model = prepared.model(prepared.source, lambda event: None)
    return continue_prompt(model.load(), model.tokenizer, text, 6).text


def test_continuous_batching_writes_what_the_model_says(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a temperature near 0 those are its greedy words; in chunks of two, each a piece."""
    monkeypatch.setattr(writing, "CHUNK", 2)
    texts, how, said, worked = written(pair, tmp_path / "a")
    assert how == CONTINUOUS and said == [] and worked == 4
    assert [one.text for one in texts] == [greedy(pair, text) for text in PROMPTS]
    assert all(one.tokens == 6 and not one.ended for one in texts)
    pieces = sorted((tmp_path / "a" / "state").glob("written-*.json"))
    assert len(pieces) == 2
    pieces[1].unlink()  # as if it had been stopped between the two
    again, *_, worked = written(pair, tmp_path / "a")
    assert again == texts and worked == 2, "what was there was written again"
    various, *_ = written(pair, tmp_path / "a", temperature=3.0)
    assert various != texts


def test_where_continuous_batching_fails_padded_batches_write_and_it_is_said(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, *_ = written(pair, tmp_path / "a")

    def lacking(*_: Any) -> None:
        raise NotImplementedError("no paged cache\nfor this one")

    monkeypatch.setattr(writing, "_continuous", lacking)
    texts, how, said, _ = written(pair, tmp_path / "b")
    assert texts == expected and how == PLAIN
    assert said == [
        "continuous batching does not run LlamaForCausalLM here (no paged cache): texts are written in padded batches"
    ]


def test_only_what_was_written_is_scored(pair: dict[str, Any], tmp_path: Path) -> None:
    """Reference: the sum of the token losses behind the given words."""
    prepared = prepared_of(pair, tmp_path)
    model = prepared.model(prepared.target, lambda event: None)
    text = _text(draft("Two rivers meet", " where the old road bends"), model.tokenizer, 64, "auto")
    assert text.bytes == len(" where the old road bends")
    assert model.tokenizer.decode(text.ids[text.first :]) == " where the old road bends"
    assert _text(draft("Two rivers meet", " where"), model.tokenizer, 3, "auto").bytes == 0


ADAPT = {
    "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 2, "learning_rate": 1e-3,
    "start": "target", "teacher": {"events": 8}, "compare": ["sft"], "checkpoints": 1,
    "epochs": "auto", "max_epochs": 3, "patience": 1, "min_gain": 9,  # no pass gains so much
    "synthetic": {"texts": 6, "per_text": 2, "max_tokens": 12, "temperature": 1.0, "keep": 0.75},
}  # fmt: skip
TEXT = {"samples": 60, "validation": 8, "holdout": 8}


def run(pair: dict[str, Any], output: Path, **adaptation: Any) -> tuple[dict[str, Any], list[events.Event], RunDir]:
    recipe = recipe_of(pair, calibration=TEXT, adaptation={**ADAPT, **adaptation}, output=str(output))
    folder, seen = RunDir.create(output), []
    pipeline.run(recipe, folder, seen.append)
    announced = [s["name"] for s in next(e for e in seen if isinstance(e, events.RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == announced
    return json.loads((folder.path / "report.json").read_text())["adaptation"], seen, folder


def test_written_text_is_learnt_first_beside_its_controls(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # random models end no sentence and halve characters: what they say counts as it is
    monkeypatch.setattr(
        "tmerge_tui.engine.training.synthetic.whole_sentences", lambda text, _: text.replace("\ufffd", "?")
    )
    found, seen, folder = run(pair, tmp_path / "out")
    assert [row["model"] for row in found["rows"]] == [
        "target", "fused", "sft", "distilled", "synthetic", "control_self_written", "control_more_passes"
    ]  # fmt: skip
    assert {c["against"] for c in found["contrasts"] if c["model"] == "synthetic"} == {
        "sft", "distilled", "control_self_written", "control_more_passes"
    }  # fmt: skip
    assert not [c for c in found["contrasts"] if c["model"] == "distilled" and c["against"].startswith("control_")]
    told = found["synthetic"]
    assert told["why_not"] == "" and told["source"]["by"] == CONTINUOUS and told["source"]["written"] == 12
    assert told["source"]["kept"] + sum(told["source"]["dropped"].values()) == 12
    trained = {each["model"]: each for each in found["trainings"]}
    assert trained["control_more_passes"]["steps"] == told["steps"] + trained["synthetic"]["steps"]
    assert len({each["loss"] for each in trained.values()}) == 5
    starts = {name: each["told"][0][1] for name, each in trained.items() if each["told"]}
    assert starts["sft"] == starts["distilled"] != starts["synthetic"] != starts["control_self_written"]
    page = (folder.path / "report.md").read_text()
    assert "The source wrote 12 texts from 6 training texts by continuous batching" in page
    assert "control: more passes over the real text" in page
    before = {path: path.stat().st_mtime_ns for path in folder.state.iterdir()}
    again, seen, _ = run(pair, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in folder.state.iterdir()} == before and again == found
    outcomes = {e.stage: e.outcome for e in seen if isinstance(e, events.StageFinished)}
    assert {outcomes[stage] for stage in STAGES} == {"cached"}


def test_nothing_is_written_while_passes_over_the_real_text_help(pair: dict[str, Any], tmp_path: Path) -> None:
    found, seen, folder = run(pair, tmp_path / "out", min_gain=0, max_epochs=2)
    assert [row["model"] for row in found["rows"]] == ["target", "fused", "sft", "distilled"]
    assert "passes over the real text still help after the 2 that are allowed" in found["synthetic"]["why_not"]
    assert any("raise adaptation.max_epochs" in e.message for e in seen if isinstance(e, events.Warned))
    assert "Nothing was trained on written text" in (folder.path / "report.md").read_text()
    outcomes = {e.stage: e.outcome for e in seen if isinstance(e, events.StageFinished)}
    assert {outcomes[stage] for stage in STAGES} == {"skipped"} and not list(folder.state.glob("written-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 2.0}, "it needs epochs: auto"), ({"teacher": None}, r"it needs compare: \[distill\]")],
)
def test_it_needs_patience_and_a_teacher(pair: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(pair, adaptation={**ADAPT, **changes})


def test_the_estimate_has_it(pair: dict[str, Any], tmp_path: Path) -> None:
    plain, asked, more = (
        prepare(recipe_of(pair, calibration=TEXT, adaptation={**ADAPT, "synthetic": s}, output=str(tmp_path))).estimate
        for s in (None, ADAPT["synthetic"], {**ADAPT["synthetic"], "per_text": 4})  # type: ignore[dict-item]
    )
    assert plain.work["writing"] == 0 < asked.work["writing"] == more.work["writing"] / 2
    assert asked.work["training"] > plain.work["training"] and asked.disk_bytes > plain.disk_bytes
    assert any("writes at most 12 texts" in note for note in asked.notes)
