"""The search against a table of scores written by hand, and on a tiny pair against the scores of the target itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.engine.methods.transport_merge.plans import Pair
from tests.engine.pair import make_pair, recipe_of
from tests.tiny import make_model
from tmerge_tui import events
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation import alpha_search
from tmerge_tui.engine.evaluation.bits_per_byte import Scores
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate, apply
from tmerge_tui.engine.weights.export import export
from tmerge_tui.recipe.evaluation import Evaluation
from tmerge_tui.run_folder import RunDir

KINDS = ("q", "gate")
SAMPLES = [Sample(text=str(i)) for i in range(20)]


class ByHand:
    """Stands for a merge; `at` keeps the strengths, so that the evaluator below can look them up."""

    def __init__(self, kinds: Sequence[str] = KINDS) -> None:
        self.kinds = kinds

    def at(self, alpha: float, shares: dict[str, float]) -> Any:
        return {kind: alpha * shares.get(kind, 0.0) for kind in self.kinds}


def searched(
    monkeypatch: pytest.MonkeyPatch, told: Callable[[dict[str, float]], float], noise: float = 0.0
) -> tuple[alpha_search.Strength, list[Any]]:
    """The outcome when the text takes `told(strengths)` bits per byte; noise makes texts differ in that."""
    wobble = torch.linspace(-1, 1, len(SAMPLES)).tolist()

    def scores(self: Any, variant: Any, samples: Any, progress: Any, known: Scores | None = None) -> Scores:
        value = told(variant.update or dict.fromkeys(KINDS, 0.0))
        alpha = variant.alpha or 0.0
        progress.advance(len(samples) - (0 if known is None else len(known.bits)))
        mine = wobble[: len(samples)]
        return Scores(tuple(100 * (value + noise * alpha * w) for w in mine), (100,) * len(samples))

    monkeypatch.setattr(alpha_search.Evaluator, "scores", scores)
    seen: list[Any] = []
    nothing: Any = None
    target = alpha_search.Evaluator(nothing, Evaluation(resamples=100), 512, 0, nothing, seen.append)
    merge: Any = ByHand()
    return alpha_search.search(target, merge, SAMPLES, seen.append), seen


def test_each_kind_climbs_to_its_own_best(monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"q": 0.05, "gate": 0.2}
    found, seen = searched(monkeypatch, lambda s: 2 + sum((s[kind] - best[kind]) ** 2 for kind in KINDS))
    assert found.strengths == best
    assert found.chosen == pytest.approx(2) and found.target == pytest.approx(2 + 0.05**2 + 0.2**2)
    tried = [(t.kind, t.alpha, t.kept) for t in found.trials]
    assert tried[:3] == [("q", 0.02, True), ("q", 0.05, True), ("q", 0.1, False)]
    assert all(t.against_target == pytest.approx(t.bits_per_byte - found.target) for t in found.trials)
    progress = [e for e in seen if isinstance(e, events.StageProgressed)][-1]
    assert progress.done == progress.total == (1 + len(found.trials)) * len(SAMPLES)


def test_what_is_clearly_worse_is_given_up_after_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpha_search, "LOOK", 8)
    found, _ = searched(monkeypatch, lambda s: 2 + s["q"] - 0.5 * s["gate"])
    assert found.strengths == {"q": 0.0, "gate": 0.4} and found.chosen == pytest.approx(1.8)
    assert [(t.kind, t.texts, t.kept) for t in found.trials][:2] == [("q", 8, False), ("gate", 20, True)]


def test_what_does_not_help_stays_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = searched(monkeypatch, lambda s: 2 + s["q"] - 0.5 * s["gate"])
    assert found.strengths == {"q": 0.0, "gate": 0.4}
    nothing, _ = searched(monkeypatch, lambda s: 2 + s["q"] + s["gate"])
    assert nothing.strengths == {"q": 0.0, "gate": 0.0}
    assert nothing.chosen == nothing.target and len(nothing.trials) == 2


def test_a_gain_that_chance_explains_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(s: dict[str, float]) -> float:
        return 2 - 0.01 * s["gate"] + s["q"]

    assert searched(monkeypatch, told)[0].strengths["gate"] == 0.4
    assert searched(monkeypatch, told, noise=1.0)[0].strengths["gate"] == 0.0


def test_a_broken_model_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = searched(monkeypatch, lambda s: float("nan") if s["q"] else 2.0 - s["gate"])
    assert found.strengths == {"q": 0.0, "gate": 0.4}


def test_a_kind_that_another_replaces_goes_down_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """q helps alone, and hurts once gate is in: the second visit takes it one step back."""
    found, _ = searched(monkeypatch, lambda s: 2 - s["gate"] - 0.1 * s["q"] + 0.5 * s["q"] * s["gate"])
    assert found.strengths["q"] == 0.2 and found.strengths["gate"] == 0.4


STRENGTHS = st.sampled_from((0.0, *alpha_search.GRID))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.tuples(STRENGTHS, STRENGTHS), st.floats(1, 3), max_size=36))
def test_never_worse_than_the_target_whatever_the_scores(table: dict[tuple[float, float], float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found, _ = searched(patch, lambda s: table.get((s["q"], s["gate"]), 2.0), noise=0.3)
    assert found.chosen <= found.target
    assert found.chosen == pytest.approx(table.get((found.strengths["q"], found.strengths["gate"]), 2.0))


def pair_of(tmp_path: Path) -> Pair:
    target = make_model(tmp_path / "target", "qwen2")
    source = make_model(tmp_path / "source", "llama", layers=3, hidden=48, heads=6, seed=1)
    return Pair.make(tmp_path, target, source, torch.tensor([[0.3, 0.0, 0.2], [0.1, 0.4, 0.0]]))


def test_every_kind_is_mixed_in_at_its_own_strength(tmp_path: Path) -> None:
    """Reference: folds at one alpha, tensor by tensor."""
    pair = pair_of(tmp_path)
    fusion = pair.fuse(("q", "k", "o"), coupling="barycentric")
    alpha, shares = alpha_search.split({"q": 0.1, "k": 0.0, "o": 0.4})
    mixed = fusion.sharing(shares)
    assert alpha == 0.4 and mixed.key != fusion.key
    assert {line["kind"] for line in mixed.figures()} == {"q", "o"}
    folders = {}
    for name, (which, strength_) in {"q": (fusion, 0.1), "o": (fusion, 0.4), "mixed": (mixed, alpha)}.items():
        update = FusedUpdate(which, pair.target, strength_, "keep")
        export(update, strength_, tmp_path / name, pair.run, pair.events.append)
        folders[name] = load_file(tmp_path / name / "model.safetensors")
    own = load_file(pair.target.folder / "model.safetensors")
    for name, tensor in folders["mixed"].items():
        kind = next((kind for kind in ("q", "o") if f".{kind}_proj." in name), None)
        expected = own[name] if kind is None else folders[kind][name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    fused = mixed.fused(0, "q")
    W = own["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(
        apply(W, None, fused, 0.4, "free")[0], apply(W, None, fusion.fused(0, "q"), 0.1, "free")[0]
    )


def test_zero_everywhere_gives_the_targets_bytes(tmp_path: Path) -> None:
    pair = pair_of(tmp_path)
    alpha, shares = alpha_search.split(dict.fromkeys("qkvo", 0.0))
    update = FusedUpdate(pair.fuse(coupling="barycentric").sharing(shares), pair.target, alpha, "free")
    folded = export(update, alpha, tmp_path / "out", pair.run, pair.events.append)
    assert folded.fused == () and folded.copied == len(pair.target.names)
    ours, theirs = (folder / "model.safetensors" for folder in (tmp_path / "out", pair.target.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_alpha_auto_from_recipe_to_report(tmp_path: Path) -> None:
    mapping = make_pair(tmp_path)
    changes = {"fusion": {"alpha": "auto"}, "calibration": {"samples": 50, "validation": 15}}
    recipe = recipe_of(mapping, **changes)
    folder, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, folder, seen.append)
    started = next(e for e in seen if isinstance(e, events.RunStarted))
    assert [e.stage for e in seen if isinstance(e, events.StageFinished)] == [s["name"] for s in started.stages]
    assert sum(stage["weight"] for stage in started.stages) == pytest.approx(1)
    report = json.loads((folder.path / "report.json").read_text())
    chosen = report["strength"]
    assert report["recipe"]["fusion"]["alpha"] == ["auto"] and chosen["texts"] == 15
    assert chosen["chosen"] <= chosen["target"]
    assert set(chosen["strengths"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert [(one["alpha"], one["folder"]) for one in report["output"]] == [(max(chosen["strengths"].values()), "model")]
    kept = {kind for kind, alpha in chosen["strengths"].items() if alpha}
    assert {line["kind"] for line in report["projections"]} == kept
    changed = {name.split(".")[-2].removesuffix("_proj") for name in report["tensors"]["fused"]}
    assert changed == kept
    assert f"q {chosen['strengths']['q']:g}, k " in (folder.model / "README.md").read_text()
    words = (folder.path / "report.md").read_text()
    assert "## Strength" in words and "15 validation texts" in words
    again: list[events.Event] = []
    pipeline.run(recipe, folder, again.append)
    outcome = {e.stage: e.outcome for e in again if isinstance(e, events.StageFinished)}
    assert outcome["strength"] == outcome["evaluate"] == "cached"
    same = recipe_of(mapping, fusion={"alpha": 0.1}, calibration={"samples": 50}, output=str(tmp_path / "run"))
    more: list[events.Event] = []
    pipeline.run(same, folder, more.append)
    outcome = {e.stage: e.outcome for e in more if isinstance(e, events.StageFinished)}
    assert outcome["extract_target"] == outcome["fuse"] == "cached", "the search has changed the calibration text"


def test_the_choice_reads_nothing_that_the_search_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where texts were looked at first, the whole score is one piece all the same: of the target, of the chosen."""
    monkeypatch.setattr(alpha_search, "LOOK", 5)
    mapping = make_pair(tmp_path)
    changes = {"fusion": {"alpha": "auto"}, "calibration": {"samples": 50, "validation": 15}, "select": "validation"}
    recipe = recipe_of(mapping, **changes)
    folder, seen = RunDir.create(recipe.output), []
    pipeline.run(recipe, folder, seen.append)
    outcome = {e.stage: e.outcome for e in seen if isinstance(e, events.StageFinished)}
    assert (outcome["strength"], outcome["select"]) == ("done", "cached")
