"""Where a gain comes from: held-out tokens that the source told much better than the target, against all others.

A unit is one token of the target; the source's bits of it are those of the bytes it spells, each of the source's tokens
spread evenly over its own bytes. With t, s and r the bits that target, source and result need for a unit, it lies
`there` when t - s > threshold, and `elsewhere` otherwise; sum (t - s) is the gap to the source, sum (t - r) the gain,
and their ratio the share of the gap that was closed. Intervals are 95 % bootstrap intervals over texts.

Units were chosen by where the target is weak, so any change of it tends to gain there: the placebos say how much of a
share that alone explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.evaluation.bits_per_byte import byte_ends, resampled, text_of, token_losses
from tmerge_tui.engine.evaluation.evaluator import Evaluator, Variant
from tmerge_tui.engine.progress import Progress
from tmerge_tui.errors import DataError
from tmerge_tui.events import Emit
from tmerge_tui.models.forward import release
from tmerge_tui.run_folder import key

STAGE = ("attribution", "See where the gain comes from", 0.1)  # only with evaluation.attribution
PLACES = ("there", "elsewhere")
SHOWN = 10  # texts that gained most, and as many that lost most
CUT = 400  # characters of a text that are shown
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """Target tokens of all texts that target and source both score, U of them."""

    text: Ints  # [U]: which text
    bytes: Ints  # [U]
    texts: int

    def per_text(self, values: Floats) -> Floats:
        """[texts]: sums over the units of each text."""
        return np.bincount(self.text, values, self.texts).astype(np.float64)


@dataclass(frozen=True)
class Told:
    """What one model needs for the scored tokens of one text: bits at byte positions, added up."""

    ends: Floats  # [n + 1], ascending, each once
    bits: Floats  # [n + 1], 0 at the first

    @classmethod
    def of(cls, ends: Sequence[int], bits: Sequence[float]) -> Told:
        """`ends` as `byte_ends` gives them; a token that adds no byte counts with the one before, the first with the
        next."""
        at, added = np.array(ends, np.float64), np.concatenate([[0.0], np.cumsum(bits)])
        distinct, back = np.unique(at[::-1], return_index=True)  # of equal ends the last token counts
        total = added[::-1][back]
        if len(total):
            total[0] = 0.0
        return cls(distinct, total)


def attribute(
    target: Evaluator,
    source: Callable[[], Evaluator],
    variants: Sequence[Variant],  # results and placebos in the target
    results: Sequence[Variant],  # those of `variants` whose texts are shown
    samples: Sequence[Sample],
    emit: Emit,
) -> dict[str, Any]:
    """`attribution` of report.json (stage "attribution"). Raises what `score` raises.

    {"threshold", "texts", "tokens", "bytes", "rows": [{"model", "alpha", "there", "elsewhere", "difference"}],
    "excerpts": [{"model", "alpha", "gained", "lost"}]}; for `there` and `elsewhere` see `closed`.
    """
    options = target.options.attribution
    assert options is not None
    with Progress(emit, STAGE[0], STAGE[1], len(samples) * (len(variants) + 2), "texts") as progress:
        theirs = source()
        of_source = [
            Told.of(ends, bits)
            for ends, bits in zip(
                _ends(theirs, samples), token_bits(theirs, Variant("source"), samples, progress), strict=True
            )
        ]
        release()
        ends = _ends(target, samples)

        def told(variant: Variant) -> list[Told]:
            return [Told.of(*each) for each in zip(ends, token_bits(target, variant, samples, progress), strict=True)]

        of_target = told(Variant("target"))
        units, ours, its = in_units(of_target, of_source)
        rows, excerpts, chosen = [], [], {(one.model, one.alpha) for one in results}
        for variant in variants:
            _, mine, _ = in_units(told(variant), of_source)
            who = {"model": variant.model, "alpha": variant.alpha}
            shares = closed(units, ours, its, mine, options.threshold, target.options.resamples, target.seed)
            rows.append(who | shares)
            if (variant.model, variant.alpha) in chosen:
                excerpts.append(who | shown(units, ours, its, mine, samples))
    counts = {"texts": len(samples), "tokens": len(units.text), "bytes": int(units.bytes.sum())}
    return {"threshold": options.threshold, **counts, "rows": rows, "excerpts": excerpts}


def token_bits(
    evaluator: Evaluator, variant: Variant, samples: Sequence[Sample], progress: Progress
) -> list[list[float]]:
    """Bits of each scored token of each text, a piece of the run folder; advances `progress` by the texts."""

    def measure(model: Any) -> list[list[float]]:
        texts = [text_of(sample.plain, evaluator.subject.tokenizer, evaluator.max_length) for sample in samples]
        warn, advance = partial(evaluator.warn, variant.name), partial(progress.advance, note=variant.name)
        found = token_losses(model, texts, evaluator.options.batch_size, warn, advance)
        return [[round(bits, 5) for bits in each] for each in found]

    asked = key([sample.plain for sample in samples]), evaluator.max_length
    return evaluator.measured("tokens", variant, asked, measure, lambda: progress.skip(len(samples)))


def in_units(ours: Sequence[Told], theirs: Sequence[Told]) -> tuple[Units, Floats, Floats]:
    """(units, our bits [U], their bits [U]) where both models score. Raises DataError where that is nowhere."""
    text, sizes, mine, others = [], [], [], []
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if len(a.ends) < 2 or len(b.ends) < 2:
            continue
        inside = (a.ends >= b.ends[0]) & (a.ends <= b.ends[-1])
        ends, bits = a.ends[inside], a.bits[inside]
        text.append(np.full(max(len(ends) - 1, 0), number))
        sizes.append(np.diff(ends))
        mine.append(np.diff(bits))
        others.append(np.diff(np.interp(ends, b.ends, b.bits)))
    if not sum(map(len, text)):
        raise DataError("no held-out token is scored by both models", "text that both models read")
    units = Units(np.concatenate(text).astype(np.int64), np.concatenate(sizes).astype(np.int64), len(ours))
    return units, np.concatenate(mine), np.concatenate(others)


def closed(
    units: Units, ours: Floats, theirs: Floats, result: Floats, threshold: float, resamples: int, seed: int
) -> dict[str, Any]:
    """What was gained, and what share of the gap was closed, there and elsewhere.

    Each is {"tokens": share of all, "gap", "gain": bits per byte of all the text, "gain_low", "gain_high", "share",
    "share_low", "share_high"}, a share None where the source is not better on the whole, its ends where that is not
    certain; "difference" is that of the two shares, with "low" and "high", or None.
    """
    gap, gain = ours - theirs, ours - result
    much = gap > threshold
    table = np.array(
        [
            units.per_text(units.bytes.astype(np.float64)),
            *(units.per_text(np.where(chosen, values, 0.0)) for chosen in (much, ~much) for values in (gap, gain)),
        ]
    )  # [5, texts]: bytes, then gap and gain of both places
    table = table[:, table[0] > 0]
    drawn = resampled(table, resamples, seed)
    found: dict[str, Any] = {}
    shares = []
    for place, chosen, first in zip(PLACES, (much, ~much), (1, 3), strict=True):
        size, distance, gained = table[0].sum(), table[first].sum(), table[first + 1].sum()
        low, high = np.percentile(drawn[first + 1] / drawn[0], [2.5, 97.5])
        found[place] = {
            "tokens": float(chosen.mean()), "gap": float(distance / size), "gain": float(gained / size),
            "gain_low": float(low), "gain_high": float(high),
            "share": float(gained / distance) if distance > 0 else None, "share_low": None, "share_high": None,
        }  # fmt: skip
        certain = bool(chosen.any()) and bool((drawn[first] > 0).all())
        shares.append(drawn[first + 1] / drawn[first] if certain else None)
        if certain:
            ends = np.percentile(drawn[first + 1] / drawn[first], [2.5, 97.5])
            found[place] |= {"share_low": float(ends[0]), "share_high": float(ends[1])}
    there, elsewhere = shares
    found["difference"] = None
    if there is not None and elsewhere is not None:
        low, high = np.percentile(there - elsewhere, [2.5, 97.5])
        value = found["there"]["share"] - found["elsewhere"]["share"]
        found["difference"] = {"difference": value, "low": float(low), "high": float(high)}
    return found


def shown(units: Units, ours: Floats, theirs: Floats, result: Floats, samples: Sequence[Sample]) -> dict[str, Any]:
    """The texts that gained and lost most: {"gained", "lost"}, each a list of {"text", "difference", "target",
    "source", "result"}, bits per byte, the largest change first; a text that has not changed is in neither."""
    size = units.per_text(units.bytes.astype(np.float64))
    size[size == 0] = np.nan
    told = {"target": ours, "source": theirs, "result": result}
    each = {name: units.per_text(bits) / size for name, bits in told.items()}
    change = each["result"] - each["target"]
    order = [int(i) for i in np.argsort(change, kind="stable") if not np.isnan(change[i])]

    def row(number: int) -> dict[str, Any]:
        plain = samples[number].plain
        text = plain if len(plain) <= CUT else f"{plain[:CUT]} …"
        return {"text": text, "difference": float(change[number])} | {n: float(v[number]) for n, v in each.items()}

    gained = [row(number) for number in order[:SHOWN] if change[number] < 0]
    lost = [row(number) for number in order[::-1][:SHOWN] if change[number] > 0]
    return {"gained": gained, "lost": lost}


def _ends(evaluator: Evaluator, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    return [byte_ends(sample.plain, evaluator.subject.tokenizer, evaluator.max_length) for sample in samples]
