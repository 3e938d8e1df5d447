"""What `tmerge scout` has found, in plain words: a verdict and sentences. Imports nothing heavy.

It is better only where the whole 95 % interval says so by more than the margin; "nothing to carry over" is said only
where the interval leaves no more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tmerge_tui.quantities import bits, interval, known, signed

Found = Mapping[str, Any]
NOTHING = "The source is not better on this text: nothing to carry over."


def judged(found: Found, margin: float) -> dict[str, Any]:
    """outcome (headroom, none, open or unknown), verdict (one sentence) and sentences (what else is to be known)."""
    outcome = _outcome(found, margin)
    return {
        "outcome": outcome,
        "verdict": _verdict(found, outcome),
        "sentences": list(_sentences(found, outcome, margin)),
    }


def _outcome(found: Found, margin: float) -> str:
    row = _deciding(found)
    if row is None or not found["tokenizers"]["comparable"]:
        return "unknown"
    low, high = known(row["low"]), known(row["high"])
    if low is None or high is None:
        return "unknown"
    return "headroom" if high < -margin else "none" if low >= -margin else "open"


def _deciding(found: Found) -> Found | None:
    """After both have learnt, where both could; the source as it is, where only the target could; else untouched."""
    rows = found["headroom"] or {}
    return rows.get("both_tuned") or rows.get("against_tuned_target") or rows.get("untouched")


def _verdict(found: Found, outcome: str) -> str:
    row = _deciding(found)
    if outcome == "none":
        return NOTHING
    if outcome == "headroom":
        assert row is not None
        than = _than(found)
        return (
            f"The source is better on this text by {bits(-row['difference'])} bits per byte than {than}: there is "
            "something to carry over."
        )
    if outcome == "open":
        return f"{found['texts']['measured']} texts do not tell whether the source is better on this text."
    if found["models"] is None:
        return "The models have not been run: their weights are not on this disk."
    return "A tokenizer cannot read this text as it is: bits per byte of the two models cannot be compared."


def _than(found: Found) -> str:
    rows = found["headroom"]
    if rows["both_tuned"]:
        return "the target, after both have learnt the same texts"
    return "the target after it has learnt some text" if rows["against_tuned_target"] else "the untouched target"


def _sentences(found: Found, outcome: str, margin: float) -> Iterator[str]:
    rows, models = found["headroom"], found["models"]
    if rows and outcome != "unknown":
        row = _deciding(found)
        assert row is not None
        yield f"Source minus target: {signed(row['difference'])}, 95 % interval {interval(row['low'], row['high'])}."
        against = rows["against_tuned_target"]
        if rows["both_tuned"] and outcome == "headroom" and against["high"] >= -margin:
            yield (
                "As it is, the source is no better than what fine-tuning reaches: let it learn the text first "
                "(adaptation.teacher.tune: auto)."
            )
        if rows["both_tuned"]:
            steps = max(one["steps"] for one in models.values())
            yield f"This is an early estimate, after at most {steps} steps: a whole training goes further."
        else:
            yield "Not both models were tuned: what fine-tuning alone would reach is not known."
    if models:
        for role, one in models.items():
            if one["why_not_tuned"]:
                yield f"The {role} was not tuned: {one['why_not_tuned']}."
    yield from _tokenizers(found["tokenizers"])
    texts = found["texts"]
    if texts["measured"] < texts["wanted"]:
        yield f"Only {texts['measured']} validation texts were there, {texts['wanted']} are wanted."


def _tokenizers(said: Found) -> Iterator[str]:
    for role, share in said["unread"].items():
        if share > 0.0005:
            yield f"The tokenizer of the {role} normalises: {share:.1%} of the text does not come back from it."
    if said["refused"]:
        yield f"The source cannot teach across these tokenizers: {said['refused']}."
