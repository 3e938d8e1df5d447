"""The teacher's cache and its loss. References: events laid into a batch by hand, texts as tokenizers decode them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from tests.engine.pair import make_pair, recipe_of
from tests.tiny import make_tokenizer
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.preflight.check import check
from tmerge_tui.engine.training import teacher
from tmerge_tui.engine.training.arms import Arm, arms, result_arm
from tmerge_tui.engine.training.byte_events import event_loss
from tmerge_tui.engine.training.event_cache import BatchEvents, Events
from tmerge_tui.engine.training.examples import IGNORED, collate, pack_blocks
from tmerge_tui.engine.training.teacher import EventTerm, TeacherCache, check_teacher, read_side, read_teacher
from tmerge_tui.errors import DataError
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.loading import load_model
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe.adaptation import Adaptation, Teacher
from tmerge_tui.run_folder import RunDir

CPU = torch.device("cpu")
TEXTS = [Sample(f"{i} rivers meet where the old road {'bends ' * (i % 3)}to the east") for i in range(10)]
TEMPLATE = "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
CHAT = Sample(messages=({"role": "user", "content": "two rivers"}, {"role": "assistant", "content": "meet here é"}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_pair(tmp_path_factory.mktemp("pair"))


class Bench:
    """A source that counts how often it is loaded, and the target's side, on a run folder of its own."""

    def __init__(self, pair: dict[str, Any], folder: Path) -> None:
        self.run, self.loads = RunDir.create(folder / "run"), 0
        self.facts = {role: read_facts(Path(pair[role]), role) for role in ("source", "target")}
        self.tokenizers = {role: load_tokenizer(Path(pair[role])) for role in ("source", "target")}

        @cache
        def load() -> Any:
            self.loads += 1
            return load_model(self.facts["source"], CPU, torch.float32, None, lambda event: None)

        self.load = load

    def read(
        self,
        samples: Sequence[Sample] = tuple(TEXTS),
        content: Sequence[Any] = ("w",),
        inside: Any = nullcontext,
        **options: Any,
    ) -> TeacherCache:
        self.load.cache_clear()
        source = LoadedModel("source", self.facts["source"], self.tokenizers["source"], self.load, CPU, torch.float32)
        theirs, ours = (self.side(role, samples) for role in ("source", "target"))
        return read_teacher(
            source, content, theirs, ours, samples, Teacher(**options), "auto", 3, self.run, lambda event: None,
            inside=inside,
        )  # fmt: skip

    def side(self, role: str, samples: Sequence[Sample]) -> teacher.Reading:
        return read_side(samples, self.tokenizers[role], self.facts[role].vocab, 0, "auto")


@pytest.fixture
def bench(pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(teacher, "CHUNK_SAMPLES", 4)
    return Bench(pair, tmp_path)


def test_texts_are_read_once_and_only_a_missing_chunk_again(bench: Bench) -> None:
    first = bench.read()
    assert len(first.pieces) == 3 and len(first.events) == len(TEXTS) and bench.loads == 1
    assert all(len(told.places) > 5 for told in first.events)
    assert bench.read().pieces == first.pieces and bench.loads == 1, "the source is loaded for nothing"
    kept = [path.stat().st_mtime_ns for path in first.pieces]
    first.pieces[1].unlink()
    again = bench.read()
    assert bench.loads == 2
    assert [path.stat().st_mtime_ns == time for path, time in zip(again.pieces, kept, strict=True)] == [1, 0, 1]
    for a, b in zip(first.events, again.events, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"content": ("tuned",)}, True),
        ({"events": 8}, True),
        ({"positions": "every"}, True),
        ({"samples": TEXTS[:9]}, True),
        ({"samples": [*TEXTS[:9], Sample("another text")]}, True),
        ({"batch_size": 2}, False),
    ],
)
def test_the_key_names_all_that_the_events_depend_on(bench: Bench, change: dict[str, Any], other: bool) -> None:
    assert (bench.read().key != bench.read(**change).key) == other


def test_the_term_is_the_loss_of_events_laid_into_the_batch_by_hand(bench: Bench) -> None:
    told = bench.read(positions="every")
    examples = bench.side("target", TEXTS).examples
    blocks = pack_blocks(examples, 37)[2:5]  # all begin and end inside a text
    batch = collate(blocks)
    batch["labels"][1, 9] = IGNORED
    logits = torch.randn(*batch["input_ids"].shape, 320, generator=torch.Generator().manual_seed(0))
    term = EventTerm(told.events, told.space, 0.5, CPU)
    found, count = term.loss(batch, logits)

    one_by_one: list[tuple[int, int, Events]] = []
    for row, block in enumerate(blocks):
        for text, begin in block.parts:
            for i, place in enumerate(told.events[text].places):
                column = int(place) + begin
                if 0 <= column < len(block.ids) - 1 and batch["labels"][row, column + 1] != IGNORED:
                    one_by_one.append((row, column, told.events[text].take(np.array([i]))))
    assert count == len(one_by_one) > 60
    expected = 0.0
    for row, column, position in one_by_one:
        ids, masses = torch.from_numpy(position.ids)[None].long(), torch.from_numpy(position.masses)[None]
        rest = torch.from_numpy(position.rest)[:, None]
        zero = torch.zeros(1, dtype=torch.int64)
        laid = BatchEvents(zero, zero, ids, torch.cat([masses, rest], 1))
        expected += event_loss(logits[row : row + 1, column : column + 1], laid, told.space).item()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_events_has_a_graph_and_counts_nothing(bench: Bench) -> None:
    told = bench.read()
    batch = collate(pack_blocks(bench.side("target", TEXTS).examples, 37)[:1])
    batch["labels"][:] = IGNORED
    logits = torch.zeros(1, 37, 320, requires_grad=True)
    loss, count = EventTerm(told.events, told.space, 0.5, CPU).loss(batch, logits)
    loss.backward()
    assert count == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("side", ["source", "target"])
def test_with_a_template_on_one_side_only_contents_are_compared(bench: Bench, side: str) -> None:
    """At every position both have read the same of the same message."""
    bench.tokenizers[side].chat_template = TEMPLATE
    theirs, ours = bench.side("source", [CHAT]), bench.side("target", [CHAT])
    found = teacher._pairing(CHAT, 0, theirs, ours, "auto", False)
    seen = set()
    for mine, its in zip(found.ours, found.theirs, strict=True):
        read = [
            reading.tokenizer.decode(reading.examples[0].ids[: place + 1]).rstrip("\ufffd").rpartition(": ")
            for reading, place in ((ours, mine), (theirs, its))
        ]
        assert read[0][2] == read[1][2] and any(content.startswith(read[0][2]) for content in CHAT.contents)
        seen.add(read[0][2])
    assert set(CHAT.contents) <= seen and len(found.ours) > len(CHAT.contents)


def lowering(vocab: int) -> Any:
    tokenizer = make_tokenizer(vocab)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def test_a_tokenizer_that_normalises_is_refused_with_the_reason() -> None:
    texts = [Sample("Two rivers meet")]
    check_teacher(texts, [(make_tokenizer(400), 400), (make_tokenizer(320), 320)], "auto")
    with pytest.raises(DataError, match="its normaliser is Lowercase") as caught:
        check_teacher(texts, [(lowering(400), 400), (make_tokenizer(320), 320)], "auto")
    assert "distill" in caught.value.hint


def test_the_check_of_a_recipe_says_so_before_any_work(tmp_path: Path) -> None:
    mapping = make_pair(tmp_path)
    Path(mapping["calibration"]["path"]).write_text("\n".join(f"{i} Rivers Meet Here" for i in range(90)))
    lowering(400).save_pretrained(mapping["source"])
    (problem,) = check(recipe_of(mapping, adaptation={"compare": ["distill"]}))
    assert problem.startswith("adaptation: the tokenizer of") and "its normaliser is Lowercase" in problem
    assert check(recipe_of(mapping, adaptation={"compare": ["sft"]})) == []


def test_within_one_tokenizer_normalising_does_not_matter(tmp_path: Path) -> None:
    mapping = make_pair(tmp_path)
    for role in ("source", "target"):
        lowering(320).save_pretrained(mapping[role])
    assert check(recipe_of(mapping, adaptation={"compare": ["distill"]})) == []


# ---- arms


@pytest.mark.parametrize(
    ("options", "expected", "result"),
    [
        ({}, [Arm("adapted", "merged")], "adapted"),
        (
            {"compare": ["sft", "distill"], "controls": ["self", "unigram"]},
            [
                Arm("adapted", "merged"), Arm("sft"), Arm("distilled", terms=("source",)),
                Arm("control_self", terms=("control.self",)), Arm("control_unigram", terms=("control.unigram",)),
            ],
            "adapted",
        ),
        (
            {"teacher": {}},
            [Arm("adapted", "merged"), Arm("adapted_distilled", "merged", ("source",))],
            "adapted_distilled",
        ),
        ({"start": "target"}, [Arm("sft")], "sft"),
        (
            {"start": "target", "teacher": {}, "controls": "permuted"},
            [Arm("distilled", terms=("source",)), Arm("control_permuted", terms=("control.permuted",))],
            "distilled",
        ),
    ],
)  # fmt: skip
def test_what_a_recipe_trains(options: dict[str, Any], expected: list[Arm], result: str) -> None:
    adaptation = Adaptation(**options)
    assert list(arms(adaptation)) == expected and result_arm(adaptation) == result
    assert adaptation.trainings == len(expected)


ALL = ("other_text", "permuted", "unigram", "self")
ADAPT = {
    "samples": 40, "block_length": 32, "packing": "pad", "batch_size": 4, "accumulation": 1, "learning_rate": 1e-3,
    "compare": ["sft", "distill"], "teacher": {"events": 8}, "controls": list(ALL), "checkpoints": 1, "max_steps": 3,
}  # fmt: skip


def run(pair: dict[str, Any], output: Path, **adaptation: Any) -> tuple[RunDir, list[events.Event]]:
    recipe = recipe_of(pair, adaptation={**ADAPT, **adaptation}, output=str(output))
    folder, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, folder, seen.append)
    return folder, seen


def test_distillation_and_its_placebos_train_on_the_same_tokens(pair: dict[str, Any], tmp_path: Path) -> None:
    folder, seen = run(pair, tmp_path / "run")
    report = json.loads((folder.path / "report.json").read_text())["adaptation"]
    placebos = [f"control_{name}" for name in ALL]
    names = ["adapted", "adapted_distilled", "sft", "distilled", *placebos]
    assert [row["model"] for row in report["rows"]] == ["target", "fused", *names]
    assert len({(each["tokens"], each["steps"]) for each in report["trainings"]}) == 1
    assert len({each["loss"] for each in report["trainings"]}) == len(names), "two trainings are one and the same"
    compared = {(each["model"], each["against"]) for each in report["contrasts"]}
    assert {("distilled", name) for name in ("sft", *placebos)} <= compared
    assert report["result"] == "adapted_distilled" and "8 events a position" in report["distillation"]
    announced = [s["name"] for s in next(e for e in seen if isinstance(e, events.RunStarted)).stages]
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == announced
    assert announced.index("teacher") < announced.index("teacher_self") < announced.index("adapt")

    kept = {path: path.stat().st_mtime_ns for path in folder.state.glob("events-*")}
    _, seen = run(pair, tmp_path / "run", seeds=[0, 1], distill_weight=0.3, compare=["distill"], controls=[])
    assert {path: path.stat().st_mtime_ns for path in folder.state.glob("events-*")} == kept
    new = {(e.method, e.seed) for e in seen if isinstance(e, events.TrainingStep)}
    assert new == {("adapted", 1), *((name, seed) for name in ("adapted_distilled", "distilled") for seed in (0, 1))}
