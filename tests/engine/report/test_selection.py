"""The first line of a run that chose its model. References: numbers written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tmerge_tui.engine.report.selection import with_selection
from tmerge_tui.engine.report.verdict import Comparison

SCORES = [
    {"model": "target", "alpha": None, "bits_per_byte": 2.0},
    {"model": "source", "alpha": None, "bits_per_byte": 1.5, "difference": -0.5, "low": -0.6, "high": -0.4},
    {"model": "fused", "alpha": 0.1, "bits_per_byte": 1.99, "difference": -0.01, "low": -0.02, "high": -0.005},
]
VERDICT = {"headline": "Fusion helped.", "helped": True, "beats_placebos": False, "sentences": ["one."], "alpha": 0.1}


def selection(model: str, alpha: float | None = None) -> dict[str, Any]:
    rows = [{"model": name, "alpha": None, "bits_per_byte": 2.0} for name in ("target", "fused", "sft", "distilled")]
    return {"model": model, "alpha": alpha, "rows": rows, "texts": 200, "margin": 0.001}


def contrast(model: str, against: str, difference: float) -> dict[str, Any]:
    low, high = difference - 0.01, difference + 0.01
    return {"model": model, "against": against, "difference": difference, "low": low, "high": high, "margin": 0.001}


ADAPTATION = {
    "rows": [{"model": "distilled", "bits_per_byte": 1.6, "difference": -0.4, "low": -0.5, "high": -0.3}],
    "contrasts": [contrast("distilled", "sft", -0.05), contrast("distilled", "control_other_text", -0.2)],
}


def test_the_share_of_the_gap_is_said_first() -> None:
    said = with_selection(VERDICT, selection("distilled"), SCORES, ADAPTATION)
    assert said["headline"] == (
        "model/ is better than the target: distilled, 1.6000 bits per byte against 2.0000 (difference -0.4000, 95 % "
        "interval -0.5000 to -0.3000); 80% of the gap to the source (1.5000) is closed."
    )
    assert said["helped"] is True and said["beats_placebos"] is True
    assert said["sentences"][0].startswith("It was the best of 3 candidates on 200 validation texts")
    assert "On fusion alone: Fusion helped." in said["sentences"] and "one." in said["sentences"]
    assert any("fine-tuned (SFT)" in sentence for sentence in said["sentences"])


def test_a_placebo_that_is_as_good_takes_the_claim_away() -> None:
    equal = {**ADAPTATION, "contrasts": [contrast("distilled", "control_permuted", 0.0)]}
    assert with_selection(VERDICT, selection("distilled"), SCORES, equal)["beats_placebos"] is False
    none = {**ADAPTATION, "contrasts": []}
    assert with_selection(VERDICT, selection("distilled"), SCORES, none)["beats_placebos"] is None


def test_the_source_before_it_was_tuned_is_no_placebo() -> None:
    untuned = contrast("distilled", "control_untuned", 0.0)
    proven = {**ADAPTATION, "contrasts": [*ADAPTATION["contrasts"], untuned]}
    assert with_selection(VERDICT, selection("distilled"), SCORES, proven)["beats_placebos"] is True
    alone = {**ADAPTATION, "contrasts": [contrast("distilled", "control_untuned", -0.2)]}
    assert with_selection(VERDICT, selection("distilled"), SCORES, alone)["beats_placebos"] is None


def test_where_nothing_beats_the_target_it_says_so() -> None:
    said = with_selection(VERDICT, selection("target"), SCORES, None)
    assert said["headline"].startswith("Nothing beat the target: of 3 candidates none is better by 0.001 bits per byte")
    assert said["alpha"] is None and said["helped"] is None
    assert said["beats_placebos"] is None, "what fusion beat or not says nothing of the target"


def test_no_gap_is_claimed_where_the_source_is_not_better() -> None:
    scores = [SCORES[0], {**SCORES[1], "bits_per_byte": 2.5}, SCORES[2]]
    said = with_selection(VERDICT, selection("fused", 0.1), scores, None)
    assert "gap" not in said["headline"] and "fused" in said["headline"]


def test_without_a_selection_the_verdict_stays() -> None:
    assert with_selection(VERDICT, None, SCORES, None) == VERDICT


@pytest.mark.parametrize(("difference", "better"), [(-0.0009, None), (-0.0011, True), (0.0011, False), (0.0009, None)])
def test_what_differs_by_less_than_the_margin_is_equal(difference: float, better: bool | None) -> None:
    """Whatever the interval: 2e-7 with a narrow one is no difference that matters."""
    row = {"difference": difference, "low": difference - 1e-5, "high": difference + 1e-5, "margin": 0.001}
    assert Comparison.of(row).better is better
