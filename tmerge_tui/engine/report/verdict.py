"""Did it help? The measured numbers in plain words, and no word more than they carry.

Three questions, kept apart: is the result better than the target on text that alignment never saw; is it better than
its placebos (rows shrunk with nothing transported; source channels permuted); was anything of a size that matters
moved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmerge_tui.engine.report.names import PLACEBOS
from tmerge_tui.quantities import bits, count, interval, known, listed, number, quantile, signed

FEW_TEXTS = 30  # below this a bootstrap interval is itself a guess
SHRINKAGE = 0.01  # transported norm over the target's, below which the rule only shrinks rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A difference in bits per byte with its 95 % interval; any part None when it was not measured."""

    difference: float | None
    low: float | None
    high: float | None
    margin: float = 0.0  # smallest difference of interest: below it two models are equal, whatever the interval

    @classmethod
    def of(cls, row: Row | None) -> Comparison:
        row = row or {}
        ends = known(row.get("difference")), known(row.get("low")), known(row.get("high"))
        return cls(*ends, known(row.get("margin")) or 0.0)

    @property
    def better(self) -> bool | None:
        """Interval wholly below 0, wholly above, or None when it covers 0 or is missing, or nothing that matters."""
        if self.low is None or self.high is None:
            return None
        if self.difference is not None and abs(self.difference) < self.margin:
            return None
        return True if self.high < 0 else False if self.low > 0 else None

    def __str__(self) -> str:
        if self.difference is None:
            return "difference not measured"
        if self.low is None or self.high is None:
            return f"difference {signed(self.difference)}, no interval"
        return f"difference {signed(self.difference)}, 95 % interval {interval(self.low, self.high)}"


def judge(
    scores: Sequence[Row],
    contrasts: Sequence[Row],
    projections: Sequence[Row] = (),
    *,
    alpha: float | None = None,
    norm: str = "free",
    strength: Row | None = None,
    claims: Collection[str] = ("shrink", "permuted"),  # the placebos that all have to be beaten
) -> dict[str, Any]:
    """The verdict on `alpha`, or on the best alpha above 0 when none is named.

    `scores`, `contrasts`, `projections` and `strength` (of `alpha: auto`) are those of report.json. Returns
    {"headline", "helped", "beats_placebos", "sentences", "alpha"}. `helped` is True when the 95 % interval of
    fused - target lies wholly below 0, False when wholly above, None when it covers 0. `beats_placebos` asks the same
    of all its placebos.
    """
    target = _score(scores, "target")
    fused = [s for s in scores if s["model"] == "fused"]
    tried = [s for s in fused if s["alpha"] and known(s.get("bits_per_byte")) is not None]
    pool = [s for s in tried if alpha is None or s["alpha"] == alpha]
    broken = [s["alpha"] for s in fused if known(s.get("bits_per_byte")) is None]
    sentences = [] if strength is None else [_searched(strength)]
    if broken:
        sentences.append(f"The fused model gave no finite score at alpha {listed(f'{a:g}' for a in broken)}.")
    if target is None or known(target.get("bits_per_byte")) is None or not pool:
        return _nothing(fused, broken, alpha, sentences)

    best = min(pool, key=lambda s: s["bits_per_byte"])
    against_target = Comparison.of(best)
    against = {
        c["against"]: Comparison.of(c) for c in contrasts if c["alpha"] == best["alpha"] and c["against"] in claims
    }
    beats = set(against) == set(claims) and all(c.better for c in against.values())
    choice = f" at alpha {best['alpha']:g}, the best of {len(tried)}" if len(tried) > 1 and alpha is None else ""
    numbers = f"{bits(best['bits_per_byte'])} bits per byte against the target's {bits(target['bits_per_byte'])}"
    sentences = [
        *_choice(tried, best, alpha),
        *sentences,
        *(_placebo(name, comparison) for name, comparison in against.items()),
        *_unmeasured(against, claims),
        *_transported(projections, norm),
        *_source(scores),
        *_text(best, against_target),
    ]
    return {
        "headline": _headline(against_target, against, beats, choice, numbers, len(claims)),
        "helped": against_target.better,
        "beats_placebos": beats,
        "sentences": sentences,
        "alpha": best["alpha"],
    }


def _headline(
    target: Comparison, against: Mapping[str, Comparison], beats: bool, choice: str, numbers: str, claims: int
) -> str:
    told = f"{numbers} ({target})"
    lost = any(not c.better for c in against.values())
    if lost and target.better:
        # a gain that a placebo shares is not the source's doing: that comes first
        return f"Fusion does not beat its placebos{choice}, though it is better than the target: {told}."
    if not against:
        end = "no placebo was measured, so no claim of transfer can be made"
    elif lost:
        end = "it does not beat its placebos"
    elif beats:
        end = "it beats both placebos" if claims == 2 else f"it beats all {claims} placebos"
    else:
        some = "one of the two placebos was" if claims == 2 else f"{len(against)} of {claims} placebos were"
        end = f"only {some} measured, so no claim of transfer can be made"
    if target.better:
        return f"Fusion helped{choice}: {told}, {'and' if beats else 'but'} {end}."
    joint = "though" if beats else "and"
    if target.better is None:
        return f"Fusion made no measurable difference{choice}: {told}, {joint} {end}."
    return f"Fusion hurt{choice}: {told}, {joint} {end}."


def _nothing(
    fused: Sequence[Row], broken: Sequence[float], alpha: float | None, sentences: list[str]
) -> dict[str, Any]:
    if broken and len(broken) == len(fused):
        headline = "Fusion broke the model: it gave no finite score on the hold-out."
    elif fused and alpha in (None, 0) and not any(s["alpha"] for s in fused):
        headline = "Nothing was fused: alpha is 0, so the result is the target itself."
    else:
        headline = "Whether fusion helped was not measured: there is no score of both target and result."
    sentences = [*sentences, "No claim of transfer can be made."]
    return {"headline": headline, "helped": None, "beats_placebos": False, "sentences": sentences, "alpha": alpha}


def _choice(tried: Sequence[Row], best: Row, alpha: float | None) -> list[str]:
    if len(tried) < 2:
        return []
    values = listed(f"{s['alpha']:g}" for s in tried)
    if alpha is not None:
        return [f"{len(tried)} values of alpha were tried ({values}); this is alpha {alpha:g}."]
    return [
        f"{len(tried)} values of alpha were tried ({values}) and the best one, {best['alpha']:g}, was chosen on this "
        f"same hold-out, which is optimistic: measure it again on fresh text before relying on it."
    ]


def _searched(strength: Row) -> str:
    texts = f"{count(strength['texts'])} validation texts that are neither calibration nor hold-out"
    helpful = [f"{kind} {alpha:g}" for kind, alpha in strength["strengths"].items() if alpha]
    if not helpful:
        return f"No projection helped on {texts}: alpha stayed 0, and the result is the target itself."
    others = [kind for kind, alpha in strength["strengths"].items() if not alpha]
    rest = f"; {listed(others)} did not help and stayed 0" if others else ""
    change = strength["chosen"] - strength["target"]
    return f"Alpha was chosen on {texts}: {listed(helpful)}{rest} (there {signed(change)} bits per byte)."


def _placebo(name: str, comparison: Comparison) -> str:
    outcome = {True: "fusion is better", False: "fusion is worse", None: "the two cannot be told apart"}
    return f"Against {PLACEBOS.get(name, name)}: {outcome[comparison.better]} ({comparison})."


def _unmeasured(against: Mapping[str, Comparison], claims: Collection[str]) -> list[str]:
    missing = [PLACEBOS.get(name, name) for name in claims if name not in against]
    if not missing:
        return []
    them = "both placebos" if len(claims) == 2 else "all of its placebos"
    return [f"Not measured: {listed(missing)}; without {them} no claim of transfer can be made."]


def median_ratio(projections: Iterable[Row]) -> float | None:
    """Median over projections of |transported| / |target|."""
    ratios = [r for r in (known(p.get("ratio")) for p in projections) if r is not None]
    return quantile(ratios, 0.5) if ratios else None


def _transported(projections: Sequence[Row], norm: str) -> list[str]:
    ratio = median_ratio(projections)
    if ratio is None:
        return []
    told = f"What was transported is {number(ratio)} of the target's norm (median over projections)"
    if norm == "added":
        return [f"{told}, and was added to it: source minus its reference, a task vector."]
    if norm == "keep":
        return [f"{told}, before each row was rescaled to the target's norm."]
    return [f"{told}: this is shrinkage, not transfer." if ratio < SHRINKAGE else f"{told}."]


def _source(scores: Sequence[Row]) -> list[str]:
    source = _score(scores, "source")
    if source is None or known(source.get("bits_per_byte")) is None:
        return []
    comparison = Comparison.of(source)
    words = {True: "better than the target", False: "worse than the target", None: "not told apart from the target"}
    return [
        f"The source itself scores {bits(source['bits_per_byte'])} on this text, "
        f"{words[comparison.better]} ({comparison})."
    ]


def _text(best: Row, target: Comparison) -> list[str]:
    """Whether there was enough text to tell; an interval shrinks with the square root of the number of texts."""
    texts = best.get("texts")
    if not texts:
        return []
    said = []
    if texts < FEW_TEXTS:
        said.append(f"The hold-out has only {count(texts)} texts: too few for an interval that can be trusted.")
    if target.better is None and target.difference and target.low is not None and target.high is not None:
        half = (target.high - target.low) / 2
        needed = texts * min(half / abs(target.difference), 1e6) ** 2
        # needed <= texts happens when a lopsided interval covers 0 by a hair
        if needed > texts:
            about = f"about {count(float(f'{needed:.1g}'))}" if needed < 1e6 else "more than a million"
            said.append(
                f"Not enough text to tell: with {count(texts)} texts the interval covers 0; "
                f"a difference of this size would need {about}."
            )
    return said


def beaten(contrasts: Iterable[Row], alpha: float | None) -> tuple[int, int]:
    """(placebos that the result at `alpha` is better than, placebos it was compared with)"""
    outcomes = [Comparison.of(c).better for c in contrasts if c["alpha"] == alpha]
    return sum(outcome is True for outcome in outcomes), len(outcomes)


def with_benchmarks(verdict: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """The verdict with a sentence on how many benchmarks tell each result from the target, and which way."""
    said = []
    results = dict.fromkeys((r["model"], r["alpha"]) for r in rows if r["model"] not in ("target", "source"))
    for model, alpha in results:
        mine = [r for r in rows if (r["model"], r["alpha"]) == (model, alpha)]
        words: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for row in mine:
            words[benchmark_better(row)].append(f"{row['task']} ({row['metric']})")
        name = model if alpha is None else f"{model} at alpha {alpha:g}"
        told = [
            f"{word} on {listed(words[better])}"
            for better, word in ((True, "better"), (False, "worse"))
            if words[better]
        ]
        if words[None]:
            told.append(f"not told apart on {len(words[None])} of {len(mine)}")
        partial = " (partial results)" if any(r["limit"] is not None for r in mine) else ""
        said.append(f"Benchmarks, {name} against the target: {listed(told)}{partial}.")
    return {**verdict, "sentences": [*verdict["sentences"], *said]}


def benchmark_better(row: Row) -> bool | None:
    """Whether a row of `benchmarks` is better than the target's; None when its interval covers 0 or tells nothing."""
    better = Comparison(known(row["difference"]), known(row["difference_low"]), known(row["difference_high"])).better
    if better is None or row["higher_is_better"] is None:
        return None
    return not better if row["higher_is_better"] else better


def _score(scores: Sequence[Row], model: str) -> Row | None:
    return next((s for s in scores if s["model"] == model), None)
