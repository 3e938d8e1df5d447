"""The transport stage on Ray (extra `ray`): a solver whose calls are tasks of a cluster, and what can go wrong with it.

A task is one call of `transport.here`: a target layer with a few source layers of one side. Z-scores go into Ray's
object store once, side by side, and leave it when no task needs them any more; duals come back in any order. Only so
many tasks are under way that neither this process nor the store holds more than about one side of the source.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tmerge_tui import __version__
from tmerge_tui.engine.methods.transport_merge.feature_plans import (
    STAGE,
    Part,
    Parts,
    Piece,
    Solver,
    Transports,
    chunks,
    exact_products,
    solve,
)
from tmerge_tui.engine.optimal_transport.sinkhorn import Solution
from tmerge_tui.errors import ClusterError, MemoryShortage, TmergeError
from tmerge_tui.events import Emit, Logged, Warned
from tmerge_tui.extras import imported, present
from tmerge_tui.recipe import Recipe, Transport

# Read when Ray is imported. One attempt at joining a cluster, of some 20 seconds; Ray's 20 would take ten minutes.
JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "10"}
SHORT = "/tmp" if os.name == "posix" else None  # sockets lie in Ray's folder, and their paths have 100 characters
KNOCK = 5.0  # seconds in which a cluster's port has to answer
GREETING = 60.0  # seconds in which a node has to say what is installed there
LAG = 3.0  # seconds by which Ray's figures of free CPUs and GPUs may be late
LOOK = 5.0  # seconds between two looks at which nodes are there
RETRIES = 3  # of a task whose process or node is lost
AHEAD = 2  # tasks under way for each that can run, so that none waits for its data
KEPT = "run again: finished plans are kept, and executor: local goes on without the cluster"


def check(recipe: Recipe) -> None:
    """Joins the cluster that the recipe names, and leaves it. Raises ClusterError; `engine.check` misses the extra."""
    address = recipe.transport.ray_address
    if recipe.transport.executor == "ray" and address and present("ray"):
        with connected(address) as ray:
            _Cluster(ray, recipe.device, lambda event: None)


def on_ray(recipe: Recipe, emit: Emit) -> Solver:
    """The solver of `executor: ray`: connected from its first part, if there is one, to its end or to `close`.

    It raises ExtraMissing, ClusterError, MemoryShortage, NumericsError.
    """

    def parts(transports: Transports, missing: Sequence[Piece]) -> Parts:
        if missing:
            with connected(recipe.transport.ray_address) as ray:
                yield from _Cluster(ray, recipe.device, emit).solved(transports, missing)

    return parts


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address`; to one of this process, ended with it, when empty.

    Raises ExtraMissing, ClusterError.
    """
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", **(JOINING if address else {})})
    if not address and "RAY_AUTH_MODE" not in os.environ:  # or Ray makes a token and leaves it in the home folder
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    with imported("transport.executor: ray", "ray"):
        import ray
    own: dict[str, Any] = {}  # settings of a cluster that is started here
    if not address:
        own = {"include_dashboard": False, "_temp_dir": tempfile.mkdtemp(prefix="tmerge-ray-", dir=SHORT)}
    try:
        try:
            if ":" in address:  # Ray itself would wait for minutes where nothing listens
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), KNOCK).close()
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # of Ray's own, of grpc's, of the operating system's
            raise _unusable(address, error.__cause__ or error) from error
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(own.get("_temp_dir", ""), ignore_errors=True)


def _unusable(address: str, error: BaseException) -> ClusterError:
    reason = " ".join(str(error).partition("Last connection error")[0].split())
    if not address:
        return ClusterError(f"no Ray cluster can be started here: {reason}", hint="set executor: local")
    expected = "a running cluster that this machine is a node of, with the same versions of Python and Ray"
    hint = "run `ray start` here to join it, correct ray_address, or set executor: local"
    return ClusterError(f"no Ray cluster can be joined at ray_address: {address} ({reason})", expected, hint)


class _Cluster:
    """A connection: the nodes that can solve, and their tasks."""

    def __init__(self, ray: Any, device: str, emit: Emit) -> None:
        self.ray, self.emit, self.looked = ray, emit, time.monotonic()
        self.kind = "CPU" if device in ("cpu", "mps") else "GPU"
        self.nodes = self._alive()
        if not self.nodes and device == "auto":
            self.kind = "CPU"
            self.nodes = self._alive()
        if not self.nodes:
            found = f"device: {device}, and no node of the Ray cluster has a {self.kind}"
            raise ClusterError(found, "one at least", "add a node that has, or set device: auto")
        self._greet()

    @property
    def slots(self) -> int:
        """Tasks that can run at once, were the cluster ours alone."""
        return sum(int(node["Resources"][self.kind]) for node in self.nodes.values())

    def _alive(self) -> dict[str, Any]:
        """Nodes that can take a task: a GPU each, or else a CPU each."""
        return {n["NodeID"]: n for n in self.ray.nodes() if n["Alive"] and n["Resources"].get(self.kind, 0) >= 1}

    def _greet(self) -> None:
        """Asks every node what is installed there: another tmerge is a ClusterError, another torch a warning."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        ask = self.ray.remote(num_cpus=0, max_retries=0)(versions)
        asked = {name: ask.options(scheduling_strategy=On(name, soft=False)).remote() for name in self.nodes}
        for name, answer in asked.items():
            where = f"node {self.nodes[name]['NodeManagerAddress']} of the Ray cluster"
            try:
                found = self.ray.get(answer, timeout=GREETING)
            except self.ray.exceptions.RayError as error:
                raise _other(where, f"cannot run tmerge: {_last_line(error)}", __version__) from error
            if found["tmerge"] != __version__:
                raise _other(where, f"has tmerge {found['tmerge']}", __version__)
            if found["torch"] != torch.__version__:
                other = f"{where} has torch {found['torch']}, not {torch.__version__}: plans may differ by rounding"
                self.emit(Warned(STAGE, other))

    def _taken(self) -> bool:
        """Whether others hold every CPU or GPU; what Ray says of it is up to a second or two old."""
        until = time.monotonic() + LAG
        while (taken := self.ray.available_resources().get(self.kind, 0) < 1) and time.monotonic() < until:
            time.sleep(0.2)
        return taken

    def solved(self, transports: Transports, missing: Sequence[Piece]) -> Parts:
        """Parts of the missing pieces as they are finished."""
        ray, device = self.ray, "cuda" if self.kind == "GPU" else "cpu"
        self.emit(Logged("info", f"Ray: {self.slots} {self.kind}s on {len(self.nodes)} nodes"))
        if self._taken():
            self.emit(Warned(STAGE, f"every {self.kind} of the Ray cluster is taken; waiting for one"))
        on = {"num_gpus": 1, "num_cpus": 0} if device == "cuda" else {"num_cpus": 1}
        # max_calls=0: a process is kept for the next task, with its libraries and its GPU's context
        task = ray.remote(max_retries=RETRIES, max_calls=0, **on)(work)
        under_way: dict[Any, tuple[int, str, list[int]]] = {}
        stored: dict[tuple[str, int], Any] = {}  # z-scores of the source, of one side
        try:
            for l, side in missing:
                stored = {at: there for at, there in stored.items() if at[0] == side}
                Zx = transports.zx(l, side)
                zx = ray.put(Zx.cpu().numpy())
                for chunk in chunks(transports, side, Zx.shape, device):
                    while len(under_way) >= AHEAD * self.slots:
                        yield from self._finished(under_way)
                    for m in chunk:
                        if (side, m) not in stored:
                            stored[side, m] = ray.put(transports.zy(m, side).cpu().numpy())
                    zys = [stored[side, m] for m in chunk]
                    under_way[task.remote(__version__, device, transports.options, zx, *zys)] = (l, side, chunk)
            while under_way:
                yield from self._finished(under_way)
        finally:
            for left in under_way:
                ray.cancel(left, force=True)

    def _finished(self, under_way: dict[Any, tuple[int, str, list[int]]]) -> Iterator[Part]:
        """What is ready; waits for it no longer than until the next look at the nodes."""
        ready, _ = self.ray.wait(list(under_way), timeout=LOOK)
        if time.monotonic() - self.looked >= LOOK:
            self._look()
        for each in ready:
            l, side, chunk = under_way.pop(each)
            yield l, side, dict(zip(chunk, self._got(each, f"{side}, layer {l}"), strict=True))

    def _got(self, result: Any, what: str) -> list[Solution]:
        failures = self.ray.exceptions
        try:
            return self.ray.get(result)
        except failures.RayError as error:
            cause = getattr(error, "cause", None)  # what the task itself has raised
            if isinstance(cause, TmergeError):
                raise cause from error
            if isinstance(error, failures.OutOfMemoryError) or isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
                found = f"{what}: a node of the Ray cluster ran out of memory ({_last_line(cause or error)})"
                hint = f"offer fewer CPUs on each node (ray start --num-cpus); {KEPT}"
                raise MemoryShortage(found, "room for a few plans for each CPU or GPU", hint) from error
            if cause is not None:
                raise ClusterError(f"{what}: its task failed, {type(cause).__name__}: {cause}", hint=KEPT) from error
            lost = f"{what}: process or node were lost in each of {RETRIES + 1} attempts ({_last_line(error)})"
            raise ClusterError(lost, "nodes that stay", KEPT) from error

    def _look(self) -> None:
        """Says which nodes have gone: Ray gives their tasks to others. Raises ClusterError when none is left."""
        before, self.nodes, self.looked = self.nodes, self._alive(), time.monotonic()
        for name in before.keys() - self.nodes.keys():
            where = f"node {before[name]['NodeManagerAddress']} of the Ray cluster"
            self.emit(Warned(STAGE, f"{where} was lost; what it was solving is solved elsewhere"))
        if not self.nodes:
            raise ClusterError(f"no node with a {self.kind} is left in the Ray cluster", "one at least", KEPT)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _other(where: str, found: str, version: str) -> ClusterError:
    return ClusterError(f"{where} {found}", f"tmerge {version}", f'pip install "tmerge-tui[ray]=={version}" there')


# What follows runs on the nodes.
def versions() -> dict[str, str]:
    return {"tmerge": __version__, "torch": torch.__version__}


def work(version: str, device: str, options: Transport, Zx: Any, *Zys: Any) -> list[Solution]:
    """Plans of Zx [T, n] with each of Zys [T, n'], read-only arrays of the object store; on one GPU, or one core."""
    where = f"node {socket.gethostname()} of the Ray cluster"
    if version != __version__:  # it has joined after the others were asked
        raise _other(where, f"has tmerge {__version__}", version)
    if device == "cuda" and not torch.cuda.is_available():
        build = f"{where} offers a GPU that its torch {torch.__version__} cannot use"
        raise ClusterError(build, "a build of torch for that GPU", "install one there, or set device: cpu")
    torch.set_num_threads(1)
    with exact_products():
        found = solve(_tensor(Zx).to(device), [_tensor(Zy).to(device) for Zy in Zys], options)
    return [replace(one, f=one.f.cpu(), g=one.g.cpu()) for one in found]


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to it
        return torch.from_numpy(array)
