"""Checks of the binary's first minutes: version, first run, the same merge from source, unpacking that goes wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import smoke_ring
from PyInstaller.archive.readers import CArchiveReader
from smoke_box import LONG, ROOT, WINDOWS, Failed, NotChecked, expect, until
from smoke_merge import World, expect_result, report, same_merge

import tmerge_tui

VERSION = re.compile(r"tmerge (\S+) \(commit ([0-9a-f]{7,}\+?), (.+) build\)\n")
ENTRY = "engine.tar.zst"  # of the executable's archive
NVRTC = """
import ctypes, torch
nvrtc, program = ctypes.CDLL("libnvrtc.so." + torch.version.cuda.split(".")[0]), ctypes.c_void_p()
kernel = b'extern "C" __global__ void f(float *x) { x[0] = __shfl_xor_sync(-1, sinf(x[1]), 1); }'
nvrtc.nvrtcCreateProgram(ctypes.byref(program), kernel, b"f.cu", 0, None, None)
print(nvrtc.nvrtcCompileProgram(program, 0, None), flush=True)
"""


def fence(world: World) -> str:
    """The fence holds: what is written outside fails, neither the checkout nor a Python is there."""
    box = world.box
    if box.open_because:
        raise NotChecked(f"the file system is not read-only around the binary: {box.open_because}")
    outside = [box.folder / "x", ROOT / "x", Path("/etc/x"), Path.home() / "x", Path(__file__)]
    tries = [f'if echo >> "{path}"; then echo "wrote {path}"; fi' for path in outside]
    tries += ["command -v python3 python && echo found", f'ls "{ROOT}"', "echo > inside && echo wrote inside"]
    done = box.run("-c", "\n".join(tries), program=Path("/bin/sh"))
    expect(done.out == "wrote inside\n", f"the fence is open: {done.out}")
    return "read-only but for HOME, TMPDIR and the work folder"


def version(world: World) -> str:
    """Version, commit and help, none of which unpacks the engine; the exit codes of wrong usage."""
    box = world.box
    home = box.new_home()
    env = box.environment(home)
    said = box.run("--version", env=env).expect(0)
    found = VERSION.fullmatch(said.out)
    if found is None or said.err:
        raise Failed(f"--version says {said.out!r} {said.err!r}")
    expect(found[1] == tmerge_tui.__version__, f"version {found[1]} where the checkout has {tmerge_tui.__version__}")
    box.run("--help", env=env).expect(0, "--batch RECIPE", "demo", "doctor")
    box.run("demo", "--help", env=env).expect(0, "Run the bundled example")
    box.run("--nonsense", env=env).expect(2, "No such option")
    box.run("--batch", "missing.yaml", env=env).expect(2, "missing.yaml")
    box.run(env=env).expect(2, "The wizard needs a terminal")
    box.run("cache", env=env).expect(0, "nothing is unpacked")
    written = [path for path in home.rglob("*") if path.is_file()]
    expect(not written, f"written without need: {written}")
    return said.out.strip()


def demo(world: World) -> str:
    """The first run ever: the engine is unpacked with progress, and nothing is written where it does not belong."""
    box = world.box
    home = box.new_home() if box.unpacked(box.home) else box.home
    done = box.run("demo", "--output", "first", env=box.environment(home))
    expect_result(done, box.work / "first")
    expect("unpacking the engine into" in done.err, f"nothing said about the unpacking:\n{done.err[:500]}")
    expect(re.search(r"^ +\d+ %$", done.err, re.MULTILINE), f"no progress of the unpacking:\n{done.err[:500]}")
    asked = "import platformdirs; print(platformdirs.user_cache_dir('tmerge'), platformdirs.user_state_dir('tmerge'))"
    ours = box.finish(box.python("-c", asked, HOME=str(home))).out.split()
    files = [path for path in home.rglob("*") if not path.is_dir()]
    strays = [str(path) for path in files if not any(path.is_relative_to(folder) for folder in ours)]
    expect(files and not strays, f"in HOME, outside {ours}: {strays[:5]}")
    left = [path for path in box.tmp.iterdir() if not path.name.startswith("torchinductor_")]  # torch's own, empty
    expect(not left, f"left in TMPDIR: {left}")
    world.demo = box.work / "first"
    return f"{done.seconds:.0f} s, {size(files)} MB unpacked"


def source(world: World) -> str:
    """The demo from source: the same tensors, scores and verdict."""
    box, run = world.box, world.box.work / "demo-source"
    done = box.finish(box.source("demo", "--output", run)).expect(0)
    equal = same_merge(world.demo, run)
    return f"{equal}, {done.seconds:.0f} s from source; {report(run)['verdict']['headline'][:60]} …"


def commands(world: World) -> str:
    """The commands beside the merge, those of the terminal part and those that the engine answers."""
    box, target = world.box, world.pair / "target"
    run = shutil.copytree(world.short, box.work / "moved")
    headline = report(run)["verdict"]["headline"]
    box.run("watch", run).expect(0, headline)
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    box.run("report", run).expect(0, headline)
    expect((run / "report.html").read_bytes() == page, "the report is another when it is written again")
    box.run("plan", world.write("planned", **world.pair_recipe())).expect(0, "source:", "# memory")
    box.run("check", target).expect(0, "q_proj")
    box.run("models").expect(0, "qwen2", "llama")
    box.run("cache").expect(0, str(world.engine.parent), "of this executable")
    box.run("cancel", run).expect(1, "no run is going on")
    questions = box.work / "questions.jsonl"
    asked = {"context": "Yesu akawaambia,", "choices": [" Amin", " xyz"], "label": 0}
    questions.write_text("".join(json.dumps(asked) + "\n" for _ in range(4)))
    box.run("eval", run, "--choices", questions).expect(0, "questions")
    box.run("eval", run, "--tasks", "arc_easy").expect(2, "lm-eval")
    machine = json.loads(box.run("doctor", "--json", env=box.environment(HF_HUB_OFFLINE="1")).expect(0).out)
    names = {finding["what"]: finding for finding in machine["findings"]}
    expect("torch" in str(names) and "certificates" in names, f"the doctor found {list(names)}")
    wrong = [finding["what"] for finding in machine["findings"] if finding["level"] in ("problem", "missing")]
    expect("terminal" in wrong, "the doctor sees a terminal")
    return f"problems that the doctor sees: {', '.join(wrong)}"


def cuda(world: World) -> str:
    """A CUDA build: its run-time compiler finds what it opens by name. That takes no GPU."""
    if "CUDA" not in world.box.run("--version").out:
        raise NotChecked("no CUDA build")
    log = world.box.folder / "nvrtc.log"
    out, _ = smoke_ring.program(world.box, world.engine, NVRTC, log).communicate(timeout=LONG)
    expect(out == "0\n", f"NVRTC compiles nothing: {out!r}\n{log.read_text()[-2000:]}")
    return "NVRTC compiles"


def unpacking(world: World) -> str:
    """Stopped, then killed in the first unpacking, then two first runs at once: one engine, and both do their work."""
    box, home = world.box, world.box.new_home()
    env = box.environment(home)
    command = box.command("check", world.pair / "target", env=env)

    def parts() -> list[Path]:
        return [path for path in box.unpacked(home) if path.suffix == ".part" and any(path.iterdir())]

    if not WINDOWS:
        first = box.start(command)
        expect(until(parts, 60), "no unpacking within a minute")
        os.killpg(first.pid, signal.SIGINT)
        box.end(first, 5).expect(130, "stopped")
        expect(not box.unpacked(home), f"left in the cache: {box.unpacked(home)}")
    first = box.start(command)
    expect(until(parts, 60), "no unpacking within a minute")
    for process in box.processes():
        process.kill()
    first.communicate()
    expect(parts(), "killed too late: the engine was whole")
    shutil.rmtree(box.tmp)  # what the bootloader of a killed process leaves
    box.tmp.mkdir()
    done = [box.end(process).expect(0, "q_proj") for process in [box.start(command), box.start(command)]]
    unpacked = box.unpacked(home)
    expect(len(unpacked) == 1 and unpacked[0].suffix != ".part", f"in the cache: {unpacked}")
    shown = [bool(re.search(r"^ +[1-9]\d? %$", one.err, re.MULTILINE)) for one in done]
    expect(sum(shown) == 1, f"unpacked by {sum(shown)} of two first runs:\n{done[0].err}\n{done[1].err}")
    box.run("cache", "--clear", env=env).expect(0, "removed")
    expect(not box.unpacked(home), f"cache --clear has left {box.unpacked(home)}")
    return f"two first runs at once took {sum(one.seconds for one in done):.0f} s"


def damaged(world: World) -> str:
    """One wrong byte in the packed engine: an error that says so, and nothing left in the cache."""
    box, home = world.box, world.box.new_home()
    file = box.folder / "bin" / f"damaged-{box.program.name}"
    shutil.copy2(box.program, file)
    archive = CArchiveReader(str(file))
    offset, size, *_ = archive.toc[ENTRY]
    with open(file, "r+b") as stream:
        stream.seek(archive._start_offset + offset + size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    done = box.run("demo", "--output", "never", env=box.environment(home), program=file)
    file.unlink()
    done.expect(1, "is damaged", "download it again")
    expect(not box.unpacked(home), f"left in the cache: {box.unpacked(home)}")
    return f"said after {done.seconds:.1f} s"


def no_room(world: World) -> str:
    """Disks too small for the engine, read-only, or where no program starts: an error that names the way out."""
    box, target = world.box, world.pair / "target"
    done = {}
    for options in ("size=64m", "ro", "noexec,size=3g"):
        home = box.new_home()
        (home / ".cache").mkdir()
        mount = f"{shutil.which('mount')} -t tmpfs -o {options} none {shlex.quote(str(home))}/.cache"
        done[options] = box.run("check", target, env=box.environment(home), mounts=mount).expect(1, "TMERGE_CACHE")
    said = done["size=64m"].err
    expect(re.search(r"no room for the engine.*: \d+ MB free", said), f"no size:\n{said}")
    expect(re.search(r"expected: .* with [\d,]{3,} MB", said), f"no size:\n{said}")
    expect("Read-only" in done["ro"].err, done["ro"].err)
    expect("no program can start" in done["noexec,size=3g"].err, done["noexec,size=3g"].err)
    elsewhere = box.environment(home, TMERGE_CACHE=str(world.engine.parents[2]))
    box.run("check", target, env=elsewhere, mounts=mount).expect(0, "q_proj")
    return f"said after {max(one.seconds for one in done.values()):.1f} s"


def size(files: list[Path]) -> str:
    return f"{sum(path.lstat().st_size for path in files) / 1e6:,.0f}"


CHECKS = {
    "fence": fence,
    "version": version,
    "demo": demo,
    "source": source,
    "commands": commands,
    "cuda": cuda,
    "unpacking": unpacking,
    "damaged": damaged,
    "no-room": no_room,
}
