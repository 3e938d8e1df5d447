"""Distillation: the source as teacher of the target, on the same texts.

Same tokenizer (both give the same ids for every training text): KL(teacher || student) of the next-token distributions
at every labelled position.

Different tokenizers: both models read the same text in their own tokens. Positions where both end a token at the same
character (of the same message) are paired; there both have read exactly the same text. What they say next is compared
in what no tokenizer can disagree on: the first byte of the next token behind at most one leading space. Probabilities
of all tokens with the same (space, first byte) are added up, and the KL is taken between these distributions. A first
byte behind a space that only one vocabulary has a token for goes with the bare space, which the other one would write
before it. Special tokens are one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmerge_tui.engine.data.corpus import Sample
from tmerge_tui.engine.training.examples import IGNORED, Lesson, read_lessons
from tmerge_tui.models.forward import padded

SAME = "KL of next-token distributions at every position (same tokenizer)"
ACROSS = (
    "KL of next-byte distributions, behind at most one space, at the positions where both tokenizers end a token at "
    "the same character (different tokenizers)"
)
CLASSES = 2 * 257 + 1  # (leading space or not) x (first byte, or nothing more); and special tokens
OTHER, BARE_SPACE, SPECIAL = 256, 513, CLASSES - 1


def same_tokenizer(ours: Any, theirs: Any, samples: Sequence[Sample], mode: str) -> bool:
    """Whether both tokenizers have one vocabulary and give the same ids for these samples."""
    if ours.get_vocab() != theirs.get_vocab():
        return False
    pairs = (read_lessons(samples, tokenizer, 0, mode) for tokenizer in (ours, theirs))
    return all(a.ids == b.ids for a, b in zip(*pairs, strict=True))


def byte_classes(tokenizer: Any, size: int) -> Tensor:
    """int64 [size]: the class of every token id: its leading space and first byte. Ids without a token are special."""
    classes = torch.full((size,), SPECIAL)
    special = set(tokenizer.all_special_ids)
    for token, number in tokenizer.get_vocab().items():
        if number < size and number not in special:
            classes[number] = _class(_bytes(token))
    return classes


def common_classes(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the classes that only one of them has put together: behind a space with the bare space, else as one."""
    mapped = torch.arange(CLASSES)
    for groups in ((BARE_SPACE, range(257, BARE_SPACE)), (OTHER, (BARE_SPACE, *range(OTHER)))):
        present = [torch.bincount(mapped[each], minlength=CLASSES) > 0 for each in (ours, theirs)]
        only_one = present[0] ^ present[1]
        for each in groups[1]:
            if only_one[each]:
                mapped[mapped == each] = groups[0]
    return mapped[ours], mapped[theirs]


def _class(spelled: bytes) -> int:
    space = spelled.startswith(b" ")
    rest = spelled[space:]
    return 257 * space + (rest[0] if rest else OTHER)


def _bytes(token: str) -> bytes:
    """What a vocabulary entry spells: byte-level (Ġ for a space), SentencePiece (▁ for a space, <0x0A>), or itself."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    if "▁" in token:
        return token.replace("▁", " ").encode()
    alphabet = _byte_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """The stand-ins of byte-level vocabularies: a byte that prints is itself, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


@dataclass
class Teacher:
    """The source as it answers one batch of the target's."""

    model: Any  # in eval mode, without gradients, on the device of the training
    tokenizer: Any
    lessons: Sequence[Lesson] | None  # the texts in its own tokens; None: the tokenizer is the same
    student_lessons: Sequence[Lesson]
    student_tokenizer: Any
    _classes: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        student_tokenizer: Any,
        samples: Sequence[Sample],
        student_lessons: Sequence[Lesson],
        length: int,
        mode: str,
        same: bool,
    ) -> Teacher:
        lessons = None if same else read_lessons(samples, tokenizer, length, mode, placed=True)
        return cls(model, tokenizer, lessons, student_lessons, student_tokenizer)

    @property
    def rule(self) -> str:
        return SAME if self.lessons is None else ACROSS

    def loss(self, batch: dict[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        """(sum of KL over the compared positions, how many they are); logits [B, T, V] are the student's."""
        if self.lessons is None:
            return self._same(batch, logits)
        return self._across(batch, logits)

    def _same(self, batch: dict[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        with torch.no_grad():
            theirs = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits
        size = min(theirs.shape[-1], logits.shape[-1])  # embeddings may be padded to different sizes
        compared = batch["labels"][:, 1:] != IGNORED
        student = F.log_softmax(logits[:, :-1, :size][compared].float(), -1)
        teacher = F.log_softmax(theirs[:, :-1, :size][compared].float(), -1)
        return F.kl_div(student, teacher, reduction="sum", log_target=True), int(compared.sum())

    def _across(self, batch: dict[str, Any], logits: Tensor) -> tuple[Tensor, int]:
        assert self.lessons is not None
        width = logits.shape[1]
        numbers = sorted({sample for parts in batch["parts"] for sample, _ in parts})
        at = {sample: row for row, sample in enumerate(numbers)}
        ours: list[tuple[int, int]] = []
        theirs: list[tuple[int, int]] = []
        for row, parts in enumerate(batch["parts"]):
            for sample, begin in parts:
                mine, its = self.student_lessons[sample].ends, self.lessons[sample].ends
                for end in sorted(mine.keys() & its.keys()):
                    place = begin + mine[end]
                    if 0 <= place < width - 1 and batch["attention_mask"][row, place + 1]:
                        ours.append((row, place))
                        theirs.append((at[sample], its[end]))
        if not ours:
            return 0 * logits.sum(), 0
        chosen = torch.tensor(ours, device=logits.device)
        with torch.no_grad():
            said = self._read([self.lessons[sample].ids for sample in numbers])
        if self._classes is None:
            sizes = (self.student_tokenizer, logits.shape[-1]), (self.tokenizer, said.shape[-1])
            found = common_classes(*(byte_classes(tokenizer, size) for tokenizer, size in sizes))
            self._classes = found[0].to(logits.device), found[1].to(logits.device)
        student = _next_byte(logits[chosen[:, 0], chosen[:, 1]], self._classes[0])
        chosen = torch.tensor(theirs, device=said.device)
        teacher = _next_byte(said[chosen[:, 0], chosen[:, 1]], self._classes[1])
        return F.kl_div(student, teacher, reduction="sum", log_target=True), len(ours)

    def _read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = padded(texts, self.model.device)
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def _next_byte(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits [N, V], class of every token [V] -> log-probabilities [N, CLASSES]."""
    probabilities = logits.float().softmax(-1)
    summed = probabilities.new_zeros(len(logits), CLASSES).index_add(1, classes, probabilities)
    return summed.clamp_min(1e-10).log()  # classes that no token has are empty in both
