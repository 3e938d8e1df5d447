"""What this machine has: NVIDIA's driver and cards, memory and cores as a container or a scheduler grants them.

No torch and no network; nothing here fails: what cannot be found out is None or empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tmerge_tui import bundle, stopping

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
PCI = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"  # vendor on the PCI bus
PATIENCE = 5.0  # seconds that NVIDIA's tool may take; its first answer wakes the driver
M_MMAP_THRESHOLD = -3  # of malloc.h
UNLIMITED = 2**60  # bytes; cgroup v1 writes nearly 2**63 for no limit
FIELDS = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")


@dataclass(frozen=True)
class Card:
    """A graphics card as its driver describes it; memory in bytes, `capability` such as 9.0, None on old drivers."""

    name: str
    total: int | None
    free: int | None
    capability: str | None


@dataclass(frozen=True)
class Nvidia:
    """What nvidia-smi says; `problem` is its complaint when it cannot talk to the driver."""

    driver: str
    cards: tuple[Card, ...]
    problem: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory. `limit` is what this process may take when that is less than the machine has."""

    total: int
    available: int
    limit: int | None = None
    limited_by: str = ""


def nvidia() -> Nvidia | None:
    """None without nvidia-smi. Takes up to a second where a driver has to wake: run in a thread beside a screen."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    said = _query(tool, FIELDS)
    if said.returncode != 0 and "compute_cap" in said.stdout + said.stderr:  # drivers before 510 do not know it
        said = _query(tool, FIELDS[:-1])
    if said.returncode != 0:
        lines = [line.strip() for line in (said.stdout + "\n" + said.stderr).splitlines() if line.strip()]
        return Nvidia("", (), lines[0] if lines else f"exit code {said.returncode}")
    rows = [[part.strip() for part in line.split(",")] for line in said.stdout.splitlines() if "," in line]
    cards = tuple(Card(row[0], _mebibytes(row[1]), _mebibytes(row[2]), row[4] if row[4:] else None) for row in rows)
    return Nvidia(rows[0][3] if rows else "", cards)


def nvidia_loads() -> dict[str, float]:
    """UUID of a card, without its prefix -> percent of the last moment in which it computed; empty when unknown."""
    tool = shutil.which("nvidia-smi")
    said = _query(tool, ("uuid", "utilization.gpu")) if tool is not None else None
    if said is None or said.returncode != 0:
        return {}
    rows = [[part.strip() for part in line.split(",")] for line in said.stdout.splitlines() if "," in line]
    return {uuid.removeprefix("GPU-"): float(load) for uuid, load, *_ in rows if load.isdigit()}  # [N/A] with MIG


def answer_of(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """What a program of the machine says; it goes with this process. Raises OSError, TimeoutExpired."""
    with ExitStack() as stack:
        with stopping.held():
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=bundle.environment(),
                    text=True,
                )
            )
            stack.enter_context(stopping.undone(process.kill))
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()  # nothing once it has ended
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _query(tool: str, fields: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        return answer_of(command, PATIENCE)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {PATIENCE:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None  # [N/A] where the memory is the machine's own


def nvidia_on_the_bus() -> bool:
    """Whether a display controller of NVIDIA is on the PCI bus, with a driver or without (Linux)."""
    for device in PCI.glob("*"):
        with contextlib.suppress(OSError):
            kind = (device / "class").read_text(encoding="utf-8")
            if kind.startswith("0x03") and (device / "vendor").read_text(encoding="utf-8").strip() == NVIDIA:
                return True
    return False


def memory() -> Memory:
    """Of the machine, and of the container, batch job or shell that this process is in."""
    whole = psutil.virtual_memory()
    limits = [*_memory_limits()]
    if address_space := _address_space():
        limits.append(address_space)
    binding = [limit for limit in limits if limit[0] < whole.total]
    if not binding:
        return Memory(whole.total, whole.available)
    bytes_, _, who = min(binding)
    left = min(limit - used for limit, used, _ in binding)
    return Memory(whole.total, max(0, min(whole.available, left)), bytes_, who)


def return_freed_memory() -> bool:
    """From here on blocks of a megabyte and more go back to the system when they are freed; whether that can be asked.

    glibc raises its own limit to 32 MB as such blocks are freed, and then keeps the weights of a streamed layer beside
    those of the next. Other systems give them back by themselves.
    """
    try:
        keeps = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no C library with that function
        return False
    return bool(keeps(M_MMAP_THRESHOLD, 1 << 20))


def cores() -> tuple[int, float | None]:
    """(cores this process may run on, how many of them at a time a cgroup lets it use; None without such a quota)."""
    if sys.platform == "darwin":  # which binds no process to cores
        seen = os.cpu_count() or 1
    else:
        seen = len(psutil.Process().cpu_affinity())
    quotas = []
    for folder in _folders(""):  # v2: "max 100000" or "200000 100000", in microseconds
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _folders("cpu"):  # v1
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    granted = min(quotas, default=None)
    return seen, granted if granted is not None and granted < seen else None


def _memory_limits() -> Iterator[tuple[int, int, str]]:
    """(limit, used, whose) of every cgroup that this process is in; pages that can be given back are not used."""
    for controller, limit, usage, key in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _folders(controller):
            most, used = _read(folder / limit), _read(folder / usage)
            if most.isdigit() and used.isdigit() and int(most) < UNLIMITED:
                lines = [line.split() for line in _read(folder / "memory.stat").splitlines()]
                cached = next((int(line[1]) for line in lines if line[0] == key), 0)
                yield int(most), max(0, int(used) - cached), "container"


def _address_space() -> tuple[int, int, str] | None:
    """(limit, used, whose) of `ulimit -v`, which some schedulers set."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else (most, psutil.Process().memory_info().vms, "ulimit -v")


def _folders(controller: str) -> list[Path]:
    """This process's cgroup and those around it. `controller` is that of version 1, empty for version 2.

    Inside a container the path is often that of the host, and only the root is there, which is the container's own.
    """
    for line in _read(OWN_CGROUP).splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            root = CGROUPS / controller
            own = root / path.lstrip("/")
            around = [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]
            return [folder for folder in around if folder.is_dir()]
    return []


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
