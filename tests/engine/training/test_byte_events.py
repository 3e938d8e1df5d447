"""Byte events against the rule (`event_rule`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.training.event_rule import (
    Pair,
    kl,
    loss_of,
    naive,
    naive_loss,
    named,
    one_position,
    vocabulary,
)
from tests.tiny import make_tokenizer
from tmerge_tui.engine.data.vocabulary import Vocabulary, read_vocabulary
from tmerge_tui.engine.training.boundaries import Pairing
from tmerge_tui.engine.training.byte_events import event_loss, teach
from tmerge_tui.engine.training.event_cache import collate_events
from tmerge_tui.engine.training.event_space import EventSpace


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
