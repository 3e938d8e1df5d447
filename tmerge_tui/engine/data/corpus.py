"""Calibration and hold-out text: read from a local file or the Hub, split once by seed, rendered for each model.

The split never depends on how often a text is repeated: exact duplicates are dropped first (the first one stays), then
the hold-out is drawn, and the calibration samples come from the rest. So no hold-out text is ever aligned on, and
changing `samples` leaves the hold-out as it was. Near duplicates (other case, other spacing) are different texts.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.engine.data.records import without_halves
from tmerge_tui.engine.data.text_files import Read, read_file
from tmerge_tui.errors import DataError
from tmerge_tui.models.chat_template import limit_templates
from tmerge_tui.recipe import Calibration

Message = dict[str, str]
Told = Callable[[int, int], None]  # (samples gone through, of so many)
TOLD = 20_000  # samples between two reports
# Templates that print today's date fall back to this one; pinned, so that a run reads the same tokens tomorrow.
TEMPLATE_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Sample:
    """One text, or one conversation of {role, content} messages; exactly one of the two is set."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None

    @property
    def contents(self) -> tuple[str, ...]:
        """The text itself, or what each message says."""
        return (self.text or "",) if self.messages is None else tuple(m["content"] for m in self.messages)

    @property
    def plain(self) -> str:
        """The text, or the messages as lines `role: content`."""
        return self.join(self.contents)

    def join(self, contents: Sequence[str]) -> str:
        """`plain` with other contents in place of its own."""
        if self.messages is None:
            return contents[0]
        return "\n".join(f"{m['role']}: {content}" for m, content in zip(self.messages, contents, strict=True))

    @property
    def identity(self) -> str:
        """Equal for exact duplicates and for nothing else."""
        return json.dumps([self.text, self.messages], ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Corpus:
    """What both models read (`calibration`), what is only measured on (`holdout`), and what choices are made on
    (`validation`, empty when there are none to make); no text is in two of them.

    `sha256` and `holdout_sha256` name the exact ordered texts; `column` is the field they came from ("line" for .txt);
    `commit` is that of a data set from the Hub.
    """

    calibration: tuple[Sample, ...]
    holdout: tuple[Sample, ...]
    sha256: str
    holdout_sha256: str
    column: str
    warnings: tuple[str, ...]
    commit: str | None = None
    validation: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Everything that a text holds, each sample once, before a part of it is drawn."""

    samples: Sequence[Sample]
    warnings: tuple[str, ...]
    path: Path | str
    column: str
    commit: str | None


def read_pool(calibration: Calibration, seed: int, told: Told | None = None) -> Pool:
    """Reads the file, or as much of a data set as is needed; `told` hears how far it is. Raises DataError."""
    read, path, commit = _read(calibration, seed)
    samples, warnings = _distinct(read, path, told)
    return Pool(samples, tuple(warnings), path, read.column, commit)


def read_corpus(calibration: Calibration, seed: int, validation: bool = False, pool: Pool | None = None) -> Corpus:
    """Reads, splits and samples; the same file, settings and seed always give the same corpus. A `pool` of the same
    text that was read before saves reading it again.

    With `validation`, `calibration.validation` samples are drawn behind the calibration samples, so that those stay as
    they are; in a file that is too short for both, the calibration samples are fewer, and where less than half of what
    is not held out would be left, validation is a quarter of it.

    Raises DataError: missing, empty, unreadable or unknown file, no such field, fewer than 2 samples on either side.
    """
    pool = pool or read_pool(calibration, seed)
    samples, path, commit, warnings = pool.samples, pool.path, pool.commit, list(pool.warnings)
    # a stream comes shuffled, and its beginning does not depend on how much of it is read
    order = list(range(len(samples))) if commit else _shuffled(len(samples), seed)
    if calibration.holdout_path is None:
        _require(len(samples), calibration.holdout, path)
        holdout = [samples[i] for i in order[: calibration.holdout]]
        rest = [samples[i] for i in order[calibration.holdout :]]
    else:
        holdout_path = Path(calibration.holdout_path)
        held, more = _distinct(read_file(holdout_path, calibration.column), holdout_path)
        warnings += more
        if len(held) < 2:
            raise DataError(
                f"{holdout_path}: {_count(len(held))}", "at least 2 to measure on", "give a longer hold-out file"
            )
        if len(held) < calibration.holdout:
            warnings.append(f"{holdout_path}: hold-out is {len(held)} samples: {calibration.holdout} were asked for")
        holdout = [held[i] for i in _shuffled(len(held), seed)[: calibration.holdout]]
        kept_out = {sample.identity for sample in held}
        rest = [samples[i] for i in order if samples[i].identity not in kept_out]
        if len(rest) < len(samples):
            warnings.append(f"{len(samples) - len(rest)} calibration samples are also in the hold-out file: left out")
        _require(len(rest), 0, path)
    held_back = 0
    if validation:
        held_back = calibration.validation
        if held_back > len(rest) // 2:  # most of a short text is to be aligned on
            held_back = max(2, len(rest) // 4)
            warnings.append(f"{path}: validation is {held_back} samples: {calibration.validation} were asked for")
        _require(len(rest), held_back, path, "validation")
    chosen = rest[: min(calibration.samples, len(rest) - held_back)]
    if len(chosen) < calibration.samples:
        warnings.append(f"{path}: calibration is {len(chosen)} samples: {calibration.samples} were asked for")
    return Corpus(
        tuple(chosen),
        tuple(holdout),
        hash_samples(chosen),
        hash_samples(holdout),
        pool.column,
        tuple(warnings),
        commit,
        tuple(rest[len(chosen) : len(chosen) + held_back]),
    )


def read_samples(
    path: Path, column: str | None, count: int, seed: int, without: Iterable[Sample] = ()
) -> tuple[tuple[Sample, ...], list[str]]:
    """(at most `count` distinct samples of a file, in random order; warnings). None of `without` is among them.

    Raises DataError as `read_corpus`, and when nothing is left.
    """
    samples, warnings = _distinct(read_file(path, column), path)
    kept_out = {sample.identity for sample in without}
    left = [samples[i] for i in _shuffled(len(samples), seed) if samples[i].identity not in kept_out]
    if len(left) < len(samples):
        warnings.append(f"{path}: {len(samples) - len(left)} samples are held out for measuring: left out")
    if not left:
        raise DataError(f"{path}: {_count(0)} that are not held out", "text to train on", "give a file with more text")
    return tuple(left[:count]), warnings


def hash_samples(samples: Iterable[Sample]) -> str:
    """sha256 of the exact ordered texts."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.identity.encode() + b"\n")
    return digest.hexdigest()


def uses_template(sample: Sample, tokenizer: Any, mode: str) -> bool:
    """Whether `render` goes through the tokenizer's chat template, which then brings its own special tokens."""
    return mode == "auto" and sample.messages is not None and bool(getattr(tokenizer, "chat_template", None))


def render(sample: Sample, tokenizer: Any, mode: str) -> str:
    """The text a model reads: plain text as it is; messages through the tokenizer's own chat template.

    Without a template, and with mode `off`, messages are joined as `Sample.plain`; `missing_template` says when a model
    has none. Raises DataError when the template refuses the messages.
    """
    return render_contents(sample, sample.contents, tokenizer, mode)


def render_contents(sample: Sample, contents: Sequence[str], tokenizer: Any, mode: str) -> str:
    """`render` with other contents in place of the sample's own."""
    if sample.messages is None or not uses_template(sample, tokenizer, mode):
        return sample.join(contents)
    text, refusal = _templated(sample.messages, contents, tokenizer)
    if not shows(text, contents):  # a model that also sees may know content in parts alone
        parts = [[{"type": "text", "text": content}] for content in contents]
        inside, _ = _templated(sample.messages, parts, tokenizer)
        if shows(inside, contents) and "'type': 'text'" not in inside:  # as Python shows a list: not meant for parts
            return inside
    if refusal is not None:
        raise DataError(
            f"the chat template of {getattr(tokenizer, 'name_or_path', '') or 'the model'} refuses a conversation with "
            f"roles {', '.join(m['role'] for m in sample.messages)}: {refusal}",
            "roles the template knows, in the order it wants",
            "change the data, or set calibration.chat_template: off",
        ) from refusal
    return text


def shows(text: str, contents: Iterable[str]) -> bool:
    """Whether a rendered text has what messages say, but for white space around it."""
    return all(content.strip() in text for content in contents)


def _templated(messages: Sequence[Message], contents: Sequence[Any], tokenizer: Any) -> tuple[str, Exception | None]:
    """(what the template makes of it, why it makes nothing)."""
    limit_templates()
    said = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False, date_string=TEMPLATE_DATE)), None
    except Exception as error:  # templates raise what they like: jinja2 errors, TypeError, ValueError
        return "", error


def missing_template(samples: Iterable[Sample], tokenizer: Any, mode: str) -> bool:
    """Whether messages are joined only because the model has no chat template: worth one warning."""
    return mode == "auto" and any(s.messages is not None and not uses_template(s, tokenizer, mode) for s in samples)


def _read(calibration: Calibration, seed: int) -> tuple[Read, Path | str, str | None]:
    """(samples, where they are from, commit of a data set from the Hub)."""
    if calibration.path is not None:
        path = Path(calibration.path)
        return read_file(path, calibration.column), path, None
    from tmerge_tui.engine.data.hub_stream import read_stream

    wanted = calibration.samples + (calibration.holdout if calibration.holdout_path is None else 0)
    found = read_stream(calibration, seed, wanted)
    return Read(found.values, found.column, warnings=found.warnings), str(calibration.repo_id), found.commit


def _distinct(read: Read, path: Path | str, told: Told | None = None) -> tuple[list[Sample], list[str]]:
    """The non-empty samples of a file, each once, in file order; and what was left out."""
    warnings = list(read.warnings)
    total, halved, filled = len(read.values), 0, 0
    first: dict[str | tuple[str], Sample] = {}
    for done, value in enumerate(read.values):
        if told is not None and done % TOLD == 0:
            told(done, total)
        whole = without_halves(value)
        halved += whole != value
        sample = Sample(text=whole) if isinstance(whole, str) else Sample(messages=whole)
        if any(content.strip() for content in sample.contents):
            filled += 1
            # a text is its own identity, cheaper; that of messages stands in a tuple, where no text can be equal to it
            first.setdefault(whole if isinstance(whole, str) else (sample.identity,), sample)
    if halved:
        warnings.append(f"{path}: {halved} samples hold half a character (a lone surrogate): � stands for it")
    if filled < total + read.empty:
        warnings.append(f"{path}: {total + read.empty - filled:,} empty samples left out")
    if len(first) < filled:
        warnings.append(f"{path}: {filled - len(first):,} duplicate samples left out")
    return list(first.values()), warnings


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _require(found: int, held: int, path: Path | str, what: str = "hold-out") -> None:
    if found - held >= 2:
        return
    if held == 0 or found < 4:
        raise DataError(f"{path}: {_count(found)}", "at least 2 to align on", "give a file with more text")
    raise DataError(
        f"{path}: {_count(found)}, and the {what} takes {held}",
        f"at least {held + 2}, so that 2 are left to align on",
        f"set calibration.{what.replace('-', '')} to {found // 4 if found >= 8 else 2} or give a file with more text",
    )


def _count(found: int) -> str:
    return f"{found:,} distinct sample{'' if found == 1 else 's'}"
