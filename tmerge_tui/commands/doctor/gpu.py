"""Graphics cards, their driver, and whether this build of torch can use them."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui import bundle, machine
from tmerge_tui.commands.doctor.finding import Finding, Level, checked
from tmerge_tui.edition import edition
from tmerge_tui.quantities import size

# Oldest driver for each CUDA release, by their first numbers: NVIDIA's table of minor version compatibility.
DRIVERS = {11: 450, 12: 525, 13: 580}
# Builds of torch, the newest first: (CUDA, oldest driver, lowest compute capability they have kernels for).
BUILDS = (("CUDA 13", 580, (7, 5)), ("CUDA 12.6", 525, (5, 0)))
KFD = Path("/dev/kfd")  # of AMD's driver
STARTING = 120.0  # seconds in which the engine answers, its import of torch from a cold disk included


@dataclass(frozen=True)
class Device:
    name: str
    total: int  # bytes
    capability: str  # 9.0 of a CUDA device, empty otherwise


@dataclass(frozen=True)
class Torch:
    """What torch says about itself. `asked` is False where it could not be asked, and only the build is known."""

    version: str = ""  # empty: it cannot be imported, and `said` is why
    build: str = ""  # CPU, CUDA 13.0, ROCm 6.4 or Metal
    devices: tuple[Device, ...] = ()
    architectures: tuple[str, ...] = ()  # sm_90, compute_90: what its kernels were compiled for
    said: str = ""  # the first line of what went wrong
    asked: bool = True


def torch_facts() -> Torch:
    """From this process, or from the engine of a one-file executable when it is unpacked."""
    if not bundle.is_split():
        return look()
    known = Torch(edition().packages.get("torch", ""), edition().build, asked=False)
    return _of_engine(known) if bundle.is_ready() else known


def look() -> Torch:
    """Imports torch and asks it."""
    try:
        import torch
    except Exception as error:  # a library that cannot be loaded raises OSError, a broken one anything
        return Torch(said=_first(f"{type(error).__name__}: {error}"))
    if torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    else:
        build = "Metal" if torch.backends.mps.is_built() else "CPU"
    devices: list[Device] = []
    architectures: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            if torch.cuda.is_available():
                architectures = torch.cuda.get_arch_list()
                devices = [_device(torch.cuda.get_device_properties(i)) for i in range(torch.cuda.device_count())]
            elif torch.backends.mps.is_available():
                devices = [Device("Apple GPU", machine.memory().total, "")]
            said = str(told[0].message) if told else ""
        except Exception as error:  # what CUDA raises depends on what is wrong with it
            said = str(error)
    return Torch(torch.__version__, build, tuple(devices), tuple(architectures), _first(said))


def _device(properties: Any) -> Device:
    return Device(properties.name, properties.total_memory, f"{properties.major}.{properties.minor}")


def _of_engine(known: Torch) -> Torch:
    command = [str(bundle.executable()), "doctor", "--torch"]
    try:
        done = machine.answer_of(command, STARTING)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Torch(said=f"the engine does not start: {_first(str(error))}", build=known.build)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        return Torch(said=f"the engine ended with code {done.returncode} and said: {last[0]}", build=known.build)
    found = json.loads(done.stdout)
    devices = tuple(Device(**device) for device in found.pop("devices"))
    return Torch(**{**found, "devices": devices, "architectures": tuple(found["architectures"])})


def findings(torch: Torch) -> Iterator[Finding]:
    seen = machine.nvidia()
    yield _build(torch)
    if seen is not None and seen.problem:
        advice = "reboot after an update of the driver, or install it again; in a container, pass the GPU on"
        yield Finding("driver", f"nvidia-smi: {seen.problem}", advice, Level.PROBLEM)
    elif seen is not None and seen.cards:
        yield _driver(torch, seen)
    if seen is None or not seen.cards:
        yield _no_nvidia(torch, seen)
        return
    for number, card in enumerate(seen.cards):
        yield _card(torch, seen.driver, number, card)
    unused = torch.version and torch.asked and torch.build.startswith("CUDA") and not torch.devices
    if unused and _too_old(torch, seen) is None:
        yield _unused(torch)


def _build(torch: Torch) -> Finding:
    facts = {"torch": torch.version, "build": torch.build, "architectures": list(torch.architectures)}
    if not torch.version:
        frozen = bool(getattr(sys, "frozen", False))
        advice = "`tmerge cache --clear` unpacks the engine anew" if frozen else 'pip install "torch>=2.6"'
        return Finding("torch", f"cannot be used: {torch.said}", advice, Level.MISSING, facts)
    if not torch.asked:
        found = f"{torch.version}, {torch.build} build, not asked: the engine is not unpacked yet"
        return Finding("torch", found, facts=facts)
    uses = [f"{device.name}, {size(device.total)}" for device in torch.devices]
    found = f"{torch.version}, {torch.build} build, uses {'; '.join(uses) if uses else 'the CPU'}"
    return Finding("torch", found, facts={**facts, "devices": [vars(device) for device in torch.devices]})


def _driver(torch: Torch, seen: machine.Nvidia) -> Finding:
    needed = _too_old(torch, seen)
    if needed is None:
        return Finding("driver", f"NVIDIA {seen.driver}", facts={"driver": seen.driver})
    found = f"NVIDIA {seen.driver}, and torch's {torch.build} build needs {needed} or newer"
    fitting = _fitting(seen.driver, "")
    other = f", or {get(fitting)}" if fitting else ""
    return checked("driver", found, f"update the driver{other}", driver=seen.driver, needed=needed)


def _card(torch: Torch, driver: str, number: int, card: machine.Card) -> Finding:
    memory = f", {size(card.total)}" + (f" ({size(card.free)} free)" if card.free is not None else "")
    capability = f", capability {card.capability}" if card.capability else ""
    found = f"{number}: {card.name}{memory if card.total else ''}{capability}"
    fitting = _fitting(driver, card.capability or "")
    how = get(fitting) if fitting else "update the driver first, or leave it: no build of torch is for both"
    advice = ""
    if torch.version and not torch.build.startswith("CUDA"):
        found, advice = f"{found}; not used: torch is a {torch.build} build", how
    elif card.capability and not has_kernels(card.capability, torch.architectures):
        found, advice = f"{found}; not used: torch has kernels for {' '.join(torch.architectures)}", how
    return checked("gpu", found, advice, **vars(card))


def _no_nvidia(torch: Torch, seen: machine.Nvidia | None) -> Finding:
    """Cards of others, cards without a driver, or none."""
    if torch.devices:  # of AMD or Apple, or where nvidia-smi is not installed
        return Finding("gpu", "; ".join(device.name for device in torch.devices))
    if seen is None and machine.nvidia_on_the_bus():
        advice = "install the NVIDIA driver; a container is started with its GPUs (docker run --gpus all)"
        return checked("gpu", "an NVIDIA card is there, its driver is not", advice)
    if torch.version and KFD.exists():
        if torch.build.startswith("ROCm"):
            said = f": {torch.said}" if torch.said else ""
            advice = f"check the driver with rocminfo, and that you may write {KFD} (group render)"
            return checked("gpu", f"an AMD card is there, and torch cannot use it{said}", advice)
        return Finding("gpu", f"an AMD card is there, torch is a {torch.build} build", get("ROCm"), Level.NOTE)
    if platform.system() == "Darwin" and platform.machine() == "arm64" and torch.asked:
        return checked("gpu", "an Apple GPU that torch cannot use", "update macOS, and use an arm64 build of Python")
    return Finding("gpu", "none; runs use the CPU")


def _unused(torch: Torch) -> Finding:
    """A CUDA build, a driver that is new enough, and still no device."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        advice = "unset CUDA_VISIBLE_DEVICES, or set it to the number of a GPU"
        return checked("gpu use", f"none is visible: CUDA_VISIBLE_DEVICES={hidden!r}", advice)
    advice = "reboot after an update of the driver; in a container, pass the GPU on (docker run --gpus all)"
    return checked("gpu use", f"torch cannot use it: {torch.said or 'no reason given'}", advice)


def _too_old(torch: Torch, seen: machine.Nvidia) -> int | None:
    """The driver that this build needs, when the one that is there is older; first numbers."""
    built, there = re.match(r"CUDA (\d+)", torch.build), re.match(r"\d+", seen.driver)
    needed = DRIVERS.get(int(built[1])) if built else None
    return needed if needed is not None and there and int(there[0]) < needed else None


def _fitting(driver: str, capability: str) -> str:
    """The newest build of torch for this driver and card (any card when empty); empty when there is none."""
    version = int(found[0]) if (found := re.match(r"\d+", driver)) else 0
    card = _numbers(capability) if capability else None
    fits = (name for name, oldest, lowest in BUILDS if oldest <= version and (card is None or lowest <= card))
    return next(fits, "")


def get(build: str) -> str:
    """How a person gets another build of torch."""
    index = "pytorch.org/get-started/locally"
    if getattr(sys, "frozen", False):
        return f"take the {build} build of tmerge, or the Python package with a {build} build of torch ({index})"
    return f"install a {build} build of torch: {index} has the command"


def has_kernels(capability: str, architectures: tuple[str, ...]) -> bool:
    """Whether kernels compiled for these run on a card: binary code (sm) on later cards of its generation, on that one
    card alone with an `a` behind it; intermediate code (compute) on all later cards. Unknown ones count as fitting."""
    card = _numbers(capability)
    for architecture in architectures:
        if (found := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)) is None:
            return True
        built = int(found[2]), int(found[3])
        covered = built == card if found[4] == "a" else built[0] == card[0] and built <= card
        if covered or (found[1] == "compute" and built <= card):
            return True
    return not architectures


def _numbers(capability: str) -> tuple[int, int]:
    first, _, second = capability.partition(".")
    return int(first), int(second or 0)


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
