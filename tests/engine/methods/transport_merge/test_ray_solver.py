"""The transport stage on Ray. Reference: the same stage in this process, whose pieces must have the same bytes.

One cluster of two CPUs serves the module; `joined` is one connection to it that the tests share.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.engine.methods.transport_merge.clustered import KINDS, models
from tests.engine.pair import make_pair, recipe_of
from tests.test_imports import FILES, imports
from tests.waiting import PATIENCE, until
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.methods.transport_merge import feature_plans as stage
from tmerge_tui.engine.methods.transport_merge import ray_solver
from tmerge_tui.engine.methods.transport_merge.feature_plans import transport
from tmerge_tui.engine.preflight import check
from tmerge_tui.errors import ClusterError, ExtraMissing, MemoryShortage, NumericsError, TmergeError
from tmerge_tui.events import Event, HeatMap, PairSolved, RunInterrupted, StageFinished, StageProgressed, Warned
from tmerge_tui.models.pair import Pair
from tmerge_tui.recipe import Recipe, Transport, dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker import spawn
from tmerge_tui.worker.follow import Follower

RECIPE = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": "unused"}
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")  # of Ray; they leave by themselves, up to half a minute later


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


def recipe(device: str = "cpu", address: str = "", **options: Any) -> Recipe:
    asked = {"executor": "ray", "ray_address": address, **options}
    return make_recipe({**RECIPE, "device": device, "transport": asked})


def solve(run: RunDir, recipe: Recipe | None = None, watch: Callable[[Event], None] | None = None) -> list[Event]:
    """The stage on Ray, or here without a recipe."""
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if watch is not None:
            watch(event)

    options = recipe.transport if recipe else Transport()
    transport(models(), KINDS, options, run, emit, "cpu", recipe and ray_solver.on_ray(recipe, emit))
    return events


def pieces(run: RunDir) -> dict[str, bytes]:
    return {piece.name: piece.read_bytes() for piece in run.state.glob("[!.]*")}  # a killed run leaves a .part


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Pieces that this process has solved."""
    local = RunDir.create(tmp_path_factory.mktemp("local") / "run")
    solve(local)
    return pieces(local)


def only(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("solver", ["fast", "plain", "pot"])
def test_plans_are_those_of_one_process(joined: Any, tmp_path: Path, solver: str) -> None:
    here, there = RunDir.create(tmp_path / "here"), RunDir.create(tmp_path / "there")
    seen: list[Event] = []
    transport(models(), KINDS, Transport(solver=solver), here, seen.append)
    events = solve(there, recipe(solver=solver))
    assert pieces(there) == pieces(here)
    assert set(only(events, PairSolved)) == set(only(seen, PairSolved))
    assert {type(event) for event in seen} <= {type(event) for event in events}
    assert only(events, HeatMap)
    last = only(events, StageProgressed)[-1]
    assert (last.done, last.total) == (36, 36)
    assert not only(events, Warned)


def test_small_calls_of_the_solver_give_the_same_pieces(
    joined: Any, run: RunDir, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CALL", {"cpu": 1})  # a task for each pair of layers
    sent: list[int] = []
    wait = joined.wait
    monkeypatch.setattr(joined, "wait", lambda refs, **rest: sent.append(len(refs)) or wait(refs, **rest))
    solve(run, recipe())
    assert pieces(run) == expected
    assert len(sent) >= 36 / 2 and max(sent) == 2 * ray_solver.AHEAD  # two CPUs


def test_a_whole_run_is_that_of_one_process(joined: Any, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    run = RunDir.create(pair["output"])
    outcomes = []
    for where in ("local", "ray"):
        seen: list[Event] = []
        pipeline.run(recipe_of(pair, transport={"executor": where}), run, seen.append)
        solved = {event.stage: event.outcome for event in only(seen, StageFinished)}
        outcomes.append((pieces(run), (run.model / "model.safetensors").read_bytes(), solved["transport"]))
        for piece in run.state.glob("transport-*"):
            piece.unlink()
    assert outcomes[0] == outcomes[1]  # no name says where plans were solved, and "done" twice
    for name, content in outcomes[1][0].items():
        (run.state / name).write_bytes(content)
    away = recipe_of(pair, transport={"executor": "ray", "ray_address": "127.0.0.1:1"})
    plans = pipeline.reopen(away, run)  # to look at finished plans nobody is asked
    assert plans.result("q.out", 0, 0).solution.converged
    pipeline.run(away, run, lambda event: None)  # nor for going on behind them


def test_pieces_are_shared_and_a_finished_stage_asks_no_cluster(run: RunDir, expected: dict[str, bytes]) -> None:
    solve(run)
    events = solve(run, recipe(address="127.0.0.1:1"))
    assert only(events, StageFinished)[0].outcome == "cached"
    assert pieces(run) == expected


def test_sources_are_stored_once(joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    put = joined.put
    monkeypatch.setattr(joined, "put", lambda array: stored.append(array.nbytes) or put(array))
    solve(run, recipe())
    assert len(stored) == 12 + 18  # target layers and sides, source layers and sides


def test_bad_activations_are_named(joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = models().target, models().source
    source.tensors[2, "v.out"][5, 7] = torch.nan
    asked = recipe()
    solver = ray_solver.on_ray(asked, lambda event: None)
    with pytest.raises(NumericsError, match=r"source model, layer 2, v\.out"):
        transport(Pair(target=target, source=source), KINDS, asked.transport, run, lambda event: None, "cpu", solver)


def broken(error: BaseException) -> Callable[..., Any]:
    def fails(*args: Any) -> Any:
        raise error

    return fails


def dies(*args: Any) -> Any:
    os._exit(1)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("no such matrix"), ClusterError, r"layer \d: its task failed, ValueError: no such matrix"),
        (NumericsError("a plan is not finite"), NumericsError, "a plan is not finite"),
        (MemoryError("no room"), MemoryShortage, r"layer \d: a node .* ran out of memory \(no room\)"),
        (torch.OutOfMemoryError("GPU is full"), MemoryShortage, "GPU is full"),
    ],
)
def test_what_goes_wrong_in_a_task(
    joined: Any,
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[TmergeError],
    words: str,
) -> None:
    monkeypatch.setattr(ray_solver, "work", broken(error))
    with pytest.raises(kind, match=words) as failure:
        solve(run, recipe())
    assert type(failure.value) is kind
    assert not pieces(run)


def test_finished_pieces_outlive_a_failure(
    joined: Any, run: RunDir, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ray_solver.work

    def fails_late(version: str, device: str, options: Transport, Zx: Any, *Zys: Any) -> Any:
        if Zx.shape[1] == 12:  # inner channels: all sides but the first
            raise RuntimeError("here it ends")
        return work(version, device, options, Zx, *Zys)

    with monkeypatch.context() as patch:
        patch.setattr(ray_solver, "work", fails_late)
        with pytest.raises(ClusterError, match="here it ends") as failure:
            solve(run, recipe())
    assert "executor: local" in failure.value.hint
    assert pieces(run) and len(pieces(run)) < 12
    solve(run)
    assert pieces(run) == expected


def test_a_lost_process_is_made_up_for(
    joined: Any, run: RunDir, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, mark = ray_solver.work, tmp_path / "died"

    def dies_once(*args: Any) -> Any:
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return work(*args)

    monkeypatch.setattr(ray_solver, "work", dies_once)
    solve(run, recipe())
    assert mark.exists() and pieces(run) == expected


def test_one_that_is_lost_at_every_attempt_is_an_error(
    joined: Any, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_solver, "work", dies)
    monkeypatch.setattr(ray_solver, "RETRIES", 0)
    with pytest.raises(ClusterError, match="lost in each of 1 attempts"):
        solve(run, recipe())


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


def test_ray_is_imported_in_one_file() -> None:
    found = {path.name for path in FILES if any(name.split(".")[0] == "ray" for name in imports(path))}
    assert found == {"ray_solver.py"}
    assert not [n for n in imports(Path(ray_solver.__file__), top_only=True) if n.split(".")[0] == "ray"]


@pytest.fixture
def swept() -> Iterator[None]:
    """Removes the logs of clusters whose process was killed, which cannot do it."""
    place = Path(ray_solver.SHORT or tempfile.gettempdir())
    before = set(place.glob("tmerge-ray-*"))
    yield
    for folder in set(place.glob("tmerge-ray-*")) - before:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_stopped_and_a_killed_run_go_on(
    run: RunDir, expected: dict[str, bytes], swept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real worker that starts a cluster of its own: stopped, started again, killed, and finished without Ray."""
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.engine.methods.transport_merge.clustered:align")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    run.recipe.write_text(dump_recipe(recipe()))
    done = 0
    for signal_, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        worker = spawn.start(run)
        try:
            until(lambda already=done: len(pieces(run)) > already)
            theirs = psutil.Process(worker.pid).children(recursive=True)
            assert any("raylet" in process.name() for process in theirs)
            os.kill(worker.pid, signal_)
            assert worker.wait(PATIENCE) == code
        finally:
            with worker.process as process:
                process.kill()
        left = [process for process in theirs if signal_ == signal.SIGTERM or not agent(process)]
        until(lambda left=left: not any(runs(process) for process in left))
        done = len(pieces(run))
        assert 0 < done < 12
        lines = list(Follower(run).poll())
        assert isinstance(lines[-1].event, RunInterrupted) == (signal_ == signal.SIGTERM)
    run.recipe.write_text(dump_recipe(recipe(executor="local")))
    worker = spawn.start(run)
    assert worker.wait(PATIENCE) == 0
    assert pieces(run) == expected


def agent(process: psutil.Process) -> bool:
    try:
        return any(name in " ".join(process.cmdline()) for name in AGENTS)
    except psutil.NoSuchProcess:
        return False


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
