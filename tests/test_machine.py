"""The machine behind made-up files: cgroups of both versions, a nvidia-smi of our own, a PCI bus of plain folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tmerge_tui import machine
from tmerge_tui.machine import Card, Nvidia

GB = 10**9
OLD = 'Field "compute_cap" is not a valid field to query.'


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GB, 50 of them free, 16 cores, no limits."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=50 * GB))
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(16)), raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "PCI", tmp_path / "pci")


def put(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_without_limits_memory_is_the_machines() -> None:
    assert machine.memory() == machine.Memory(64 * GB, 50 * GB)
    assert machine.cores() == (16, None)


def test_a_container_of_cgroup_2_sees_its_own_files_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    files = {"memory__max": str(8 * GB), "memory__current": str(5 * GB), "cpu__max": "250000 100000"}
    put(tmp_path / "cgroup", memory__stat=f"anon 1\ninactive_file {2 * GB}\nactive_file 7", **files)
    assert machine.memory() == machine.Memory(64 * GB, 5 * GB, 8 * GB, "container")  # 8 - (5 - 2)
    assert machine.cores() == (16, 2.5)


def test_a_group_around_ours_may_be_the_tighter_one(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/job/step\n")
    put(tmp_path / "cgroup" / "job" / "step", memory__max="max", memory__current="0", cpu__max="max 100000")
    put(tmp_path / "cgroup" / "job", memory__max=str(4 * GB), memory__current=str(GB), cpu__max="50000 100000")
    assert machine.memory() == machine.Memory(64 * GB, 3 * GB, 4 * GB, "container")
    assert machine.cores() == (16, 0.5)


def test_cgroup_1_with_the_path_of_the_host(tmp_path: Path) -> None:
    """In a container of version 1 the path is the host's and only the root of the mount is there."""
    (tmp_path / "own").write_text("7:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    limits = {"memory__limit_in_bytes": str(2 * GB), "memory__usage_in_bytes": str(3 * GB)}
    put(tmp_path / "cgroup" / "memory", **limits)
    put(tmp_path / "cgroup" / "cpu", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert machine.memory() == machine.Memory(64 * GB, 0, 2 * GB, "container"), "never below 0"
    assert machine.cores() == (16, 1.0)
    put(tmp_path / "cgroup" / "memory", memory__limit_in_bytes="9223372036854771712")
    put(tmp_path / "cgroup" / "cpu", cpu__cfs_quota_us="-1")
    assert machine.memory().limit is None and machine.cores() == (16, None), "version 1 says no limit in this way"


def test_a_limit_above_what_the_machine_has_is_none(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    put(tmp_path / "cgroup", memory__max=str(100 * GB), memory__current="0", cpu__max="3200000 100000")
    assert machine.memory().limit is None and machine.cores() == (16, None)


def test_a_shell_that_limits_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10 * GB, 10 * GB))
    found = machine.memory()
    assert (found.limit, found.limited_by) == (10 * GB, "ulimit -v") and 0 < found.available < 10 * GB


def test_cards_as_the_drivers_tool_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(
        tmp_path / "bin",
        monkeypatch,
        'test "$1" = "--query-gpu=name,memory.total,memory.free,driver_version,compute_cap" || exit 3\n'
        'echo "NVIDIA H200, 143771, 143000, 580.65.06, 9.0"\necho "NVIDIA GB10, [N/A], [N/A], 580.65.06, 12.1"',
    )
    first = Card("NVIDIA H200", 143771 * 2**20, 143000 * 2**20, "9.0")
    assert machine.nvidia() == Nvidia("580.65.06", (first, Card("NVIDIA GB10", None, None, "12.1")))


def test_an_old_driver_does_not_know_capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"case $1 in *compute_cap*) echo '{OLD}'; exit 2;; esac\necho 'Tesla K80, 11441, 11000, 470.82.01'"
    tool(tmp_path / "bin", monkeypatch, script)
    assert machine.nvidia() == Nvidia("470.82.01", (Card("Tesla K80", 11441 * 2**20, 11000 * 2**20, None),))


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", monkeypatch, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    found = machine.nvidia()
    assert found == Nvidia("", (), "Failed to initialize NVML: Driver/library version mismatch")
    tool(tmp_path / "bin", monkeypatch, "sleep 5")
    monkeypatch.setattr(machine, "PATIENCE", 0.1)
    assert machine.nvidia() == Nvidia("", (), "no answer within 0.1 s")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia() is None


def test_the_tool_does_not_get_the_libraries_of_a_frozen_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path / "bin", monkeypatch, 'echo "$LD_LIBRARY_PATH, 1, 1, 580.1, 9.0"')
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/bundle")
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/mine")
    found = machine.nvidia()
    assert found is not None and found.cards[0].name == "/mine"


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    assert not machine.nvidia_on_the_bus()
    put(tmp_path / "pci" / "0000:00:1f.6", vendor="0x8086", **{"class": "0x020000"})
    put(tmp_path / "pci" / "0000:01:00.1", vendor="0x10de", **{"class": "0x040300"})  # its sound
    assert not machine.nvidia_on_the_bus()
    put(tmp_path / "pci" / "0000:01:00.0", vendor="0x10de", **{"class": "0x030200"})
    assert machine.nvidia_on_the_bus()


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Reference: what the process holds after a block of 16 MB is gone, which glibc would otherwise keep."""
    script = (
        "import psutil, torch\n"
        "from tmerge_tui import machine\n"
        "assert machine.return_freed_memory()\n"
        "for size in (8, 16, 16): torch.ones(size << 18).sum()\n"  # freed: the limit of the C library would rise to it
        "kept = torch.ones(1 << 10)\n"
        "before = psutil.Process().memory_info().rss\n"
        "block = torch.ones(16 << 18)\n"
        "held = psutil.Process().memory_info().rss\n"
        "del block\n"
        "after = psutil.Process().memory_info().rss\n"
        "assert held - before > 12 << 20 and after - before < 4 << 20, (before, held, after)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_c_library_without_the_function_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert machine.return_freed_memory() is False
