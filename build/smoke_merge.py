"""Models and recipes of the checks, and what a merge has left: its tensors, compared byte for byte."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from smoke_box import ROOT, WINDOWS, Box, Done, Failed, expect

DEMO = ROOT / "assets" / "demo"
# Long enough to be stopped in the middle, short enough to be run again and again.
SHORT = {
    "calibration": {"path": "calibration.txt", "samples": 150, "holdout": 60, "max_length": 128},
    "transport": {"projections": ["q", "k", "v", "o", "gate", "up", "down"]},
    "fusion": {"alpha": 0.1, "k": 32, "coupling": "barycentric"},
    "evaluation": {"controls": [], "source": False},
}


class World:
    """The box and what several checks need; made when first asked for."""

    def __init__(self, box: Box) -> None:
        self.box = box

    @cached_property
    def demo(self) -> Path:
        """The run folder of `tmerge demo`, made by the binary."""
        self.box.run("demo").expect(0)
        return self.box.work / "tmerge-demo"

    @cached_property
    def engine(self) -> Path:
        """The program that the binary has unpacked into the box's home."""
        self.box.run("check", self.pair / "target").expect(0)
        (folder,) = self.box.unpacked(self.box.home)
        return folder / ("tmerge.exe" if WINDOWS else "tmerge")

    @cached_property
    def pair(self) -> Path:
        """A copy of the demo's models and text."""
        return copy(DEMO, self.box.models / "pair", {"source-llama": "source", "target-qwen2": "target"})

    @cached_property
    def short(self) -> Path:
        """The run folder of the short recipe, made from source: what every run of it has to come to."""
        run = self.box.work / "short-source"
        recipe = self.write("short-source", **self.pair_recipe())
        self.box.finish(self.box.source("--batch", recipe)).expect(0)
        return run

    def pair_recipe(self) -> dict[str, Any]:
        calibration = {**SHORT["calibration"], "path": str(self.pair / "calibration.txt")}
        return {
            "source": str(self.pair / "source"),
            "target": str(self.pair / "target"),
            **SHORT,
            "calibration": calibration,
        }

    def write(self, name: str, **recipe: Any) -> Path:
        """The recipe as a file; its output is the folder `name` beside it."""
        path = self.box.work / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe, "output": str(self.box.work / name)}, allow_unicode=True), "utf-8")
        return path

    def both(self, name: str, recipe: dict[str, Any], **env: str) -> tuple[Path, Path]:
        """Runs a recipe by the binary and from source, side by side, and compares; the two run folders."""
        box = self.box
        paths = [self.write(f"{name}-{side}", **recipe) for side in ("binary", "source")]
        commands = [
            box.command("--batch", paths[0], env=box.environment(**env)),
            box.source("--batch", paths[1], **env),
        ]
        for process in [box.start(command) for command in commands]:
            box.end(process).expect(0)
        runs = (paths[0].with_suffix(""), paths[1].with_suffix(""))
        same_merge(*runs)
        return runs


def copy(folder: Path, to: Path, names: dict[str, str]) -> Path:
    """The files below a folder under other top names; hidden ones and caches stay behind."""
    for path in sorted(folder.rglob("*")):
        top, *rest = path.relative_to(folder).parts
        if path.is_file():
            new = to.joinpath(names.get(top, top), *rest)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(path.read_bytes())
    return to


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight file below a folder, by its path there."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tensors(run: Path) -> dict[str, str]:
    """The same of a run's merged models, without its unfinished pieces."""
    return {name: digest for name, digest in weights(run).items() if name.startswith("model")}


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def same_merge(one: Path, other: Path) -> str:
    """Compares weight files, scores and verdict of two finished runs; says how many were equal. Raises Failed."""
    ours, theirs = tensors(one), tensors(other)
    expect(ours, f"no weight files in {one}")
    differing = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    expect(not differing, f"{one} and {other} differ in {', '.join(differing)}")
    for part in ("verdict", "scores"):
        if report(one)[part] != report(other)[part]:
            raise Failed(f"{one} and {other} have another {part}:\n{report(one)[part]}\n{report(other)[part]}")
    return f"{len(ours)} weight files equal"


def events(run: Path) -> list[dict[str, Any]]:
    """What a run has said so far; none before it has begun."""
    file = run / "events.jsonl"
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def resumed(run: Path) -> list[str]:
    """Stages that the last start of a run took from what an earlier one had finished."""
    lines = events(run)
    start = max(number for number, line in enumerate(lines) if line["type"] == "RunStarted")
    return [line["stage"] for line in lines[start:] if line["type"] == "StageFinished" and line["outcome"] == "cached"]


def expect_result(done: Done, run: Path) -> None:
    """What a finished run leaves: a verdict, models and reports. Raises Failed."""
    done.expect(0, "bits per byte", f"report  {run / 'report.html'}")
    for name in ("report.html", "report.md", "report.json", "recipe.yaml", "events.jsonl"):
        expect((run / name).stat().st_size, f"{run / name} is empty")
    models = sorted(run.glob("model*"))
    expect(models, f"no model in {run}")
    for model in models:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
            expect((model / name).is_file(), f"no {name} in {model}")
