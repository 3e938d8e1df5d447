"""The empty environment in which build/smoke runs the binary.

Nothing of the caller's environment, a new HOME, an empty PATH, and, where a mount namespace can be had, a file system
that is read-only but for HOME, TMPDIR and the work folder, with the checkout and its Python hidden.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = sys.platform == "win32"
TERM = "xterm-256color"
LONG = 300.0  # seconds after which a command counts as hung
KERNEL = ("/proc", "/sys", "/dev")  # what is mounted there is no disk


class Failed(Exception):
    """A check found something wrong."""


class NotChecked(Exception):
    """A check cannot be made on this machine: why."""


def expect(right: object, otherwise: str) -> None:
    if not right:
        raise Failed(otherwise)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    def expect(self, code: int, *texts: str) -> Done:
        """Itself, when the exit code and all texts are there. Raises Failed."""
        missing = [text for text in texts if text not in self.out + self.err]
        if self.code != code or missing:
            lacks = f", without {missing}" * bool(missing)
            raise Failed(f"exit code {self.code} where {code} is right{lacks}\n{self.out[-1500:]}{self.err[-3000:]}")
        return self


@dataclass(frozen=True)
class Command:
    argv: list[str]
    env: dict[str, str]  # all of it

    @property
    def shell(self) -> str:
        """As a line for a shell, which adds nothing to the environment."""
        return shlex.join([_tool("env"), "-i", *(f"{name}={value}" for name, value in self.env.items()), *self.argv])


class Box:
    """A scratch folder with the binary, a home, and a fence around them."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.folder = folder
        self.rw = folder / "rw"  # the only place where a fenced command can write
        self.work, self.tmp, self.models = self.rw / "work", self.rw / "tmp", folder / "models"
        self.nothing = folder / "nothing"
        for each in (self.work, self.tmp, self.models, self.nothing, folder / "bin"):
            each.mkdir(parents=True)
        self.program = folder / "bin" / binary.name
        shutil.copy2(binary, self.program)
        self._numbers = itertools.count(1)
        self.home = self.new_home()
        self.open_because = self._try_fence()  # empty: the fence holds

    def new_home(self) -> Path:
        """A home in which tmerge has never run."""
        home = self.rw / f"home{next(self._numbers)}"
        home.mkdir()
        return home

    def environment(self, home: Path | None = None, **more: str) -> dict[str, str]:
        """All that a command finds."""
        home = home or self.home
        given = {"PATH": str(self.nothing), "HOME": str(home), "TMPDIR": str(self.tmp), "TERM": TERM}
        given["OMP_NUM_THREADS"] = "1"  # equal bytes are for equal work: several threads may share it differently
        if WINDOWS:  # without these no program starts, and its folders are asked of the system, not of HOME
            given |= {name: os.environ[name] for name in ("SYSTEMROOT", "SYSTEMDRIVE", "PATHEXT")}
            given |= {"USERPROFILE": str(home), "TEMP": str(self.tmp), "TMERGE_CACHE": str(cache(home))}
        return {**given, **more}

    def command(
        self, *arguments: str | Path, env: dict[str, str] | None = None, mounts: str = "", program: Path | None = None
    ) -> Command:
        """The binary, or another program, inside the fence; `mounts` are lines of shell that make it narrower."""
        argv = [str(program or self.program), *map(str, arguments)]
        if not self.open_because:
            argv = [*self._namespace, "/bin/sh", str(self._fence(mounts)), *argv]
        elif mounts:
            raise NotChecked(self.open_because)
        return Command(argv, self.environment() if env is None else env)

    def source(self, *arguments: str | Path, **more: str) -> Command:
        """tmerge from the checkout, in an environment as empty as the binary's."""
        return self.python("-P", "-m", "tmerge_tui", *arguments, **more)

    def python(self, *arguments: str | Path, **more: str) -> Command:
        """The frozen environment's Python with the checkout's tmerge."""
        home = self.rw / "source-home"
        home.mkdir(exist_ok=True)
        given = {**self.environment(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}
        return Command([sys.executable, *map(str, arguments)], given)

    def start(self, command: Command) -> subprocess.Popen[str]:
        """Runs in the background, the leader of a process group of its own, without a terminal."""
        return subprocess.Popen(
            command.argv,
            env=command.env,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str], seconds: float = LONG) -> Done:
        """Waits for it, and says how long that took. Raises Failed when it hangs."""
        began = time.monotonic()
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for each in self.processes():
                each.kill()
            out, err = process.communicate()
            raise Failed(f"hangs: {process.args}\n{out[-1500:]}{err[-1500:]}") from None
        return Done(process.returncode, out, err, time.monotonic() - began)

    def run(
        self, *arguments: str | Path, env: dict[str, str] | None = None, mounts: str = "", program: Path | None = None
    ) -> Done:
        """Runs the binary to its end."""
        return self.finish(self.command(*arguments, env=env, mounts=mounts, program=program))

    def finish(self, command: Command) -> Done:
        """Runs a command to its end."""
        return self.end(self.start(command))

    def processes(self) -> list[psutil.Process]:
        """Those that run from the box, or were started with a path in it."""
        found = []
        for process in psutil.process_iter(["exe", "cmdline"]):
            words = [process.info["exe"] or "", *(process.info["cmdline"] or ())]
            if any(word.startswith(str(self.folder)) for word in words) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def gone(self, seconds: float = 10.0) -> None:
        """Waits until no process of the box is left. Raises Failed, after killing those that stay."""
        if not until(lambda: not self.processes(), seconds):
            left = [f"{process.pid} {shlex.join(process.cmdline())[:200]}" for process in self.processes()]
            for process in self.processes():
                process.kill()
            raise Failed("processes are left:\n" + "\n".join(left))

    def unpacked(self, home: Path) -> list[Path]:
        """Engines in the cache of a home, finished or not."""
        folder = cache(home) / "engine"
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    # the fence

    def _try_fence(self) -> str:
        """Why there is none; empty when it can be put up."""
        if sys.platform != "linux":
            return "no mount namespaces on this platform"
        if not shutil.which("unshare") or not shutil.which("mount"):
            return "no unshare or mount (util-linux)"
        root = [] if os.geteuid() == 0 else ["--map-root-user"]
        self._namespace = [_tool("unshare"), *root, "--mount"]
        done = subprocess.run(
            [*self._namespace, "/bin/sh", str(self._fence("")), _tool("true")], capture_output=True, text=True
        )
        return "" if done.returncode == 0 else f"no mount namespace: {done.stderr.strip()}"

    def _fence(self, mounts: str) -> Path:
        """The script that puts up the fence around a command and becomes it."""
        mount = _tool("mount")
        hidden = [ROOT] + [Path(sys.base_prefix)] * (sys.base_prefix not in ("/usr", "/usr/local", "/"))
        lines = [
            "set -e",
            f"{mount} --make-rprivate /",
            f"{mount} --bind {shlex.quote(str(self.rw))} {shlex.quote(str(self.rw))}",
            *(f"{mount} -o remount,bind,{flags} {shlex.quote(place)}" for place, flags in disks()),
            *(f"{mount} --bind {shlex.quote(str(self.nothing))} {shlex.quote(str(path))}" for path in hidden),
            mounts,
            f"cd {shlex.quote(str(self.work))}",
            "unset PWD OLDPWD",
            'exec "$@"',
        ]
        script = self.folder / f"fence{next(self._numbers)}"
        script.write_text("\n".join(lines) + "\n")
        return script


def cache(home: Path) -> Path:
    """Where tmerge keeps what it can make again, in a home."""
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "tmerge"


def disks() -> list[tuple[str, str]]:
    """(mount point, options with ro) of everything mounted that is no part of the kernel's own file systems.

    A user namespace refuses to drop options such as nosuid, so those that are there are repeated.
    """
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        _, _, _, _, place, options, *_ = line.split()
        if not any(place == kernel or place.startswith(f"{kernel}/") for kernel in KERNEL):
            kept = [option for option in options.split(",") if option not in ("rw", "ro")]
            found.append((place.encode().decode("unicode_escape"), ",".join(["ro", *kept])))
    return found


def until(ready: Callable[[], object], seconds: float = LONG, every: float = 0.05) -> bool:
    """Whether `ready` became true in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotChecked(f"no {name} on this machine")
    return found
