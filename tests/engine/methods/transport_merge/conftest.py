"""One cluster of two CPUs for the tests on Ray (a process can have one only); they share the connection `joined`."""

from __future__ import annotations

import logging
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


@pytest.fixture(scope="package")
def nodes() -> Iterator[Any]:
    """A cluster of one node."""
    folder = tempfile.mkdtemp(prefix="tmr-", dir=ray_solver.SHORT)
    with pytest.MonkeyPatch.context() as patch:
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, **ray_solver.JOINING}
        for name, value in settings.items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 3}
        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "_system_config": quick}
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def joined(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The connection that tests share, made anew where one of them has ended it."""
    import ray

    if not ray.is_initialized():
        ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    monkeypatch.setattr(ray_solver, "connected", lambda address: nullcontext(ray))
    return ray


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run")


@pytest.fixture(scope="package")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Pieces that this process has solved."""
    local = RunDir.create(tmp_path_factory.mktemp("local") / "run")
    solve(local)
    return pieces(local)
