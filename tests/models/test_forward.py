"""Forward passes. References: projections split by hand, unpadded texts, tables written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.families import make_family
from tests.tiny import make_model
from tmerge_tui.errors import MemoryShortage, ModelError
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.forward import Batches, HookPoint, hook_point, out_of_memory, padded, record, trunk
from tmerge_tui.models.loading import load_model

CPU = torch.device("cpu")
LENGTHS = {0: 3, 1: 9, 4: 5, 7: 9, 8: 1}  # numbers need not be consecutive


def test_a_side_is_at_the_first_projection_that_has_it(tmp_path: Path) -> None:
    """What a point takes is tested with every family (test_families)."""
    layout = read_facts(make_family(tmp_path, "phi3"), "m").layout
    for side, kind in (("qkv.in", "q"), ("v.out", "v"), ("mlp.in", "gate"), ("down.in", "down")):
        point = hook_point(layout, 1, side)
        assert (point.projection, point.side) == (layout.get(1, kind), side)
    for layer, side in ((2, "q.out"), (0, "residual")):
        with pytest.raises(KeyError, match=side):
            hook_point(layout, layer, side)


def test_hooks_are_gone_when_the_pass_fails(tmp_path: Path) -> None:
    facts = read_facts(make_model(tmp_path / "model"), "m")
    model = load_model(facts, CPU, torch.float32, None, lambda event: None)
    point = hook_point(facts.layout, 0, "q.out")

    def fail(point: HookPoint, seen: Tensor) -> None:
        raise ValueError(point.side)

    with pytest.raises(ValueError, match=r"q\.out"), record(model, [point], fail):
        model(input_ids=torch.tensor([[1, 2]]))
    model(input_ids=torch.tensor([[1, 2]]))


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = padded([(4, 5, 6), [7]], filler=-100)
    assert ids.tolist() == [[4, 5, 6], [7, -100, -100]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "falcon_rw"])
@pytest.mark.parametrize("filler", [0, 9])
def test_no_text_sees_its_padding(tmp_path: Path, family: str, filler: int) -> None:
    facts = read_facts(make_family(tmp_path, family), family)
    model = load_model(facts, CPU, torch.float32, None, lambda event: None)
    texts = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    ids, mask = padded(texts, filler=filler)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits
        for row, text in enumerate(texts):
            alone = model(input_ids=torch.tensor([text])).logits[0]
            torch.testing.assert_close(together[row, : len(text)], alone, rtol=1e-4, atol=1e-5)


class Passes:
    """A model with room for some tokens at once: what it was asked, and the batches that fitted."""

    def __init__(self, room: int, size: int) -> None:
        self.asked: list[list[int]] = []
        self.said: list[str] = []
        self.room = room
        self.batches = Batches("tiny", size, CPU, self.said.append)

    def forward(self, batch: Sequence[int]) -> list[int]:
        self.asked.append(list(batch))
        if len(batch) * LENGTHS[batch[0]] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [10 * number for number in batch]

    def run(self) -> list[tuple[list[int], list[int]]]:
        return [(list(batch), made) for batch, made in self.batches.run(LENGTHS, self.forward)]


def test_batches_are_halved_until_they_fit_and_stay_so() -> None:
    passes = Passes(room=18, size=16)
    found = passes.run()
    assert [number for batch, _ in found for number in batch] == [1, 7, 4, 0, 8]  # longest first, equals in their order
    assert all(made == [10 * number for number in batch] for batch, made in found)
    assert all(len(batch) * LENGTHS[batch[0]] <= 18 for batch, _ in found)
    assert passes.asked[0] == [1, 7, 4, 0, 8]
    assert passes.said == ["out of memory: batch size is now 2"]
    passes.asked.clear()
    assert passes.run() == found
    assert passes.asked == [batch for batch, _ in found] and len(passes.said) == 1


def _widths(lengths: Sequence[int], size: int) -> list[list[int]]:
    batches = Batches("tiny", size, CPU, lambda message: None)
    return [[lengths[i] for i in batch] for batch, _ in batches.run(dict(enumerate(lengths)), lambda batch: None)]


def test_a_batch_has_as_many_tokens_as_its_size_of_the_longest_and_so_more_of_short_texts() -> None:
    batches = _widths([400] * 8 + [100] * 64, size=4)
    assert [len(batch) for batch in batches] == [4, 4, 16, 16, 16, 16]


def test_little_of_a_full_batch_is_padding_and_a_small_one_is_not_torn() -> None:
    lengths = [17 * i % 397 + 4 for i in range(400)]  # every length from 4 to 400, once or twice
    batches = _widths(lengths, size=16)
    assert sorted(n for batch in batches for n in batch) == sorted(lengths)
    read, whole = sum(lengths), sum(len(batch) * batch[0] for batch in batches)
    assert 1 - read / whole < 0.05
    assert _widths([40, 20, 10, 5], size=16) == [[40, 20, 10, 5]]  # 160 tokens in all: one pass


def test_one_text_too_many_is_a_memory_shortage_that_names_it() -> None:
    passes = Passes(room=0, size=4)
    with pytest.raises(MemoryShortage, match="tiny: no memory for one text of 9 tokens on cpu") as caught:
        passes.run()
    assert [len(batch) for batch in passes.asked] == [4, 2, 1]
    assert "memory:" in caught.value.hint


def test_no_text_is_no_batch_and_other_errors_pass() -> None:
    passes = Passes(room=9, size=4)
    assert list(passes.batches.run({}, passes.forward)) == []

    def broken(batch: Sequence[int]) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(passes.batches.run(LENGTHS, broken))
    assert not passes.said


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error: Exception, full: bool) -> None:
    assert out_of_memory(error) is full


def test_a_model_without_a_trunk() -> None:
    decoder = nn.Linear(1, 1)
    whole = nn.Module()
    whole.get_decoder = lambda: decoder  # type: ignore[assignment]
    assert trunk(whole) is decoder
    bare = SimpleNamespace()
    for none in (nn.Linear(1, 1), bare):
        with pytest.raises(ModelError, match="no decoder apart from its head"):
            trunk(none)  # type: ignore[arg-type]
