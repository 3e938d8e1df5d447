"""Graphics cards: every way in which one is there and cannot be used, with numbers and the build to get.

The numbers are NVIDIA's: CUDA 11, 12 and 13 need drivers from 450, 525 and 580.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tmerge_tui import bundle, edition, machine
from tmerge_tui.commands.doctor import gpu
from tmerge_tui.commands.doctor.finding import Finding, Level
from tmerge_tui.commands.doctor.gpu import Device, Torch
from tmerge_tui.machine import Card, Nvidia

H200 = Card("NVIDIA H200", 150 * 10**9, 149 * 10**9, "9.0")
P100 = Card("Tesla P100", 16 * 10**9, 15 * 10**9, "6.0")
CPU = Torch("2.13.0+cpu", "CPU")
CUDA = Torch("2.13.0", "CUDA 13.0", (Device("NVIDIA H200", 150 * 10**9, "9.0"),), ("sm_75", "sm_90", "compute_120"))
BLIND = Torch("2.13.0", "CUDA 13.0", said="CUDA initialization: something")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Linux machine without any card."""
    monkeypatch.setattr(machine, "nvidia", lambda: None)
    monkeypatch.setattr(machine, "nvidia_on_the_bus", lambda: False)
    monkeypatch.setattr(gpu, "KFD", tmp_path / "kfd")
    monkeypatch.setattr(gpu.platform, "system", lambda: "Linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> object:
    def put(driver: str, *cards: Card, problem: str = "") -> None:
        monkeypatch.setattr(machine, "nvidia", lambda: Nvidia(driver, cards, problem))

    return put


def found(torch: Torch) -> dict[str, Finding]:
    return {one.what: one for one in gpu.findings(torch)}


def wrong(torch: Torch) -> dict[str, Finding]:
    return {what: one for what, one in found(torch).items() if one.level is not Level.OK}


def test_no_card_is_no_problem() -> None:
    assert wrong(CPU) == {}
    assert found(CPU)["gpu"].found == "none; runs use the CPU"
    assert found(CPU)["torch"].found == "2.13.0+cpu, CPU build, uses the CPU"


def test_a_card_that_is_used(has) -> None:
    has("580.65.06", H200)
    assert wrong(CUDA) == {}
    shown = found(CUDA)
    assert shown["torch"].found == "2.13.0, CUDA 13.0 build, uses NVIDIA H200, 150 GB"
    assert shown["driver"].found == "NVIDIA 580.65.06"
    assert shown["gpu"].found == "0: NVIDIA H200, 150 GB (149 GB free), capability 9.0"
    assert shown["gpu"].facts == {"name": "NVIDIA H200", "total": H200.total, "free": H200.free, "capability": "9.0"}


@pytest.mark.parametrize(
    ("driver", "card", "build"),
    [("580.65.06", H200, "CUDA 13"), ("550.54.14", H200, "CUDA 12.6"), ("580.65.06", P100, "CUDA 12.6")],
)
def test_a_cpu_build_names_the_build_for_this_card_and_driver(has, driver: str, card: Card, build: str) -> None:
    has(driver, card)
    told = wrong(CPU)["gpu"]
    assert told.found.endswith("not used: torch is a CPU build")
    assert told.advice == f"install a {build} build of torch: pytorch.org/get-started/locally has the command"


def test_in_the_binary_another_binary_is_named(has, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    has("580.65.06", H200)
    assert wrong(CPU)["gpu"].advice.startswith("take the CUDA 13 build of tmerge, or the Python package with a CUDA 13")


def test_a_card_and_a_driver_that_no_build_is_for(has) -> None:
    has("390.157", P100)
    assert wrong(CPU)["gpu"].advice.startswith("update the driver first")


def test_a_driver_older_than_torchs_cuda(has) -> None:
    has("550.54.14", H200)
    told = wrong(BLIND)
    assert list(told) == ["driver"], "one problem, not two"
    assert told["driver"].found == "NVIDIA 550.54.14, and torch's CUDA 13.0 build needs 580 or newer"
    assert told["driver"].advice.startswith("update the driver, or install a CUDA 12.6 build of torch")
    assert told["driver"].facts == {"driver": "550.54.14", "needed": 580}
    has("470.82.01", H200)
    assert wrong(BLIND)["driver"].advice == "update the driver"
    has("525.60.13", H200)
    assert "driver" not in wrong(Torch("2.9.0", "CUDA 12.8", CUDA.devices, CUDA.architectures))


def test_a_card_older_than_torchs_kernels(has) -> None:
    has("580.65.06", P100)
    torch = Torch("2.13.0", "CUDA 13.0", (Device(P100.name, 1, "6.0"),), ("sm_75", "sm_90"))
    told = wrong(torch)["gpu"]
    assert told.found.endswith("capability 6.0; not used: torch has kernels for sm_75 sm_90")
    assert told.advice.startswith("install a CUDA 12.6 build of torch")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("8.6", ("sm_80",), True),  # a later card of the generation
        ("8.0", ("sm_86",), False),  # an earlier one
        ("9.0", ("sm_80", "sm_86"), False),  # another generation
        ("12.0", ("sm_90", "compute_90"), True),  # compiled when it starts
        ("7.5", ("compute_80",), False),
        ("9.0", ("sm_90a",), True),
        ("12.1", ("sm_120",), True),
        ("10.3", ("sm_100a",), False),
        ("10.3", ("sm_100f",), True),
        ("9.0", (), True),  # nothing is known
        ("9.0", ("gfx942",), True),
    ],
)
def test_which_kernels_run_on_which_card(capability: str, architectures: tuple[str, ...], runs: bool) -> None:
    assert gpu.has_kernels(capability, architectures) is runs


def test_a_card_that_is_hidden(has, monkeypatch: pytest.MonkeyPatch) -> None:
    has("580.65.06", H200)
    assert wrong(BLIND)["gpu use"].found == "torch cannot use it: CUDA initialization: something"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    told = wrong(BLIND)["gpu use"]
    assert told.found == "none is visible: CUDA_VISIBLE_DEVICES='-1'" and "unset" in told.advice


def test_a_driver_that_does_not_answer(has) -> None:
    has("", problem="Failed to initialize NVML: Driver/library version mismatch")
    told = wrong(BLIND)
    assert "version mismatch" in told["driver"].found and "reboot" in told["driver"].advice


def test_a_card_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "nvidia_on_the_bus", lambda: True)
    told = wrong(CPU)["gpu"]
    assert "its driver is not" in told.found and "--gpus all" in told.advice


def test_a_card_of_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.KFD.touch()
    told = wrong(CPU)["gpu"]
    assert told.level is Level.NOTE and "install a ROCm build of torch" in told.advice
    told = wrong(Torch("2.13.0", "ROCm 6.4", said="no permission"))["gpu"]
    assert told.level is Level.PROBLEM and "no permission" in told.found and "render" in told.advice
    assert wrong(Torch("2.13.0", "ROCm 6.4", (Device("AMD Instinct", 1, "9.4"),))) == {}


def test_a_card_of_apple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(gpu.platform, "machine", lambda: "arm64")
    assert "macOS" in wrong(Torch("2.13.0", "Metal"))["gpu"].advice
    assert wrong(Torch("2.13.0", "Metal", (Device("Apple GPU", 1, ""),))) == {}


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    told = wrong(gpu.look())
    assert told["torch"].level is Level.MISSING and told["torch"].advice == 'pip install "torch>=2.6"'
    assert "ModuleNotFoundError" in told["torch"].found


def test_the_torch_of_these_tests() -> None:
    import torch

    seen = gpu.look()
    assert seen.version == torch.__version__ and bool(seen.devices) is torch.cuda.is_available()
    assert seen.build == ("CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}")


def test_torch_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal part of the binary asks the unpacked engine, and says what the engine says when it fails."""
    engine = edition.Engine("0" * 64, 1, 2, 3)
    split = edition.Edition("0.1.0", "abc", "CUDA 13.0", {"torch": "2.13.0"}, engine)
    monkeypatch.setattr(gpu, "edition", lambda: split)
    monkeypatch.setattr(bundle, "is_split", lambda: True)
    monkeypatch.setattr(bundle, "is_ready", lambda: False)
    told = found(gpu.torch_facts())["torch"]
    assert told.found == "2.13.0, CUDA 13.0 build, not asked: the engine is not unpacked yet"
    assert told.level is Level.OK

    program = tmp_path / "tmerge"
    monkeypatch.setattr(bundle, "is_ready", lambda: True)
    monkeypatch.setattr(bundle, "executable", lambda: program)
    assert "the engine does not start" in wrong(gpu.torch_facts())["torch"].found
    program.write_text("#!/bin/sh\necho 'libcuda.so: bad magic' >&2\nexit 7\n")
    program.chmod(0o755)
    assert gpu.torch_facts().said == "the engine ended with code 7 and said: libcuda.so: bad magic"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={Path.cwd()} exec {sys.executable} -m tmerge_tui "$@"\n')
    assert gpu.torch_facts() == gpu.look()
