"""The verdict against cases worked out by hand: the reference is what the intervals allow one to say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.report.sample_results import contrast, contrasts_of, score, scores_of
from tmerge_tui.engine.report.verdict import judge
from tmerge_tui.quantities import signed

LITERAL = {0.1: (0.0003, 0.0003, 0.0002)}
GAIN = {0.1: (-0.0030, 0.0003, 0.0010)}


def verdict(curves, **more):
    return judge(scores_of(curves), contrasts_of(curves), **more)


def test_a_real_gain():
    said = verdict(GAIN)
    assert said["helped"] is True and said["beats_placebos"] is True
    assert said["headline"] == (
        "Fusion helped: 2.1676 bits per byte against the target's 2.1706 "
        "(difference -0.0030, 95 % interval -0.0034 to -0.0026), and it beats both placebos."
    )


def test_the_literal_rule_is_the_shrink_placebo():
    said = verdict(LITERAL, projections=[{"ratio": 3e-5}, {"ratio": 4e-5}, {"ratio": None}])
    assert said["helped"] is None and said["beats_placebos"] is False
    assert said["headline"].startswith("Fusion made no measurable difference: 2.1709 bits per byte")
    assert said["headline"].endswith("and it does not beat its placebos.")
    assert any("3.5e-05" in s and "this is shrinkage, not transfer" in s for s in said["sentences"])
    # half-width 0.0004 at 400 texts; 0.0003 needs (4/3)^2 * 400 = 711
    assert any("interval covers 0" in s and "about 700" in s for s in said["sentences"])


def test_worse_than_the_target_yet_better_than_placebos():
    said = verdict({0.3: (0.0071, 0.0135, 0.0168)})
    assert said["helped"] is False and said["beats_placebos"] is True
    assert said["headline"].startswith("Fusion hurt:") and "though it beats both placebos" in said["headline"]


def test_a_gain_that_a_placebo_shares_is_said_first():
    said = verdict({0.1: (-0.0030, -0.0030, 0.0010)})
    assert said["helped"] is True and said["beats_placebos"] is False
    assert said["headline"].startswith("Fusion does not beat its placebos, though it is better than the target")


def test_one_lost_placebo_is_enough_to_lose():
    said = verdict({0.1: (-0.0030, 0.0010, -0.0040)})
    assert said["beats_placebos"] is False
    assert any("permuted" in s and "fusion is worse" in s for s in said["sentences"])


def test_the_best_of_several_alphas_is_called_optimistic():
    said = verdict({0.05: (-0.0011, -0.0006, -0.0001), 0.1: (-0.0004, 0.0003, 0.0011), 0.3: (0.0071, 0.0135, 0.0168)})
    assert said["alpha"] == 0.05 and "the best of 3" in said["headline"]
    assert "0.05, 0.1 and 0.3" in said["sentences"][0] and "optimistic" in said["sentences"][0]


def test_one_alpha_can_be_judged_by_itself():
    curves = {**GAIN, 0.3: (0.0071, 0.0135, 0.0168)}
    said = verdict(curves, alpha=0.3)
    assert said["alpha"] == 0.3 and said["helped"] is False and "best of" not in said["headline"]


def test_alpha_zero_is_never_the_best():
    said = verdict({0.0: (0.0, 0.0, 0.0), 0.1: (0.0020, 0.0020, 0.0020)})
    assert said["alpha"] == 0.1 and said["helped"] is False and "best of" not in said["headline"]
    said = verdict({0.0: (0.0, 0.0, 0.0)})
    assert said["headline"] == "Nothing was fused: alpha is 0, so the result is the target itself."
    assert said["helped"] is None and said["beats_placebos"] is False


def test_without_placebos_no_claim():
    said = judge(scores_of(GAIN), [])
    assert said["beats_placebos"] is False
    assert said["headline"].endswith("but no placebo was measured, so no claim of transfer can be made.")
    assert any(s.startswith("Not measured:") for s in said["sentences"])


def test_with_one_placebo_of_two_no_claim():
    said = judge(scores_of(GAIN), [contrast(0.1, "shrink", -0.0033)])
    assert said["beats_placebos"] is False and "only one of the two placebos" in said["headline"]


def test_nothing_measured():
    said = judge([], [])
    assert "was not measured" in said["headline"] and said["helped"] is None and not said["beats_placebos"]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_broken_model_is_called_broken(value):
    rows = [score("target", None, 0.0), {**score("fused", 0.1, 0.0), "bits_per_byte": value}]
    said = judge(rows, [])
    assert said["headline"].startswith("Fusion broke the model") and "alpha 0.1" in said["sentences"][0]
    rows.append(score("fused", 0.05, -0.003))
    said = judge(rows, [])
    assert said["helped"] is True and any("no finite score at alpha 0.1" in s for s in said["sentences"])


def test_missing_interval_is_not_a_verdict():
    rows = [score("target", None, 0.0), {**score("fused", 0.1, -0.003), "low": None, "high": math.nan}]
    said = judge(rows, [])
    assert said["helped"] is None and "no interval" in said["headline"]


def test_few_texts_are_named():
    rows = [{**s, "texts": 12} for s in scores_of(GAIN)]
    assert any("only 12 texts" in s for s in judge(rows, contrasts_of(GAIN))["sentences"])


def test_a_kept_norm_is_not_called_shrinkage():
    sentences = verdict(LITERAL, projections=[{"ratio": 3e-5}], norm="keep")["sentences"]
    assert any("rescaled to the target's norm" in s for s in sentences) and not any("shrinkage" in s for s in sentences)


@given(st.floats(-0.1, 0.1), st.floats(1e-6, 0.05), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_never_claims_more_than_the_intervals(difference, half, shrink, permuted):
    curves = {0.1: (difference, shrink, permuted)}
    said = judge(scores_of(curves, half), contrasts_of(curves))
    assert (said["helped"] is True) == (difference + half < 0) or math.isclose(difference, -half)
    assert said["headline"].startswith("Fusion helped") <= (said["helped"] is True and said["beats_placebos"])
    if not said["beats_placebos"]:
        assert "does not beat its placebos" in said["headline"]


def test_numbers_keep_their_sign():
    assert [signed(v) for v in (0.0003, -0.00002, 0.0, None)] == ["+0.0003", "-2.0e-05", "0.0000", "–"]
