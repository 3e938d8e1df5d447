"""The cluster that the transport stage runs on: nodes that are lost or unlike, GPUs, one that cannot be joined."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.methods.transport_merge.on_ray import only, pieces, recipe, solve
from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine.methods.transport_merge import feature_plans as stage
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.engine.preflight import check
from tmerge_tui.errors import ClusterError, ExtraMissing
from tmerge_tui.events import Event, PairSolved, Warned
from tmerge_tui.recipe import Transport
from tmerge_tui.run_folder import RunDir


def test_a_lost_node_is_made_up_for_and_said(
    joined: Any,
    nodes: Any,
    run: RunDir,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_solver, "LOOK", 0.2)
    work, stuck, extra = ray_solver.work, tmp_path / "stuck", nodes.add_node(num_cpus=1)
    lost = extra.node_id

    def hangs_there(*args: Any) -> Any:
        import ray

        if ray.get_runtime_context().get_node_id() == lost:
            stuck.touch()
            time.sleep(1000)
        return work(*args)

    def pull_the_plug(event: Event) -> None:
        if isinstance(event, PairSolved) and stuck.exists() and extra in nodes.worker_nodes:
            nodes.remove_node(extra, allow_graceful=False)

    monkeypatch.setattr(ray_solver, "work", hangs_there)
    monkeypatch.setattr(stage, "CALL", {"cpu": 1})
    try:
        events = solve(run, recipe(), pull_the_plug)
    finally:
        if extra in nodes.worker_nodes:
            nodes.remove_node(extra)
        nodes.wait_for_nodes()
    assert stuck.exists() and pieces(run) == expected
    (warning,) = only(events, Warned)
    assert "was lost" in warning.message


def test_gpus_are_taken_where_there_are_any(
    joined: Any, nodes: Any, run: RunDir, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is told of a GPU; whether torch finds one there is another matter."""
    with pytest.raises(ClusterError, match="no node of the Ray cluster has a GPU"):
        solve(run, recipe("cuda"))
    work, extra = ray_solver.work, nodes.add_node(num_cpus=1, num_gpus=1)
    try:
        solve(run, recipe("cpu"))
        assert pieces(run) == expected
        other = RunDir.create(tmp_path / "other")
        if not torch.cuda.is_available():
            with pytest.raises(ClusterError, match=r"offers a GPU that its torch .* cannot use"):
                solve(other, recipe("auto"))

        def notes_its_gpu(version: str, device: str, *args: Any) -> Any:
            import ray

            (tmp_path / f"{device}-{len(ray.get_gpu_ids())}").touch()
            return work(version, "cpu", *args)

        monkeypatch.setattr(ray_solver, "work", notes_its_gpu)
        solve(other, recipe("auto"))
        assert [path.name for path in tmp_path.glob("c*-*")] == ["cuda-1"]
    finally:
        nodes.remove_node(extra)
        nodes.wait_for_nodes()


def test_a_full_cluster_is_said(joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "available_resources", lambda: {"memory": 1e9})
    monkeypatch.setattr(ray_solver, "LAG", 0.1)
    (warning,) = only(solve(run, recipe()), Warned)
    assert "every CPU of the Ray cluster is taken" in warning.message


def test_nodes_have_what_the_run_has(joined: Any, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ray_solver, "__version__", "9.9")
        with pytest.raises(ClusterError, match=r"has tmerge .*\n  expected: tmerge 9\.9\n  next: pip install"):
            solve(run, recipe())
    with monkeypatch.context() as patch:
        patch.setattr(ray_solver, "versions", lambda: {"tmerge": ray_solver.__version__, "torch": "1.0"})
        said = [event.message for event in only(solve(run, recipe()), Warned)]
        assert len(said) == 1 and "torch 1.0" in said[0] and "rounding" in said[0], said
    package = tmp_path / "left_behind.py"
    package.write_text("def versions(): return {}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ray_solver, "versions", import_module("left_behind").versions)
    package.unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    with pytest.raises(ClusterError, match=r"cannot run tmerge: .*left_behind"):
        solve(RunDir.create(tmp_path / "other"), recipe())
    with pytest.raises(ClusterError, match=r"has tmerge .*\n  expected: tmerge 9\.9"):
        ray_solver.work("9.9", "cpu", Transport(), None)  # one that joined later


def test_what_keeps_a_cluster_from_being_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address, words in (
        ("127.0.0.1:1", r"no Ray cluster can be joined at ray_address: 127.0.0.1:1 \(.*refused"),
        ("nowhere.invalid:6379", "no Ray cluster can be joined at ray_address: nowhere.invalid:6379"),
    ):
        with pytest.raises(ClusterError, match=words) as failure, ray_solver.connected(address):
            raise AssertionError("the block must not run")
        assert "ray start" in failure.value.hint and "executor: local" in failure.value.hint
    pair = make_pair(tmp_path)
    (problem,) = check.check(recipe_of(pair, transport={"executor": "ray", "ray_address": "127.0.0.1:1"}))
    assert problem.startswith("transport.ray_address: no Ray cluster can be joined at ray_address: 127.0.0.1:1 (")
    assert check.check(recipe_of(pair, transport={"executor": "ray"})) == []


def test_another_version_of_ray_is_refused(nodes: Any) -> None:
    """In a process of its own: the process of the tests is connected already."""
    code = (
        "from tmerge_tui.engine.methods.transport_merge import ray_solver\n"
        "from tmerge_tui.errors import ClusterError\nimport ray\n"
        f"with ray_solver.connected({nodes.address!r}): assert ray.nodes()\n"
        "ray.__version__ = '2.1.0'\n"
        f"try:\n    with ray_solver.connected({nodes.address!r}): pass\n"
        "except ClusterError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Version mismatch" in done.stdout and "Ray: 2.1.0" in done.stdout


def test_without_the_extra(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtraMissing, match=r'pip install "tmerge-tui\[ray\]"'):
        solve(run, recipe())
    ray_solver.check(recipe(address="127.0.0.1:1"))  # `engine.check` has said so already
