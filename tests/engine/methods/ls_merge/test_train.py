"""The autoencoder's training. References: an uninterrupted one, and arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_model
from tmerge_tui.engine.methods.ls_merge import windows as windows_module
from tmerge_tui.engine.methods.ls_merge.encode import Coder
from tmerge_tui.engine.methods.ls_merge.manifest import read_manifest
from tmerge_tui.engine.methods.ls_merge.train import KL, RECONSTRUCTION, Plan, load, train
from tmerge_tui.engine.methods.ls_merge.vae import Shape, Vae, depth_step
from tmerge_tui.engine.methods.ls_merge.windows import Windows, of_matrix
from tmerge_tui.errors import NumericsError
from tmerge_tui.events import Event, TrainingStep, Warned
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import LsMerge
from tmerge_tui.run_folder import RunDir

KINDS = ("q", "down")
CPU = torch.device("cpu")
OPTIONS = LsMerge(
    chunk=8, width=16, blocks=1, window=8, batch_size=4, epochs=3, kl_epochs=2, checkpoints=2, learning_rate=5e-3
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    folder = tmp_path_factory.mktemp("models")
    run = RunDir.create(folder / "run")
    found = {}
    for role, hidden, layers in (("target", 16, 2), ("source", 24, 3)):
        made = make_model(folder / role, "llama", hidden=hidden, layers=layers, intermediate=20, seed=layers)
        layout = read_facts(made, role).layout
        found[role] = read_manifest(Checkpoint(made), layout, KINDS, 8, True, run, lambda now: None)
    return Windows(Pair(target=found["target"], source=found["source"]), KINDS, 8, 4)


@pytest.fixture
def plan(windows: Windows) -> Plan:
    return Plan.of(Shape(8, 8, 16, 1, 2), OPTIONS, windows.steps)


class Stopped(Exception):
    pass


def trained(windows: Windows, plan: Plan, folder: Path, tell: Any, emit: Any = lambda event: None) -> Any:
    return train(windows, plan, OPTIONS, 7, "content", CPU, RunDir.create(folder), emit, tell)


def test_an_epoch_has_every_chunk_once_in_an_order_of_its_own(windows: Windows) -> None:
    epochs = [windows.epoch(0, number) for number in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1] and len(epochs[0]) == windows.steps
    batches = [windows.batch(each) for each in epochs[0]]
    assert sum(int(batch.mask.sum()) for batch in batches) == windows.chunks
    assert sum(int(batch.weights.sum()) for batch in batches) == sum(matrix.numbers for _, matrix in windows.matrices)


def test_one_shard_is_in_memory(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "SHARD", 2000)  # bytes: a matrix or two
    manifests = [one for one, _ in windows.matrices]
    small = Windows(Pair(target=manifests[0], source=manifests[-1]), KINDS, 8, 4)
    assert len(small.shards) > 3
    chunks = 0
    for batch in small.epoch(0, 0):
        chunks += int(small.batch(batch).mask.sum())
        held = sum(4 * rows.numel() for rows in small._held.values())
        assert held <= 2000 or len(small._held) == 1
    assert chunks == windows.chunks


def test_moments_stand_in_both_phases(plan: Plan) -> None:
    assert plan.first == 3 * plan.per_epoch and plan.steps == 5 * plan.per_epoch == plan.moments[-1]
    assert [plan.phase(step) for step in plan.moments] == [RECONSTRUCTION, RECONSTRUCTION, KL, KL]


def test_what_tells_the_text_best_in_the_last_phase_is_kept(windows: Windows, plan: Plan, tmp_path: Path) -> None:
    """And not what has the smallest loss, nor a better one of the first phase."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    told = dict(zip(plan.moments, (1.0, 1.1, 2.0, 3.0), strict=True))

    def tell(vae: Vae, step: int) -> float:
        seen[step] = {name: value.clone() for name, value in vae.state_dict().items()}
        return told[step]

    events: list[Event] = []
    path, course = trained(windows, plan, tmp_path, tell, events.append)
    assert course.best.step == plan.moments[2] and [m.bits_per_byte for m in course.moments] == list(told.values())
    kept = load(path, plan.shape, RunDir(tmp_path), CPU).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[plan.moments[2]].items())
    steps = [event for event in events if isinstance(event, TrainingStep)]
    assert steps[-1].step == plan.steps and steps[-1].loss < steps[0].loss
    assert not list((tmp_path / "state").glob("autoencoder-at-*")), "the checkpoint goes"


def test_a_training_that_is_cut_at_any_moment_ends_in_the_same_bytes(
    windows: Windows, plan: Plan, tmp_path: Path
) -> None:
    def tell(vae: Vae, step: int) -> float:
        return float(vae.decoder.leave.bias.detach().abs().sum())

    path, course = trained(windows, plan, tmp_path / "straight", tell)
    for moment in plan.moments:

        def cut(event: Event, moment: int = moment) -> None:
            if isinstance(event, TrainingStep) and event.step > moment:
                raise Stopped

        if moment < plan.steps:
            with pytest.raises(Stopped):
                trained(windows, plan, tmp_path / "cut", tell, cut)
    begun: list[int] = []
    again, theirs = trained(
        windows, plan, tmp_path / "cut", tell, lambda e: begun.append(e.step) if isinstance(e, TrainingStep) else None
    )
    assert begun[0] > plan.moments[-2], "what was trained is not trained again"
    assert again.read_bytes() == path.read_bytes() and theirs == course


def test_a_damaged_checkpoint_is_said_and_training_begins_again(windows: Windows, plan: Plan, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.piece("autoencoder-at", "content").write_bytes(b"\x00\x01")
    events: list[Event] = []
    _, course = trained(windows, plan, tmp_path, lambda vae, step: 1.0, events.append)
    assert any(isinstance(event, Warned) and "damaged" in event.message for event in events)
    assert course.step == plan.steps


def test_a_loss_that_is_not_finite_is_an_error(
    windows: Windows, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vae, "decode", lambda self, z, *_: z * float("inf"))
    with pytest.raises(NumericsError, match="learning_rate"):
        trained(windows, plan, tmp_path, lambda vae, step: 1.0)


def test_bfloat16_passes_train_the_same_thing(windows: Windows, plan: Plan, tmp_path: Path) -> None:
    half = OPTIONS.model_copy(update={"bf16": True})
    run = RunDir.create(tmp_path)
    path, course = train(windows, plan, half, 7, "half", CPU, run, lambda event: None, lambda vae, step: 1.0)
    assert course.curve[-1][1] < course.curve[0][1]
    assert all(value.dtype == torch.float32 for value in load(path, plan.shape, run, CPU).state_dict().values())


def test_the_divergence_is_that_of_two_gaussians() -> None:
    """Reference: torch.distributions."""
    torch.manual_seed(0)
    vae = Vae(Shape(8, 4, 16, 1, 2))
    torch.nn.init.normal_(vae.encoder.leave.weight)
    x, mask = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    where = torch.zeros(2, dtype=torch.int64)
    mean, spread = vae.encode(x, where, where, mask)
    _, divergence = vae(x, where, where, mask, None)
    q = torch.distributions.Normal(mean, (spread / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    assert torch.allclose(divergence, torch.distributions.kl_divergence(q, standard), rtol=1e-4, atol=1e-5)


def test_windows_do_not_see_what_is_filled_up(windows: Windows) -> None:
    torch.manual_seed(0)
    vae = Vae(Shape(8, 8, 16, 1, 2)).eval()
    _, matrix = windows.matrices[0]
    chunks = torch.randn(11, 8)
    coder = Coder(vae, KINDS, 8, CPU)
    whole = coder.encode(chunks, matrix, 2)
    assert whole.shape == (11, 8)
    batch = of_matrix(chunks, matrix, 2, KINDS, 8)
    garbage = torch.where(batch.mask.unsqueeze(-1), batch.x, 99.0)
    mean, _ = vae.encode(garbage, batch.depth, batch.kind, batch.mask)
    assert torch.allclose(mean.flatten(0, 1)[:11], whole, atol=1e-5)


def test_depth_is_a_share() -> None:
    assert depth_step(0, 12) == depth_step(0, 3) == depth_step(0, 1) == 0
    assert depth_step(11, 12) == depth_step(2, 3)
