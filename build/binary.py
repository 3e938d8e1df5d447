"""Makes dist/tmerge: the terminal part as a PyInstaller one-file application that carries the packed engine.

    build/out/venv/bin/python build/binary.py        (`make binary` makes that environment first)

Run with the environment that is to be frozen: whether its torch is a CPU or a CUDA build decides what comes out.
The same commit, packages and Python give the same bytes in whatever folder: order, times and hashing are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from backports import zstd

ROOT = Path(__file__).resolve().parents[1]
FREEZE = ROOT / "build" / "out" / "freeze"
NAME = "tmerge.exe" if sys.platform == "win32" else "tmerge"
PACKAGES = ("torch", "transformers", "textual", "huggingface-hub", "pyarrow", "pot", "peft")  # named by `tmerge doctor`
# Stripping everything breaks libraries that were patched after linking, as numpy's OpenBLAS; these save 300 MB.
STRIPPED = ("torch/lib/libtorch_cpu.so", "torch/lib/libtorch_python.so", "ot/**/*.so", "libpython*.so*")
LIMIT = 2**32 - 2**27  # bytes of the packed engine: offsets in PyInstaller's archive have 32 bits
WINDOW = 27  # log2 of the bytes in which zstd looks for repetition: 128 MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", type=int, default=10, help="zstd level of the packed engine: 3 is quick, 19 small")
    arguments = parser.parse_args()
    os.environ.update(
        PYTHONHASHSEED="0",
        SOURCE_DATE_EPOCH=str(epoch()),
        PYINSTALLER_ZLIB_COMPRESSION_LEVEL="0",  # modules are packed once, by zstd, and load faster
    )
    facts = edition()
    folder = timed("freezing the engine", freeze, "engine", facts)
    timed("stripping", strip, folder)
    forget(folder)
    facts["engine"] = timed("packing", pack, folder, FREEZE / "engine.tar.zst", arguments.level)
    if facts["engine"]["packed"] > LIMIT:
        packed = facts["engine"]["packed"] / 1e6
        sys.exit(f"the packed engine has {packed:.0f} MB, one file holds {LIMIT / 1e6:.0f} MB: use a higher --level")
    timed("freezing the terminal part around it", freeze, "light", facts)
    result = ROOT / "dist" / NAME
    result.parent.mkdir(exist_ok=True)
    shutil.copy2(FREEZE / "dist" / NAME, result)
    engine = facts["engine"]
    print(f"{result}: {result.stat().st_size / 1e6:.0f} MB, of them {engine['packed'] / 1e6:.0f} MB the packed engine")
    print(f"engine: {engine['unpacked'] / 1e6:.0f} MB unpacked, {engine['files']} files")
    if sys.platform == "linux":
        print(f"needs glibc {floor(folder)} or newer")
    return 0


def timed(what: str, work: Any, *arguments: Any) -> Any:
    print(f"{what} ...", flush=True)
    began = time.monotonic()
    result = work(*arguments)
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)
    return result


def edition() -> dict[str, Any]:
    """What tmerge_tui/edition.py reads: version, commit, what torch was built for, versions of the packages."""
    sys.path.insert(0, str(ROOT))
    from tmerge_tui import __version__

    return {
        "version": __version__,
        "commit": commit(),
        "build": torch_build(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def torch_build() -> str:
    import torch

    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return "Metal" if sys.platform == "darwin" else "CPU"


def git(*arguments: str) -> str:
    """What git says; empty outside a checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The checkout's commit, with + when tracked files have been changed since."""
    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def epoch() -> int:
    """Seconds of the commit's date, which stand for the time of the build."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct") or 0)


def freeze(part: str, facts: dict[str, Any]) -> Path:
    """Runs PyInstaller on build/<part>.spec; the folder of its result."""
    description = FREEZE / part / "edition.json"
    description.parent.mkdir(parents=True, exist_ok=True)
    description.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level", "WARN"),
        *("--distpath", str(FREEZE / "dist"), "--workpath", str(FREEZE / "work"), str(ROOT / "build" / f"{part}.spec")),
    ]
    subprocess.run(command, check=True)
    return FREEZE / "dist" / part


def strip(folder: Path) -> None:
    """Takes debug information out of the libraries that have much of it."""
    if sys.platform != "linux":
        return
    files = [file for pattern in STRIPPED for file in (folder / "_internal").glob(pattern) if not file.is_symlink()]
    subprocess.run(["strip", "--strip-unneeded", *map(str, files)], check=True)


def forget(folder: Path) -> None:
    """Takes scripts out of the lists of installed files: their hashes depend on where the environment lies."""
    for record in (folder / "_internal").glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not line.startswith("..")), encoding="utf-8", newline="")


def floor(folder: Path) -> str:
    """The newest version of glibc that a library in the folder asks for: older systems cannot start it."""
    libraries = [path for path in folder.rglob("*.so*") if path.is_file() and not path.is_symlink()]
    said = subprocess.run(["objdump", "-T", *map(str, libraries)], capture_output=True, text=True).stdout
    found = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_(\d+\.\d+)", said)}
    return ".".join(map(str, max(found)))


def pack(folder: Path, to: Path, level: int) -> dict[str, Any]:
    """A tar archive compressed by zstd, whose bytes depend on nothing but names, content and the executable bit."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    Parameter = zstd.CompressionParameter
    options = {
        Parameter.compression_level: level,
        Parameter.window_log: WINDOW,
        Parameter.enable_long_distance_matching: 1,
        Parameter.nb_workers: os.cpu_count() or 1,
    }
    with zstd.ZstdFile(to, "w", options=options) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        for path in files:
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=anonymous)
    with open(to, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unpacked = sum(path.lstat().st_size for path in files)
    return {"sha256": digest, "packed": to.stat().st_size, "unpacked": unpacked, "files": len(files)}


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = int(os.environ["SOURCE_DATE_EPOCH"])
    member.mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
    return member


if __name__ == "__main__":
    sys.exit(main())
