"""Byte events against the rule written out with Python's dictionaries, in fp64, one token at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import LINES, make_tokenizer
from tmerge_tui.engine.training.boundaries import Pairing, pair
from tmerge_tui.engine.training.byte_events import event_loss, teach
from tmerge_tui.engine.training.event_cache import Events, collate_events, from_tensors, to_tensors
from tmerge_tui.engine.training.event_space import EventSpace
from tmerge_tui.engine.training.placebos import of_other_texts, permuted, unigram
from tmerge_tui.engine.training.vocabulary import Vocabulary, read_vocabulary, token_ends
from tmerge_tui.errors import DataError

END, SPECIAL, REST = "end of text", "special", "rest"
Key = bytes | str


def vocabulary(*spelled: bytes | None, special: tuple[int, ...] = (), end: int | None = None) -> Vocabulary:
    return Vocabulary("v", spelled, {row: b"<%d>" % row for row in special}, end, "")


def key_of(row: int, mine: Vocabulary, other: Vocabulary) -> Key:
    """What a token is before events are looked for."""
    if row in mine.special:
        if row == mine.end and other.end is not None:
            return END
        return SPECIAL if set(other.special) - ({other.end} if mine.end is not None else set()) else REST
    return mine.spelled[row] or REST


def longest(start: Key, among: Any) -> Key:
    if isinstance(start, str):
        return start if start in among else REST
    return next((start[:n] for n in range(len(start), 0, -1) if start[:n] in among), REST)


def naive(p: list[float], behind: bytes, source: Vocabulary, target: Vocabulary, k: int) -> dict[Key, float] | None:
    """P of the k chosen events and the rest; None when nothing is longer than `behind`."""
    tokens = {key_of(row, target, source) for row in range(target.rows)} - {REST}
    own: Counter[Key] = Counter()
    for row, mass in enumerate(p):
        key = key_of(row, source, target)
        if behind:
            if isinstance(key, str) or not key.startswith(behind) or key == behind:
                continue
            key = key[len(behind) :]
        own[longest(key, tokens)] += mass
    own.pop(REST, None)  # what the target cannot say
    if not own:
        return None
    chosen = sorted(own, key=lambda key: -own[key])[:k]
    found: dict[Key, float] = dict.fromkeys([*chosen, REST], 0.0)
    for key, mass in own.items():
        found[longest(key, chosen)] += mass / sum(own.values())
    return found


def naive_classes(chosen: list[Key], source: Vocabulary, target: Vocabulary) -> list[int]:
    """Of every target row, its class; the last one is the rest."""
    keys = (longest(key_of(row, target, source), chosen) for row in range(target.rows))
    return [len(chosen) if key == REST else chosen.index(key) for key in keys]


def naive_loss(logits: Tensor, told: dict[Key, float], source: Vocabulary, target: Vocabulary) -> Tensor:
    chosen = [key for key in told if key != REST]
    q = logits.double().softmax(-1)
    classes = torch.tensor(naive_classes(chosen, source, target))
    sums = q.new_zeros(len(chosen) + 1).index_add(0, classes, q)
    p = q.new_tensor([told[key] for key in chosen] + [told[REST]])
    there = p > 0
    return (p[there] * (p[there].log() - sums[there].log())).sum()


def named(events: Events, i: int, source: Vocabulary, target: Vocabulary) -> dict[Key, float]:
    part = slice(events.offsets[i], events.offsets[i + 1])
    keys = [key_of(int(row), target, source) for row in events.ids[part]]
    return dict(zip(keys, events.masses[part].tolist(), strict=True)) | {REST: float(events.rest[i])}


def one_position(behind: bytes = b"") -> Pairing:
    return Pairing(np.zeros(1, np.int32), np.zeros(1, np.int32), (behind,))


def loss_of(logits: Tensor, texts: list[Events], space: EventSpace) -> Tensor:
    """Texts of one block each; logits [B, T, V]."""
    parts = [[(i, 0)] for i in range(len(texts))]
    return event_loss(logits, collate_events(texts, parts, torch.ones(logits.shape[:2], dtype=torch.bool)), space)


def kl(said: Tensor, logits: Tensor) -> Tensor:
    """Of next-token distributions, summed over positions, fp64."""
    q, p = logits.double().log_softmax(-1), said.double().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


@st.composite
def vocabularies(draw: Any) -> Vocabulary:
    words = st.binary(min_size=1, max_size=4).map(lambda w: bytes(b"ab "[x % 3] for x in w))
    spelled = draw(st.lists(words, min_size=1, max_size=14))  # some twice: bytes and characters of SentencePiece
    special = draw(st.integers(0, 3))
    unused = draw(st.integers(0, 2))
    rows = draw(st.permutations([*spelled, *[None] * (special + unused)]))
    empty = [row for row, each in enumerate(rows) if each is None][:special]
    end = draw(st.sampled_from([None, *empty]))
    return vocabulary(*rows, special=tuple(empty), end=end)


@given(
    vocabularies(), vocabularies(), st.sampled_from([b"", b"a", b" ", b"ab"]), st.integers(1, 16), st.integers(0, 99)
)
@settings(deadline=None, max_examples=300)
def test_events_and_loss_are_the_rule(source: Vocabulary, target: Vocabulary, behind: bytes, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    said = 3 * torch.randn(1, 1, source.rows, generator=generator)
    logits = 3 * torch.randn(1, 1, target.rows, generator=generator)
    space = EventSpace.between(source, target)
    expected = naive(said.double().softmax(-1).flatten().tolist(), behind, source, target, k)
    (events,) = teach(said, [one_position(behind)], space, k)
    if expected is None:
        assert len(events.places) == 0
        return
    assert named(events, 0, source, target) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert sum(events.masses) + sum(events.rest) == pytest.approx(1, abs=1e-6)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, wanted = loss_of(ours, [events], space), naive_loss(theirs[0, 0], expected, source, target)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)
    found.backward()
    wanted.backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


def test_with_one_tokenizer_and_every_token_it_is_the_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    said, logits = (4 * torch.randn(2, 5, 300, generator=generator) for _ in range(2))
    logits.requires_grad_()
    places = np.arange(5, dtype=np.int32)
    texts = teach(said, [Pairing(places, places, (b"",) * 5)] * 2, EventSpace.same(300, 300), 300)
    plain = kl(said, logits)
    found = loss_of(logits, texts, EventSpace.same(300, 300))
    assert found.item() / 10 == pytest.approx(plain.item() / 10, abs=1e-6)
    (wanted,) = torch.autograd.grad(plain, logits)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_the_way_across_tokenizers_gives_the_same_between_equal_ones() -> None:
    tokenizer = make_tokenizer(300)
    mine = read_vocabulary(tokenizer, 300)
    generator = torch.Generator().manual_seed(1)
    said, logits = (4 * torch.randn(1, 1, 300, generator=generator) for _ in range(2))
    across = EventSpace.between(mine, replace(mine))
    found = loss_of(logits, teach(said, [one_position()], across, 300), across)
    assert found.item() == pytest.approx(kl(said, logits).item(), rel=1e-6)


@pytest.mark.parametrize("k", [4, 300])
def test_a_student_that_says_what_the_source_says_learns_nothing(k: int) -> None:
    tokenizer = make_tokenizer(300)
    mine = read_vocabulary(tokenizer, 300)
    said = (4 * torch.randn(1, 1, 300, generator=torch.Generator().manual_seed(2))).requires_grad_()
    for space in (EventSpace.same(300, 300), EventSpace.between(mine, mine)):
        loss = loss_of(said, teach(said.detach(), [one_position()], space, k), space)
        (gradient,) = torch.autograd.grad(loss, said)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert float(gradient.abs().max()) < 1e-6


def test_heads_of_other_sizes_compare_what_the_students_rows_can_say() -> None:
    small, large = torch.zeros(1, 1, 4), torch.zeros(1, 1, 6)
    (events,) = teach(large, [one_position()], EventSpace.same(6, 4), 10)
    assert events.ids.tolist() == [0, 1, 2, 3] and events.masses.tolist() == [0.25] * 4
    assert loss_of(small, [events], EventSpace.same(6, 4)).item() == pytest.approx(0, abs=1e-6)
    (events,) = teach(small, [one_position()], EventSpace.same(4, 6), 10)
    assert loss_of(large, [events], EventSpace.same(4, 6)).item() == pytest.approx(np.log(6 / 4), abs=1e-6)


def test_a_position_at_which_the_source_says_what_the_target_cannot_is_left_out() -> None:
    space = EventSpace.between(vocabulary(b"a", b"z"), vocabulary(b"a", b"b"))
    said = torch.tensor([[[0.0, 0.0], [0.0, 60.0]]])
    places = np.arange(2, dtype=np.int32)
    (events,) = teach(said, [Pairing(places, places, (b"", b""))], space)
    assert events.places.tolist() == [0] and events.masses.tolist() == [1]


def test_small_masses_keep_their_digits_beside_large_ones() -> None:
    """A vocabulary of 20,000, an event of 1e-9 inside one of 0.9: differences of fp32 sums lose it."""
    words = [b"a", *(b"a%05d" % i for i in range(20_000)), b"b"]
    target = vocabulary(*words)
    source = vocabulary(b"a", b"a00007", b"b")
    space = EventSpace.between(source, target)
    (events,) = teach(torch.tensor([[[0.0, -1.0, -2.0]]]), [one_position()], space, 3)
    logits = torch.full((1, 1, target.rows), -14.0)
    logits[0, 0, 0], logits[0, 0, 8], logits[0, 0, -1] = 5.0, -16.0, 3.0
    logits.requires_grad_()
    wanted = naive_loss(logits[0, 0], named(events, 0, source, target), source, target)
    found = loss_of(logits, [events], space)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


def test_an_event_the_student_finds_impossible_costs_a_finite_loss_with_a_gradient() -> None:
    source = target = vocabulary(b"a", b"b")
    space = EventSpace.between(source, target)
    events = teach(torch.zeros(1, 1, 2), [one_position()], space)
    logits = torch.tensor([[[0.0, -70.0]]], requires_grad=True)
    loss = loss_of(logits, events, space)
    assert loss.item() == pytest.approx(35 - np.log(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.flatten().tolist() == pytest.approx([0.5, -0.5])


def test_unshared_tokens_move_with_their_event() -> None:
    """The target's " rivers" is no token of the source: it follows " r", as fast as the other tokens of that event."""
    source, target = vocabulary(b" ", b" r", b"x"), vocabulary(b" ", b" r", b" rivers", b"x")
    space = EventSpace.between(source, target)
    events = teach(torch.tensor([[[0.0, 3.0, 0.0]]]), [one_position()], space)
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_of(logits, events, space), logits)
    assert gradient[0, 0, 1] == pytest.approx(gradient[0, 0, 2].item()) and gradient[0, 0, 2] < 0


def test_vocabularies_without_anything_in_common_say_nothing() -> None:
    space = EventSpace.between(vocabulary(b"a", b"b"), vocabulary(b"c", None))
    (events,) = teach(torch.zeros(1, 1, 2), [one_position()], space)
    assert len(events.places) == 0
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    loss = loss_of(logits, [events], space)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


class Pair:
    """Two byte-level tokenizers on real text; random logits; BOS is on the target's side alone; pad is end of text."""

    def __init__(self, every: bool) -> None:
        self.theirs, self.ours = make_tokenizer(340), make_tokenizer(300)
        self.source, self.target = read_vocabulary(self.theirs, 352), read_vocabulary(self.ours, 310)
        self.space = EventSpace.between(self.source, self.target)
        self.texts = [*LINES[:3], "é中 and a héron"]
        self.ids = [self.ours("<|end|>" + text).input_ids for text in self.texts]
        self.pairings = []
        width = 0
        for text, ours in zip(self.texts, self.ids, strict=True):
            theirs = self.theirs(text).input_ids
            raw = text.encode()
            ends = token_ends(self.source, theirs, raw), token_ends(self.target, ours, raw)
            self.pairings.append(pair(*ends, raw, every))
            width = max(width, len(theirs))
        generator = torch.Generator().manual_seed(3)
        self.said = 3 * torch.randn(len(self.texts), width, 352, generator=generator)
        self.logits = 3 * torch.randn(len(self.texts), max(map(len, self.ids)), 310, generator=generator)


@pytest.mark.parametrize("every", [False, True])
def test_on_real_texts_it_is_the_rule_at_every_position(every: bool) -> None:
    case = Pair(every)
    texts = teach(case.said, case.pairings, case.space, 8)
    wanted, positions = 0.0, 0
    for i, (pairing, events) in enumerate(zip(case.pairings, texts, strict=True)):
        at = 0
        for ours, theirs, behind in zip(pairing.ours, pairing.theirs, pairing.behind, strict=True):
            p = case.said[i, theirs].double().softmax(-1).tolist()
            expected = naive(p, behind, case.source, case.target, 8)
            if expected is None:
                continue
            assert events.places[at] == ours
            assert named(events, at, case.source, case.target) == pytest.approx(expected, rel=1e-4, abs=1e-6)
            wanted += naive_loss(case.logits[i, ours], expected, case.source, case.target).item()
            at += 1
        assert at == len(events.places)
        positions += at
    assert positions > 60 and any(b for p in case.pairings for b in p.behind) == every
    assert loss_of(case.logits, texts, case.space).item() == pytest.approx(wanted, rel=1e-5)


def test_only_positions_that_are_learnt_count_wherever_a_block_has_them() -> None:
    """Two texts in two blocks, the second cut in its middle: the same loss as position by position."""
    case = Pair(True)
    texts = teach(case.said, case.pairings, case.space, 8)
    first = len(case.ids[0])
    stream = torch.cat([case.logits[0, :first], case.logits[1]])
    cut = first + 5
    blocks = torch.nn.utils.rnn.pad_sequence([stream[:cut], stream[cut:]], batch_first=True)
    counted = torch.ones(blocks.shape[:2], dtype=torch.bool)
    counted[0, 3] = counted[0, cut:] = False
    batch = collate_events(texts, [[(0, 0), (1, first)], [(1, first - cut)]], counted)
    learnt = [texts[0].take(np.flatnonzero(texts[0].places != 3)), texts[1]]
    assert len(batch.rows) == sum(len(text.places) for text in learnt) and 3 in texts[0].places
    wanted = loss_of(case.logits[:2], learnt, case.space)
    assert event_loss(blocks, batch, case.space).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_gradient_is_of_the_type_of_the_logits_and_is_scaled() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    full = case.logits.clone().requires_grad_()
    (3 * loss_of(full, texts, case.space)).backward()
    half = case.logits.bfloat16().requires_grad_()
    (3 * loss_of(half, texts, case.space)).backward()
    assert half.grad is not None and full.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=0.05, atol=0.05)


def test_chunks_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Pair(True)
    whole = teach(case.said, case.pairings, case.space)
    expected = loss_of(case.logits, whole, case.space)
    module = "tmerge_tui.engine.training.byte_events._chunks"
    monkeypatch.setattr(module, lambda positions, *_: [slice(i, i + 3) for i in range(0, positions, 3)])
    parts = teach(case.said, case.pairings, case.space)
    assert [a.ids.tolist() for a in parts] == [b.ids.tolist() for b in whole]
    assert loss_of(case.logits, parts, case.space).item() == pytest.approx(expected.item(), rel=1e-6)


class Sizes(TorchDispatchMode):
    """What is made: numbers in the largest tensor that is not of one shape, and the types of all."""

    def __init__(self, apart: torch.Size) -> None:
        super().__init__()
        self.apart, self.largest, self.types = apart, 0, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, Tensor):
                self.types.add(each.dtype)
                self.largest = max(self.largest, each.numel() if each.shape != self.apart else 0)
        return made


def test_nothing_as_large_as_positions_and_vocabulary_is_made_but_the_gradient() -> None:
    rows, positions = 30_000, 300
    mine = vocabulary(*(b"%05d" % i for i in range(rows)))
    space = EventSpace.between(mine, mine)
    logits = torch.randn(1, positions, rows, requires_grad=True)
    places = np.arange(positions, dtype=np.int32)
    with Sizes(logits.shape) as sizes:
        texts = teach(logits.detach(), [Pairing(places, places, (b"",) * positions)], space, 8)
        loss_of(logits, texts, space).backward()
    assert sizes.largest <= 1 << 22 < logits.numel()
    assert torch.float64 not in sizes.types


def test_events_come_back_from_their_file(tmp_path: Any) -> None:
    case = Pair(True)
    texts = [
        *teach(case.said, case.pairings, case.space),
        *teach(case.said[:1], [one_position(b"no token")], case.space),
    ]
    save_file(to_tensors(texts, exact=True), tmp_path / "events.safetensors")
    back = from_tensors(load_file(tmp_path / "events.safetensors"))
    assert len(back) == len(texts) and len(back[-1].places) == 0
    for a, b in zip(texts, back, strict=True):
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            assert np.array_equal(x, y) and x.dtype == y.dtype


def test_without_need_for_all_digits_the_file_is_small(tmp_path: Any) -> None:
    case = Pair(True)
    texts = teach(case.said, case.pairings, case.space)
    save_file(to_tensors(texts), tmp_path / "events.safetensors")
    positions = sum(len(text.places) for text in texts)
    assert (tmp_path / "events.safetensors").stat().st_size < 300 * positions
    back = from_tensors(load_file(tmp_path / "events.safetensors"))
    for a, b in zip(texts, back, strict=True):
        assert np.array_equal(a.ids, b.ids) and a.masses == pytest.approx(b.masses, rel=1e-3, abs=1e-7)
        sums = [m.sum() + r for m, r in zip(np.split(b.masses, b.offsets[1:-1]), b.rest, strict=True)]
        assert sums == pytest.approx([1] * len(sums), abs=1e-6)


def test_a_file_that_lost_a_part_is_named() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    tensors = to_tensors(texts)
    with pytest.raises(DataError, match="incomplete"):
        from_tensors(tensors | {"masses": tensors["masses"][:-1]})


def test_placebos_have_the_positions_and_sums_of_the_real_thing_and_not_its_knowledge() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    real = loss_of(case.logits, texts, case.space).item()
    for made in (of_other_texts(texts, 0), permuted(texts, 0), unigram(texts, case.space)):
        for a, b in zip(texts, made, strict=True):
            assert a.places.tolist() == b.places.tolist() and len(b.rest) == len(b.places) == len(b.offsets) - 1
            sums = [m.sum() + r for m, r in zip(np.split(b.masses, b.offsets[1:-1]), b.rest, strict=True)]
            assert sums == pytest.approx([1] * len(sums), abs=1e-5)
        assert loss_of(case.logits, made, case.space).item() != pytest.approx(real, rel=1e-3)


def test_another_texts_events_are_no_texts_own() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    for seed in range(5):
        lent = of_other_texts(texts, seed)
        starts = [tuple(text.masses[:64].tolist()) for text in texts]
        given_to = [starts.index(tuple(text.masses[:64].tolist())) for text in lent]
        assert sorted(given_to) == [0, 1, 2, 3] and all(i != j for i, j in enumerate(given_to))
    with pytest.raises(DataError, match="1 text"):
        of_other_texts(texts[:1], 0)


def test_permuted_masses_stay_at_their_position() -> None:
    case = Pair(False)
    texts = teach(case.said, case.pairings, case.space)
    mixed = permuted(texts, 0)
    for a, b in zip(texts, mixed, strict=True):
        assert (
            np.array_equal(a.ids, b.ids) and np.array_equal(a.rest, b.rest) and not np.array_equal(a.masses, b.masses)
        )
        for i in range(len(a.places)):
            part = slice(a.offsets[i], a.offsets[i + 1])
            assert sorted(a.masses[part]) == sorted(b.masses[part])


def test_the_unigram_is_the_mean_of_what_was_said() -> None:
    source = target = vocabulary(b"a", b"ab", b"c")
    space = EventSpace.between(source, target)
    said = torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]]).log()
    texts = teach(said, [one_position()] * 2, space)
    for k, wanted in ((3, {b"a": 0.3, b"ab": 0.2, b"c": 0.5, REST: 0}), (2, {b"a": 0.5, b"c": 0.5, REST: 0})):
        for text in unigram(texts, space, k):
            assert named(text, 0, source, target) == pytest.approx(wanted, abs=1e-6)
