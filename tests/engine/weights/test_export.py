"""Folding: byte by byte against the target, and stock transformers as the judge of the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.methods.transport_merge.plans import Pair, noisy_biases
from tests.tiny import edit_config, make_model
from tmerge_tui.engine.methods.transport_merge.fusion import FusedUpdate, Fusion, apply
from tmerge_tui.engine.progress import Progress
from tmerge_tui.engine.weights.export import Folded, export
from tmerge_tui.engine.weights.smoke_test import smoke
from tmerge_tui.errors import ModelError, NumericsError, StorageError
from tmerge_tui.events import Artifact, Generated, StageFinished, Warned
from tmerge_tui.models.checkpoint import Checkpoint, copy_bytes
from tmerge_tui.recipe import PROJECTIONS

CPU = torch.device("cpu")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A bf16 target with biases in several shards, with files of its own; a deeper source of another width."""
    target = make_model(tmp_path / "target", "qwen2", dtype=torch.bfloat16, max_shard_size="60KB")
    noisy_biases(target)
    (target / "NOTICE").write_text("keep me")
    (target / "code").mkdir()
    (target / "code" / "extra.py").write_text("# as it is\n")
    source = make_model(tmp_path / "source", "qwen2", layers=3, hidden=48, heads=6, seed=1)
    return Pair.make(tmp_path, target, source, torch.tensor([[0.3, 0.0, 0.2], [0.1, 0.4, 0.0]]))


def folded(pair: Pair, fusion: Fusion, alpha: float = 0.5, norm: str = "free", **options: Any) -> Folded:
    update = FusedUpdate(fusion, pair.target, alpha, norm)
    return export(update, alpha, pair.run.path / "model", pair.run, pair.events.append, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_alpha_zero_is_the_target_byte_for_byte(pair: Pair) -> None:
    result = folded(pair, pair.fuse(PROJECTIONS), 0.0, "keep")
    assert contents(Path(result.folder)) == contents(pair.target.folder)


@pytest.mark.parametrize("norm", ["free", "keep"])
def test_fused_tensors_are_applied_and_all_others_copied(pair: Pair, norm: str) -> None:
    fusion = pair.fuse(["q", "o"], coupling="barycentric")
    result = folded(pair, fusion, 0.5, norm)
    out = Checkpoint(result.folder)
    expected = {f"model.layers.{layer}.self_attn.{x}" for layer in (0, 1) for x in ("q_proj.weight", "o_proj.weight")}
    biases = {f"model.layers.{layer}.self_attn.q_proj.bias" for layer in (0, 1)}
    assert set(result.fused) == expected | biases
    assert result.copied == len(pair.target.names) - 6
    assert out.names == pair.target.names
    for name in out.names:
        same = torch.equal(out.read(name), pair.target.read(name))
        assert same == (name not in expected | biases)
    for f in fusion:
        projection = fusion.projection(f.layer, f.kind)
        b = pair.target.read(projection.bias) if f.kind == "q" and projection.bias else None
        W_new, b_new = apply(pair.target.read(projection.weight), b, f, 0.5, norm)
        assert torch.equal(out.read(projection.weight), W_new.bfloat16())
        if projection.bias and b_new is not None:
            assert torch.equal(out.read(projection.bias), b_new.bfloat16())
    ours, theirs = contents(out.folder), contents(pair.target.folder)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if not name.endswith(".safetensors"))
    assert {file["path"]: file["bytes"] for file in result.files} == {name: len(data) for name, data in ours.items()}


def test_stock_transformers_load_it_and_it_runs(pair: Pair) -> None:
    result = folded(pair, pair.fuse())
    checked = smoke(Path(result.folder), "Two rivers meet", CPU, pair.events.append)
    assert checked.unused == ()
    assert [e for e in pair.events if isinstance(e, Generated)] == [Generated("fused", "Two rivers meet", checked.text)]
    model, info = AutoModelForCausalLM.from_pretrained(result.folder, dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.bfloat16


def test_a_finished_fold_is_not_redone_but_a_touched_one_is(pair: Pair) -> None:
    fusion = pair.fuse()
    first = folded(pair, fusion)
    out = Path(first.folder)
    (out / "README.md").write_text("the card, written later")
    stamp = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert folded(pair, fusion) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamp
    outcomes = [e.outcome for e in pair.events if isinstance(e, StageFinished) and e.stage == "fold"]
    assert outcomes == ["done", "cached"]
    file = out / "config.json"
    file.write_bytes(file.read_bytes().replace(b"qwen2", b"qwenX"))
    assert folded(pair, fusion) == first
    assert contents(out) == contents(out) | {"config.json": (pair.target.folder / "config.json").read_bytes()}
    assert folded(pair, fusion, 0.25) != first
    assert [e.path for e in pair.events if isinstance(e, Artifact)] == [str(out)] * 3


def test_several_folds_share_one_stage(pair: Pair) -> None:
    fusion = pair.fuse()
    updates = [FusedUpdate(fusion, pair.target, alpha, "free") for alpha in (0.1, 0.2)]
    total = sum(copy_bytes(pair.target, update.names) for update in updates)
    with Progress(pair.events.append, "fold", "Writing", total, "bytes") as progress:
        for update in updates:
            out = pair.run.path / f"model-{update.alpha}"
            export(update, update.alpha, out, pair.run, pair.events.append, progress)
    assert progress.done == progress.total


def test_an_interrupted_fold_leaves_nothing_under_the_final_name(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = pair.fuse()

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FusedUpdate, "change", stop)
    with pytest.raises(KeyboardInterrupt):
        folded(pair, fusion)
    assert not (pair.run.path / "model").exists()
    monkeypatch.undo()
    assert folded(pair, fusion).copied > 0


def test_a_full_disk_is_found_before_writing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = pair.fuse()
    usage = shutil.disk_usage(pair.run.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match="1,000 bytes free") as caught:
        folded(pair, fusion)
    assert str(caught.value.expected).startswith(f"{sum(map(len, contents(pair.target.folder).values())):,}")
    assert not (pair.run.path / "model").exists()


def test_a_fused_tensor_that_the_target_lacks_is_refused(pair: Pair, tmp_path: Path) -> None:
    fusion = pair.fuse(["q"])
    other = Checkpoint(make_model(tmp_path / "llama", layers=1))
    with pytest.raises(ModelError, match=r"lacks 3 tensors that were fused, first 'model\.layers\.0"):
        update = FusedUpdate(fusion, other, 0.5, "free")
        export(update, 0.5, tmp_path / "out", pair.run, pair.events.append)


def test_a_tensor_shared_by_two_projections_is_refused(pair: Pair) -> None:
    fusion = pair.fuse(["gate"])
    layout = fusion.layout
    one = layout.get(0, "gate")
    assert one is not None
    shared = [p if p.kind != "gate" else type(p)(**{**vars(p), "weight": one.weight}) for p in layout.projections]
    fusion.layout = type(layout)(layout.layers, tuple(shared), ())
    with pytest.raises(ModelError, match="shared by several"):
        _ = FusedUpdate(fusion, pair.target, 0.5, "free").names


def test_a_weight_that_does_not_fit_is_named(pair: Pair) -> None:
    fusion = pair.fuse(["q"])
    path = fusion.pieces[0]
    tensors, meta = pair.run.load(path)
    tensors["q.moved"][0, 0] = float("inf")
    pair.run.save(path, tensors, meta)
    with pytest.raises(NumericsError, match=r"layers\.0\.self_attn\.q_proj\.weight"):
        folded(pair, fusion)


def test_smoke_refuses_what_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not load"):
        smoke(tmp_path / "nowhere", "a", CPU, lambda event: None)


def test_smoke_refuses_missing_parameters(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "short", layers=1)
    edit_config(folder, num_hidden_layers=2, layer_types=None)
    with pytest.raises(ModelError, match=r"missing .*first model\.layers\.1"):
        smoke(folder, "a", CPU, lambda event: None)


def test_smoke_warns_of_tensors_nobody_reads(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "long", layers=2)
    edit_config(folder, num_hidden_layers=1, layer_types=None)
    events: list[Any] = []
    assert smoke(folder, "a", CPU, events.append).unused
    assert any("does not use" in e.message for e in events if isinstance(e, Warned))


def test_smoke_refuses_logits_that_are_not_finite(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "nan")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(NumericsError, match="NaN or Inf"):
        smoke(folder, "a", CPU, lambda event: None)


def test_the_marker_is_readable_json(pair: Pair) -> None:
    result = folded(pair, pair.fuse())
    (marker,) = pair.run.state.glob("folded-*.json")
    assert json.loads(marker.read_text())["copied"] == result.copied
