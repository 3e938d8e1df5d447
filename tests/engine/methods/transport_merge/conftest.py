"""One cluster of two CPUs for each module on Ray; `joined` is one connection to it that its tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.engine.methods.transport_merge.on_ray import pieces, solve
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.run_folder import RunDir


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of one node."""
    folder = tempfile.mkdtemp(prefix="tmr-", dir=ray_solver.SHORT)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 3}
        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "_system_config": quick}
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def connection(nodes: Any) -> Iterator[Any]:
    with ray_solver.connected(nodes.address) as ray:
        yield ray


@pytest.fixture
def joined(connection: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray_solver, "connected", lambda address: nullcontext(connection))
    return connection


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Pieces that this process has solved."""
    local = RunDir.create(tmp_path_factory.mktemp("local") / "run")
    solve(local)
    return pieces(local)
