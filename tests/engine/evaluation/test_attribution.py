"""Where a gain comes from. References: bits written by hand whose shares are known, and the scores of whole texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.evaluation.test_general import SHOUTED, evaluator_of
from tests.tiny import LINES, make_model
from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.attribution import Told, Units, attribute, closed, in_units, shown, token_bits
from tmerge_tui.engine.evaluation.bits_per_byte import byte_ends, score, text_of
from tmerge_tui.engine.evaluation.evaluator import Variant
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.report.besides import came_from
from tmerge_tui.errors import DataError
from tmerge_tui.run_folder import RunDir

TEXTS = [*LINES[:6], "ü", "naïve café — ŋ", "  two  spaces "]
SAMPLES = [Sample(text=text) for text in TEXTS]
RNG = np.random.default_rng(0)


def made(count: int = 400, texts: int = 40) -> tuple[Units, Any, Any]:
    """Units of which every fourth is told 3 bits better by the source, and all others 0.5."""
    units = Units(np.arange(count) % texts, np.full(count, 4), texts)
    ours = RNG.uniform(4, 8, count)
    return units, ours, ours - np.where(np.arange(count) // texts % 4 == 0, 3.0, 0.5)


def test_a_known_share_is_found_there_and_elsewhere() -> None:
    """Half of the gap closed there, a tenth elsewhere; a quarter of the units, two thirds of the gap."""
    units, ours, theirs = made()
    gap = ours - theirs
    result = ours - np.where(gap > 1, 0.5, 0.1) * gap
    found = closed(units, ours, theirs, result, 1.0, 200, 0)
    there, elsewhere = found["there"], found["elsewhere"]
    assert there["tokens"] == pytest.approx(120 / 400)
    assert (there["share"], there["share_low"], there["share_high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert (elsewhere["share"], elsewhere["share_low"], elsewhere["share_high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert there["gap"] == pytest.approx(0.3 * 3 / 4) and there["gain"] == pytest.approx(0.3 * 1.5 / 4)
    assert found["difference"] == pytest.approx({"difference": 0.4, "low": 0.4, "high": 0.4})
    whole = (ours - result).sum() / (4 * len(ours))
    assert there["gain"] + elsewhere["gain"] == pytest.approx(whole), "the two add up to what was gained"


def test_intervals_are_of_texts() -> None:
    """Half of the texts closed all of it, the others none: 0.5, as uncertain as 40 draws of 0 and 1."""
    units, ours, theirs = made()
    result = np.where(units.text % 2 == 0, theirs, ours)
    there = closed(units, ours, theirs, result, 1.0, 2000, 0)["there"]
    assert there["share"] == pytest.approx(0.5)
    half = 1.96 * (0.25 / 40) ** 0.5
    assert there["share_high"] - there["share_low"] == pytest.approx(2 * half, rel=0.15)


def test_a_source_that_is_no_better_has_nothing_to_give() -> None:
    units, ours, _ = made()
    same = closed(units, ours, ours, ours, 1.0, 100, 0)
    assert same["there"]["tokens"] == 0 and same["there"]["share"] is None and same["difference"] is None
    assert same["elsewhere"]["gain"] == same["elsewhere"]["gain_low"] == same["elsewhere"]["gain_high"] == 0
    row = {"model": "fused", "alpha": 0.1, **same}
    (said,) = came_from({"attribution": {"rows": [row], "threshold": 1.0}}, ("fused", 0.1))
    assert said == "At no held-out token is the source better than the target by more than 1 bit."
    worse = closed(units, ours, ours + 0.5, ours - 0.1, 1.0, 100, 0)["elsewhere"]
    assert worse["share"] is None and worse["gain"] == pytest.approx(0.1 / 4)


def test_the_threshold_is_what_divides() -> None:
    units, ours, theirs = made()
    shares = [closed(units, ours, theirs, ours, at, 100, 0)["there"]["tokens"] for at in (0.0, 0.4, 1.0, 3.5)]
    assert shares == [1.0, 1.0, pytest.approx(0.3), 0.0]


def test_a_token_of_the_source_is_spread_over_its_bytes() -> None:
    """Two tokens of ours in one of theirs of 8 bits, then one of ours across two of theirs."""
    ours = Told.of((0, 1, 4, 10), (1.0, 2.0, 3.0))
    theirs = Told.of((0, 4, 7, 10), (8.0, 3.0, 1.0))
    units, mine, its = in_units([ours], [theirs])
    assert units.bytes.tolist() == [1, 3, 6] and mine.tolist() == [1, 2, 3]
    assert its.tolist() == pytest.approx([2.0, 6.0, 4.0])


def test_only_what_both_score_counts() -> None:
    """Ours begins a token later, theirs is cut inside our last one."""
    ours, theirs = Told.of((2, 5, 9, 12), (1.0, 2.0, 4.0)), Told.of((0, 5, 10), (5.0, 5.0))
    units, mine, its = in_units([ours, Told.of((), ())], [theirs, theirs])
    assert units.bytes.tolist() == [3, 4] and mine.tolist() == [1, 2] and its.tolist() == pytest.approx([3, 4])
    with pytest.raises(DataError, match="no held-out token is scored by both models"):
        in_units([Told.of((), ())], [theirs])


def test_tokens_without_bytes_count_with_their_neighbours() -> None:
    told = Told.of((0, 0, 3, 3, 5), (0.5, 1.0, 2.0, 4.0))
    assert told.ends.tolist() == [0, 3, 5] and told.bits.tolist() == [0, 3.5, 7.5]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("max_length", [5, 64])
def test_tokens_add_up_to_the_scores_of_texts(tmp_path: Path, bos: bool, max_length: int) -> None:
    """Reference: `score` and `text_of`, which know no tokens."""
    folder = make_model(tmp_path / "model")
    evaluator = evaluator_of(folder, RunDir.create(tmp_path / "run"), [])
    evaluator.max_length = max_length
    if not bos:
        evaluator.subject.tokenizer.bos_token = None
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), evaluator.subject.tokenizer
    whole = score(model, tokenizer, SAMPLES, 4, max_length)
    with Progress(lambda event: None, "attribution", "", 1, "texts") as progress:
        bits = token_bits(evaluator, Variant("target"), SAMPLES, progress)
    for text, each, total in zip(TEXTS, bits, whole.bits, strict=True):
        ends, known = byte_ends(text, tokenizer, max_length), text_of(text, tokenizer, max_length)
        assert sum(each) == pytest.approx(total, abs=1e-3)
        assert len(ends) == (len(each) + 1 if each else 0)
        assert (ends[-1] - ends[0] if ends else 0) == known.bytes


def test_two_identical_models(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    evaluator = evaluator_of(folder, RunDir.create(tmp_path / "run"), [])
    texts = [Sample(text=text) for text in SHOUTED]
    same = Variant("fused", 0.1)
    found = attribute(evaluator, lambda: evaluator, [same], [same], texts, lambda event: None)
    (row,) = found["rows"]
    assert row["there"]["tokens"] == 0 and row["elsewhere"]["gain_low"] == row["elsewhere"]["gain_high"] == 0
    assert found["excerpts"] == [{"model": "fused", "alpha": 0.1, "gained": [], "lost": []}]
    assert found["bytes"] == sum(len(text.encode()) for text in SHOUTED)


def test_other_tokens_and_the_source_as_the_result(tmp_path: Path) -> None:
    """A source of another vocabulary, and a result that is as good as it where it is read: all of the gap is closed."""
    target = make_model(tmp_path / "target", vocab=280)
    source = make_model(tmp_path / "source", vocab=320, seed=1)
    run = RunDir.create(tmp_path / "run")
    ours, theirs = evaluator_of(target, run, []), evaluator_of(source, run, [])
    samples = [Sample(text=line) for line in LINES[:6]]
    with Progress(lambda event: None, "attribution", "", 1, "texts") as progress:
        told = [
            [Told.of(byte_ends(s.plain, e.subject.tokenizer, 64), b) for s, b in
             zip(samples, token_bits(e, Variant("target"), samples, progress), strict=True)]
            for e in (ours, theirs)
        ]  # fmt: skip
    units, mine, its = in_units(*told)
    assert units.bytes.sum() == sum(len(sample.plain.encode()) for sample in samples)
    assert its.sum() == pytest.approx(sum(each.bits[-1] for each in told[1])), "no bit of the source is lost"
    found = closed(units, mine, its, its, 0.0, 100, 0)
    assert found["there"]["share"] == pytest.approx(1.0)
    assert torch.get_default_dtype() == torch.float32


def test_the_texts_that_changed_most_come_first_and_are_cut() -> None:
    units = Units(np.arange(30), np.full(30, 10), 31)
    ours = np.full(30, 20.0)
    result = ours + np.arange(30) - 12.0  # the first twelve gained, one is as it was, the rest lost
    samples = [Sample(text=f"{i} " + "word " * (100 if i == 0 else 1)) for i in range(31)]
    found = shown(units, ours, ours, result, samples)
    assert [text["text"].split()[0] for text in found["gained"]] == [str(i) for i in range(10)]
    assert [text["text"].split()[0] for text in found["lost"]] == [str(i) for i in range(29, 19, -1)]
    assert found["gained"][0]["difference"] == pytest.approx(-1.2) and found["gained"][0]["target"] == pytest.approx(2)
    assert len(found["gained"][0]["text"]) == 402 and found["gained"][0]["text"].endswith(" …")
