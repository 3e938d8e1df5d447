"""Forgetting. References: a model beside itself, a target that was damaged for letters of general text alone, scores
written by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.evaluation.test_select import SAMPLES
from tests.engine.pair import make_pair, recipe_of
from tests.tiny import LINES, rewritten
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.data.general_text import GeneralText, read_general
from tmerge_tui.engine.evaluation.bits_per_byte import Scores
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.evaluation.general import measure_general
from tmerge_tui.engine.evaluation.select import Selection, select
from tmerge_tui.engine.preflight.check import check
from tmerge_tui.engine.report.besides import forgotten, with_besides
from tmerge_tui.engine.report.selection import with_selection
from tmerge_tui.engine.weights.update import Change
from tmerge_tui.errors import DataError, RecipeError
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.forward import LoadedModel
from tmerge_tui.models.loading import load_model
from tmerge_tui.recipe.evaluation import Evaluation, General
from tmerge_tui.run_folder import RunDir

SHOUTED = [f"{i} {line.upper()}" for i, line in enumerate(LINES)]  # letters that the user's text has none of


def ran(
    mapping: dict[str, Any], until: Any = None, **changes: Any
) -> tuple[dict[str, Any], list[events.Event], RunDir]:
    recipe = recipe_of(mapping, **changes)
    folder, seen = RunDir.create(recipe.output), []

    def emit(event: events.Event) -> None:
        seen.append(event)
        if until is not None and until(event):
            raise KeyboardInterrupt

    pipeline.run(recipe, folder, emit)
    return json.loads((folder.path / "report.json").read_text()), seen, folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("general")
    made = make_pair(folder)
    (folder / "shouted.txt").write_text("\n".join(SHOUTED))
    made["evaluation"] |= {"general": str(folder / "shouted.txt"), "attribution": True, "prompts": []}
    return made


@pytest.fixture(scope="module")
def report(pair: dict[str, Any]) -> tuple[dict[str, Any], list[events.Event], RunDir]:
    return ran(pair)


def test_from_recipe_to_report(report: tuple[dict[str, Any], list[events.Event], RunDir]) -> None:
    found, seen, run = report
    started = next(e for e in seen if isinstance(e, events.RunStarted))
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == [s["name"] for s in started.stages]
    general = found["general"]
    assert [row["model"] for row in general["rows"]] == ["target", "source", "fused", "shrink", "permuted"]
    assert general["texts"] == len(SHOUTED) and general["name"] == "general text (shouted.txt)"
    assert all(row["low"] <= row["difference"] <= row["high"] for row in general["rows"][1:])
    assert "shouted.txt" in found["verdict"]["sentences"][0], "behind the headline, before all others"
    words = (run.path / "report.md").read_text()
    assert "## General text" in words and "## Where the gain comes from" in words
    assert "shouted.txt" in (run.model / "README.md").read_text()
    resolved = found["recipe"]["resolved"]["general"]
    assert resolved["commit"] is None and len(resolved["sha256"]) == 64


@pytest.mark.parametrize("stage", ["general", "attribution"])
def test_killed_and_resumed_it_is_the_same(
    pair: dict[str, Any], report: tuple[dict[str, Any], list[events.Event], RunDir], stage: str, tmp_path: Path
) -> None:
    shutil.copytree(report[2].path, tmp_path / "run")
    for piece in (tmp_path / "run" / "state").glob("tokens-*" if stage == "attribution" else "scores-*"):
        piece.unlink()
    seen = 0

    def second(event: events.Event) -> bool:
        nonlocal seen
        seen += isinstance(event, events.StageProgressed) and event.stage == stage and event.done > 0
        return seen == 2

    with pytest.raises(KeyboardInterrupt):
        ran(pair, second, output=str(tmp_path / "run"))
    again, _, _ = ran(pair, output=str(tmp_path / "run"))
    assert again["general"] == report[0]["general"] and again["attribution"] == report[0]["attribution"]
    _, events_seen, _ = ran(pair, output=str(tmp_path / "run"))
    done = {e.stage: e.outcome for e in events_seen if isinstance(e, events.StageFinished)}
    assert done["general"] == done["attribution"] == "cached"


class Whole:
    """Another model's tensors as an update of the target."""

    def __init__(self, target: Path, other: Path, *names: str) -> None:
        self.target, self.other, self.names = Checkpoint(target), Checkpoint(other), names

    @property
    def key(self) -> tuple[Any, ...]:
        return False, str(self.other.folder)

    def change(self, name: str, stored: Tensor) -> Any:
        return Change(self.other.read(name).float())


def evaluator_of(folder: Path, run: RunDir, seen: list[events.Event]) -> Evaluator:
    facts = read_facts(folder, "target")
    cpu = torch.device("cpu")

    def load() -> Any:
        return load_model(facts, cpu, torch.float32, None, lambda event: None)

    subject = LoadedModel("target", facts, AutoTokenizer.from_pretrained(folder), load, cpu, torch.float32)
    options = Evaluation(resamples=200, general={"texts": "english"}, attribution={})
    return Evaluator(subject, options, 64, 0, run, seen.append)


@pytest.fixture
def damaged(pair: dict[str, Any], tmp_path: Path) -> tuple[Path, Path, str]:
    """(target, the same after gradient ascent on the embeddings of tokens that only general text has, the tensor)."""
    target = Path(pair["target"])
    tokenizer = AutoTokenizer.from_pretrained(target)
    own = set(tokenizer(Path(pair["calibration"]["path"]).read_text())["input_ids"])
    rows = sorted(set(tokenizer("\n".join(SHOUTED))["input_ids"]) - own)
    assert len(rows) > 20
    name = "model.embed_tokens.weight"
    model = AutoModelForCausalLM.from_pretrained(target)
    embedding = model.get_input_embeddings().weight
    for line in SHOUTED * 2:
        ids = tokenizer(line, return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
    slope = embedding.grad[rows]

    def change(each: str, tensor: Tensor) -> Tensor:
        if each != name:
            return tensor
        changed = tensor.clone()
        changed[rows] += 0.2 * slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-9)
        return changed

    return target, rewritten(target, tmp_path / "damaged", change), name


def general_text(texts: list[str]) -> GeneralText:
    return GeneralText("general text", tuple(Sample(text=text) for text in texts), (), "", ())


def test_a_model_beside_itself_has_lost_nothing(pair: dict[str, Any], tmp_path: Path) -> None:
    target = Path(pair["target"])
    evaluator = evaluator_of(target, RunDir.create(tmp_path / "run"), [])
    same = Variant("fused", 0.1, Whole(target, target, "model.embed_tokens.weight"))
    found = measure_general(evaluator, lambda: evaluator, [same], general_text(SHOUTED), lambda event: None)
    for row in found["rows"][1:]:
        assert (row["difference"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
    (said,) = forgotten({"general": found}, ("fused", 0.1))
    assert said.startswith("Nothing measurable was lost on general text (difference 0.0000")


def test_damage_to_general_text_alone_is_found_there_alone(
    pair: dict[str, Any], damaged: tuple[Path, Path, str], tmp_path: Path
) -> None:
    target, other, name = damaged
    seen: list[events.Event] = []
    evaluator = evaluator_of(target, RunDir.create(tmp_path / "run"), seen)
    variant = Variant("fused", 0.1, Whole(target, other, name))
    own = general_text(Path(pair["calibration"]["path"]).read_text().splitlines()[:30])
    row = measure_general(evaluator, None, [variant], own, seen.append)["rows"][-1]
    tied = json.loads((target / "config.json").read_text()).get("tie_word_embeddings")
    assert not tied and abs(row["difference"]) < 1e-9
    found = measure_general(evaluator, None, [variant], general_text(SHOUTED), seen.append)
    row = found["rows"][-1]
    assert row["difference"] > 0.01 and row["low"] > 0
    (said,) = forgotten({"general": found}, ("fused", 0.1))
    assert said.startswith(f"Lost {row['difference']:.4f} bits per byte on general text (95 % interval +")
    assert {e.name for e in seen if isinstance(e, events.Metric)} == {"general_bits_per_byte"}


# choosing within a bound


def chosen(monkeypatch: pytest.MonkeyPatch, told: dict[str, tuple[float, float]], bound: float | None) -> Selection:
    """What is taken when models need so many bits per byte of (the user's text, general text)."""
    general = [Sample(text=f"general {i}") for i in range(9)]

    def scores(self: Any, variant: Variant, samples: Any, progress: Any) -> Scores:
        progress.advance(len(samples))
        return Scores(tuple(100 * told[variant.model][samples is general] for _ in samples), (100,) * len(samples))

    monkeypatch.setattr(Evaluator, "scores", scores)
    nothing: Any = None
    options = Evaluation(resamples=100, general={"bound": bound})
    evaluator = Evaluator(nothing, options, 512, 0, nothing, lambda event: None)
    candidates = [Variant(name) for name in told if name != "target"]
    return select(evaluator, candidates, SAMPLES, lambda event: None, () if bound is None else general)


TOLD = {"target": (2.0, 1.0), "fused": (1.7, 1.2), "sft": (1.8, 1.01), "distilled": (1.9, 0.9)}


def test_what_loses_too_much_is_not_chosen_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, TOLD, None).variant.model == "fused"
    found = chosen(monkeypatch, TOLD, 0.05)
    assert found.variant.model == "sft"
    kept = {row["model"]: row["general"] and row["general"]["kept"] for row in found.rows}
    assert kept == {"target": None, "fused": False, "sft": True, "distilled": True}
    score = {"alpha": None, "difference": -0.2, "low": -0.3, "high": -0.1, "bits_per_byte": 1.8}
    scores = [score | {"model": model} for model in ("target", "sft")]
    said = with_selection({"headline": "", "sentences": [], "beats_placebos": False}, found.plain(), scores, None)
    assert (
        "Not chosen, for losing more than 0.05 bits per byte on general text: fused, not trained (+0.2000)."
        in (said["sentences"])
    )


def test_where_all_that_is_better_loses_too_much_the_target_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(monkeypatch, {name: TOLD[name] for name in ("target", "fused", "sft")}, 0.001)
    assert found.variant.model == "target"
    verdict = {"headline": "", "sentences": [], "beats_placebos": False}
    said = with_selection(verdict, found.plain(), [], None)
    assert "on 20 validation texts within the bound on general text, so model/ is the target" in said["headline"]
    general = {"name": "general English text", "texts": 200, "rows": [], "tasks": []}
    said = with_besides(said, {"general": general, "selection": found.plain()})
    assert said["sentences"][0] == "Nothing was lost on general English text: model/ is the target itself."


def test_a_bound_needs_a_choice(pair: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="expected select: validation, which is what it binds"):
        recipe_of(pair, evaluation={"general": {"bound": 0.01}})


def test_measured_and_tried_on_are_two_parts() -> None:
    options = General(samples=50, validation=20, bound=0.01)
    text = read_general(options, 0, ())
    assert (len(text.measured), len(text.validation)) == (50, 20) and not set(text.measured) & set(text.validation)
    assert read_general(options, 0, ()) == text != read_general(options, 1, ())
    assert read_general(General(samples=50), 0, ()).measured == text.measured, (
        "a bound changes nothing that is reported"
    )
    assert text.name == "general English text" and all(len(sample.plain) >= 600 for sample in text.measured)


def test_tasks_say_more_than_bits() -> None:
    row = {"model": "fused", "alpha": 0.1, "bits_per_byte": 2.0, "difference": 0.0, "low": -0.1, "high": 0.1}
    general = {"name": "general English text", "texts": 200, "rows": [row], "tasks": ["piqa", "arc_easy"]}
    answer = {"task": "piqa", "metric": "acc", "model": "fused", "alpha": 0.1, "higher_is_better": True}
    answer |= {"difference": -0.1, "difference_low": -0.2, "difference_high": -0.05}
    (said,) = forgotten({"general": general, "benchmarks": [answer, answer | {"task": "other"}]}, ("fused", 0.1))
    assert said.endswith("; of general tasks worse on piqa (acc).")


# bad input


def problems(pair: dict[str, Any], **evaluation: Any) -> list[str]:
    return check(recipe_of(pair, evaluation=evaluation))


def test_no_file_nothing_in_it_and_a_task_that_is_none(pair: dict[str, Any], tmp_path: Path) -> None:
    (said,) = problems(pair, general=str(tmp_path / "none.txt"))
    assert said.startswith("evaluation.general.texts: ") and "none.txt" in said and "calibration.path" not in said
    (tmp_path / "blank.txt").write_text(" \n\n")
    (said,) = problems(pair, general=str(tmp_path / "blank.txt"))
    assert said.startswith("evaluation.general.texts: ") and "blank.txt" in said
    (said,) = problems(pair, general={"tasks": ["arc_esy"]})
    assert said.startswith("evaluation.general.tasks: arc_esy is no task of lm-evaluation-harness")


def test_the_users_own_text_is_no_general_text(pair: dict[str, Any], tmp_path: Path) -> None:
    own = Path(pair["calibration"]["path"])
    (said,) = problems(pair, general=str(own))
    assert "0 general texts that are not the user's own" in said and "of another kind" in said
    lines = own.read_text().splitlines()
    mixed = tmp_path / "mixed.txt"
    mixed.write_text("\n".join([*SHOUTED, lines[3].upper().replace(" ", "  "), f"they say: {' '.join(lines[20:23])}"]))
    samples = [Sample(text=line) for line in lines]
    text = read_general(General(texts=str(mixed)), 0, samples)
    assert {sample.plain for sample in text.measured} == set(SHOUTED)
    assert any("2 of 26 general texts hold a passage" in warning for warning in text.warnings)
    with pytest.raises(DataError, match="1 general texts"):
        short = tmp_path / "short.txt"
        short.write_text(f"{SHOUTED[0]}\n{lines[0]}\n")
        read_general(General(texts=str(short)), 0, samples)


def test_short_forms() -> None:
    assert Evaluation(general=True).general == General() and Evaluation(general=False).general is None
    assert Evaluation(general="org/data").general == General(texts="org/data")
    tasks = Evaluation(tasks=["piqa"], general={"tasks": "general"}).all_tasks
    assert list(tasks) == ["piqa", "arc_easy", "commonsense_qa", "social_iqa", "winogrande"]
    assert tasks["piqa"] == "evaluation.tasks" and tasks["arc_easy"] == "evaluation.general.tasks"
