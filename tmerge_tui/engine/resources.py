"""What a run takes from the machine: a sample a second as events, and the peaks for the report."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, TracebackType

import psutil

from tmerge_tui.errors import StorageError
from tmerge_tui.events import Emit, ResourceSample
from tmerge_tui.machine import nvidia_loads
from tmerge_tui.system import peak_memory

INTERVAL = 1.0  # seconds
LOAD_EVERY = 5  # samples between two questions to the driver's tool, which takes a moment


def peaks() -> tuple[int, int]:
    """(peak resident memory of this process, peak memory allocated on its GPUs), in bytes.

    The operating system and torch keep them, so nothing between two samples is missed. 0 without a GPU.
    """
    cuda = _cuda()
    gpu = sum(cuda.max_memory_allocated(i) for i in range(cuda.device_count())) if cuda else 0
    return peak_memory(), gpu


class Sampler:
    """Emits a ResourceSample every second while its block runs; `folder` is on the disk whose free space counts."""

    def __init__(self, emit: Emit, folder: Path) -> None:
        self.emit, self.folder = emit, folder
        self._process = psutil.Process()
        self._load: float | None = None  # of the GPUs, as last asked
        self._taken = 0  # samples
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="resources", daemon=True)

    def __enter__(self) -> Sampler:
        self._process.cpu_percent()  # the first call only sets the mark to measure from
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> ResourceSample:
        cuda = _cuda()
        used = total = 0
        if cuda:
            for i in range(cuda.device_count()):
                free, size = cuda.mem_get_info(i)
                used, total = used + size - free, total + size
            if self._taken % LOAD_EVERY == 0:
                self._load = _load(cuda)
            self._taken += 1
        return ResourceSample(
            cpu=self._process.cpu_percent(),
            rss=self._process.memory_info().rss,
            memory_total=psutil.virtual_memory().total,
            gpu=self._load,
            gpu_used=used,
            gpu_total=total,
            disk_free=shutil.disk_usage(self.folder).free,
        )

    def _work(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self.emit(self.sample())
            except (OSError, StorageError):
                return  # disk full or folder gone: the stage that needs the disk says so, with what to do


def _load(cuda: ModuleType) -> float | None:
    """Mean load of the cards that this process sees, in percent; None when the driver's tool does not tell."""
    loads = nvidia_loads()
    own = {
        str(getattr(cuda.get_device_properties(i), "uuid", "")).removeprefix("GPU-") for i in range(cuda.device_count())
    }
    mine = [load for uuid, load in loads.items() if uuid in own]
    return sum(mine) / len(mine) if mine else None


def _cuda() -> ModuleType | None:
    """torch.cuda if the engine has begun to use it: a sampler must not import torch or wake the driver."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        return cuda if cuda is not None and cuda.is_initialized() else None
    except AttributeError:  # torch is just being imported
        return None
