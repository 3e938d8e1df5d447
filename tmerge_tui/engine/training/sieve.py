"""Which written texts are learnt. What is dropped is counted by its reason.

In this order: texts that say nothing, or were cut off before a sentence ended; copies of training text and of each
other; texts that share `ngram` words in a row with held-out or validation text, as far as they were written and not
given. Of the rest the share `keep` stays in which the target is furthest behind the source: the largest difference of
the two models' bits per byte of what was written. A source that is sure of words which surprise the target has
something to teach; of what surprises both, or neither, nothing is learnt.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.data.ngrams import ngrams

# words; of scripts without blanks, characters
UNIT = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
END = re.compile(r"^.*[.!?\u2026\u3002\uff01\uff1f\u0964\u061f]['\"\u201d\u2019\u00bb)]?", re.DOTALL)
NOTHING, UNFINISHED, BROKEN = "says nothing", "cut off before a sentence ended", "holds broken characters"
COPIED, REPEATED, HELD = "copies training text", "repeats another", "shares words with held-out or validation text"
UNTOLD, BEHIND = "could not be scored", "not among the best"


@dataclass(frozen=True)
class Draft:
    """A text that was written: the whole of it, and which part is the model's."""

    sample: Sample
    given: str  # what the text had before
    written: str


@dataclass(frozen=True)
class Sieved:
    """What is learnt, the best first, and why the rest is not."""

    kept: tuple[Draft, ...]
    dropped: dict[str, int]


def whole_sentences(text: str, ended: bool) -> str:
    """The text, or as much of it as ends with a sentence where its length has cut it off."""
    if ended:
        return text
    found = END.match(text)
    return found.group(0) if found else ""


def units(text: str) -> tuple[str, ...]:
    """Its words, whatever their case and the signs between them."""
    return tuple(UNIT.findall(text.casefold()))


def sieve(
    drafts: Sequence[Draft],
    cut_off: Sequence[bool],  # which of them had no whole sentence
    training: Iterable[Sample],
    held: Iterable[Sample],
    keep: float,
    n: int,
    told: Callable[[Sequence[Draft]], tuple[Sequence[float], Sequence[float]]],  # (source's, target's bits per byte)
) -> Sieved:
    """Keeps at least one text of those that can be scored."""
    known = {units(sample.plain) for sample in training}
    forbidden = set().union(*(ngrams(units(sample.plain), n) for sample in held))
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    left: list[Draft] = []
    for draft, cut in zip(drafts, cut_off, strict=True):
        words, given = units(draft.sample.plain), units(draft.given)
        if cut:
            dropped[UNFINISHED] += 1
        elif not units(draft.written):
            dropped[NOTHING] += 1
        elif "\ufffd" in draft.written:
            dropped[BROKEN] += 1
        elif words in known:
            dropped[COPIED] += 1
        elif words in seen:
            dropped[REPEATED] += 1
        elif ngrams(words, n, len(given)) & forbidden:
            dropped[HELD] += 1
        else:
            seen.add(words)
            left.append(draft)
    source, target = told(left)
    scored = [
        (theirs - ours, i)
        for i, (ours, theirs) in enumerate(zip(source, target, strict=True))
        if math.isfinite(ours) and math.isfinite(theirs)
    ]
    dropped[UNTOLD] += len(left) - len(scored)
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    count = max(1, round(keep * len(scored)))
    dropped[BEHIND] += max(0, len(scored) - count)
    kept = tuple(left[i] for _, i in scored[:count])
    return Sieved(kept, {reason: number for reason, number in dropped.items() if number})
