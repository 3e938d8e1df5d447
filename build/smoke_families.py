"""Checks of what can be merged: every model family, every kind of text, adapters, training, the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import smoke_ring
import smoke_texts
from smoke_box import WINDOWS, Failed, NotChecked, expect
from smoke_merge import World, report, same_merge, tensors, weights

PROJECTIONS = ["q", "k", "v", "o", "gate", "up", "down"]
SMALL: dict[str, Any] = {
    "calibration": {"samples": 12, "holdout": 4, "max_length": 16, "batch_size": 8},
    "transport": {"projections": PROJECTIONS, "max_iterations": 20},
    "fusion": {"alpha": 0.3, "k": 8, "r": 8, "coupling": "barycentric"},
    "evaluation": {"resamples": 100, "source": False, "controls": []},
    "device": "cpu",
}
STEP = 17  # from a family to the one it is merged into: neighbours in the list are alike
ENOUGH = 900.0  # seconds for a list of recipes


def families(world: World) -> str:
    """Every family as a source and as a target, in a ring: the same tensors frozen and from source."""
    smoke_texts.quiet()
    from tests.families import FAMILIES, make_family
    from tests.tiny import make_text

    names, folder = list(FAMILIES), world.box.models / "families"
    for number, name in enumerate(names):
        make_family(folder / name, name, seed=number)
    text = make_text(folder / "text.txt", 20)
    recipes = {}
    for number, name in enumerate(names):
        target = names[(number + STEP) % len(names)]
        recipes[f"{name}-{target}"] = small(folder / name, folder / target, text)
    return ring(world, "families", recipes)


def variants(world: World) -> str:
    """Chat, csv and parquet text, a LoRA adapter, other files and solvers: the same tensors frozen and from source."""
    smoke_texts.quiet()
    from tests.tiny import make_model, make_text

    folder = world.box.models / "variants"
    one, other = make_model(folder / "llama", "llama", seed=1), make_model(folder / "qwen2", "qwen2", seed=2)
    text = make_text(folder / "text.txt", 20)
    chat = [smoke_texts.chatty(model, folder / f"chat-{model.name}") for model in (one, other)]
    own = {"model": str(smoke_texts.own_code(one, folder / "own")), "trust_remote_code": True}
    recipes = {
        **{path.suffix[1:]: small(one, other, path) for path in smoke_texts.formats(text)},
        "chat": small(*chat, smoke_texts.conversations(text)),
        "adapter": small(smoke_texts.adapter(one, folder / "adapter"), other, text),
        "sharded": small(one, make_model(folder / "sharded", "qwen2", seed=3, max_shard_size="20KB"), text),
        "pickled": small(smoke_texts.pickled(one, folder / "pickled"), other, text),
        "own-code": small(own, other, text),
        "spans": small(one, other, text, calibration={"pooling": "span"}),
        "pot": small(one, other, text, transport={"solver": "pot"}),
        "auto": small(one, other, text, fusion={"alpha": "auto"}, calibration={"validation": 4}),
        "streamed": small(one, other, text, memory="100KB"),
        "placebos": small(one, other, text, evaluation={"source": True, "controls": ["shrink", "permuted"]}),
    }
    return ring(world, "variants", recipes)


def training(world: World) -> str:
    """Training with hints, distillation and low-rank updates by `--batch`: the same tensors frozen and from source."""
    recipe = world.pair_recipe()
    steps = {"max_steps": 2, "block_length": 64, "samples": 40, "learning_rate": 1e-4}
    world.both("trained", {**recipe, "adaptation": {**steps, "compare": ["sft", "distill"], "hints": {"words": 8}}})
    run, _ = world.both("low-rank", {**recipe, "adaptation": {**steps, "method": "lora"}})
    return report(run)["verdict"]["headline"][:60]


def hub(world: World) -> str:
    """Models and a data set by id from a Hub on this machine, the same offline afterwards, and the result uploaded."""
    smoke_texts.quiet()
    from tests.hub.server import TOKEN, Hub
    from tests.tiny import make_model, make_text

    box, folder = world.box, world.box.models / "hub"
    for role, family in (("source", "llama"), ("target", "qwen2")):
        make_model(folder / role, family, seed=len(role))
    lines = make_text(folder / "text.txt", 60).read_text().splitlines()
    rows = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    recipe = {**SMALL, "source": "org/source", "target": "org/target"}
    recipe["calibration"] = {**SMALL["calibration"], "repo_id": "org/text"}
    with Hub() as server:
        for role in ("source", "target"):
            server.add(f"org/{role}", folder / role, gated=True)
            server.allowed.add(f"org/{role}")
        server.add("org/text", {"train.jsonl": rows.encode()}, kind="dataset")
        env = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
        run, _ = world.both("hub", recipe, **env)
        asked = len(server.requests)
        again = world.write("hub-offline", **recipe)
        box.run("--batch", again, "--offline", env=box.environment(**env)).expect(0)
        expect(len(server.requests) == asked, f"asked of the Hub while offline: {server.requests[asked:]}")
        same_merge(run, again.with_suffix(""))
        box.run("push", run, "--repo", "me/merged", "--yes", env=box.environment(**env)).expect(0, "me/merged")
        uploaded = server.repos["model", "me/merged"].files["model.safetensors"]
        expect(uploaded == (run / "model" / "model.safetensors").read_bytes(), "another model was uploaded")
    for path in run.rglob("*"):
        expect(not path.is_file() or TOKEN.encode() not in path.read_bytes(), f"the token stands in {path}")
    return f"{asked} requests"


# -- many recipes in one process ---------------------------------------------------------------------------------------


def small(source: Path | dict[str, Any], target: Path, text: Path, **changes: Any) -> dict[str, Any]:
    """SMALL with some sections changed: a mapping is added to that section, anything else replaces it."""
    recipe = {**SMALL, "source": source if isinstance(source, dict) else str(source), "target": str(target)}
    recipe["calibration"] = {**SMALL["calibration"], "path": str(text)}
    for name, value in changes.items():
        recipe[name] = {**recipe[name], **value} if isinstance(value, dict) else value
    return recipe


def ring(world: World, name: str, recipes: dict[str, dict[str, Any]]) -> str:
    """Runs recipes inside the engine and from source, side by side, and compares them one by one."""
    if WINDOWS:
        raise NotChecked("the engine takes no work through a pipe on Windows")
    box, engine = world.box, world.engine
    runs = {side: box.work / f"{name}-{side}" for side in ("binary", "source")}
    started, logs = {}, {}
    for side, folder in runs.items():
        listed, logs[side] = folder.with_suffix(".json"), folder.with_suffix(".log")
        listed.write_text(json.dumps([{**recipe, "output": str(folder / n)} for n, recipe in recipes.items()]), "utf-8")
        if side == "binary":
            started[side] = smoke_ring.inside(box, engine, listed, logs[side])
        else:
            started[side] = smoke_ring.outside(box, listed, logs[side])
    said = {}
    for side, process in started.items():
        out, _ = process.communicate(timeout=ENOUGH)
        said[side] = [json.loads(line) for line in out.splitlines()]
        if process.returncode or len(said[side]) != len(recipes):
            ended = f"exit code {process.returncode} after {len(said[side])} of {len(recipes)} merges"
            raise Failed(f"{side}: {ended}\n{logs[side].read_text()[-2000:]}")
    wrong = []
    for title, *errors in zip(recipes, said["binary"], said["source"], strict=True):
        try:
            for side, error in zip(runs, errors, strict=True):
                expect(error is None, f"{side}: {error}")
            same_merge(*(folder / title for folder in runs.values()))
            before, after = weights(Path(recipes[title]["target"])), tensors(runs["binary"] / title)
            expect(set(after.values()) - set(before.values()), "the merge has changed nothing")
        except Failed as error:
            wrong.append(f"{title}: {error}")
    expect(not wrong, "\n".join([f"{len(wrong)} of {len(recipes)}", *wrong]))
    return f"{len(recipes)} merges equal"


CHECKS = {"families": families, "variants": variants, "training": training, "hub": hub}
