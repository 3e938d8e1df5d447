"""The helper process and its client: the real one on tiny models, and small scripts for what goes wrong."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from pathlib import Path

import pytest

from tests.tiny import make_model, make_text
from tmerge_tui.errors import ModelError, StorageError, WorkerError
from tmerge_tui.events import Line, Logged, encode
from tmerge_tui.recipe import dump_recipe, make_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.tui.helper import Probe
from tmerge_tui.worker.helper import Cancelled, Request


def script(tmp_path: Path, body: str) -> Probe:
    """A helper of a few lines: `replies` writes, `requests` reads."""
    path = tmp_path / "helper.py"
    head = "import json, sys, os\nrequests = (json.loads(line) for line in sys.stdin)\n"
    head += "def reply(**said): print(json.dumps(said), flush=True)\n"
    path.write_text(head + textwrap.dedent(body))
    return Probe([sys.executable, str(path)])


async def over(probe: Probe) -> None:
    """The helper has gone and every pipe of it is closed."""
    probe.kill()
    await asyncio.gather(*probe._tasks)


async def test_errors_keep_their_class_and_their_hint(tmp_path: Path) -> None:
    probe = script(
        tmp_path,
        """
        for r in requests:
            reply(id=r["id"], error={"kind": "ModelError", "found": "gptq", "hint": "the original"})
        """,
    )
    with pytest.raises(ModelError) as caught:
        await probe.ask("facts")
    assert (caught.value.found, caught.value.hint) == ("gptq", "the original")
    await over(probe)


async def test_a_killed_helper_fails_what_it_had_and_is_started_again(tmp_path: Path) -> None:
    probe = script(
        tmp_path,
        """
        for r in requests:
            if r["call"] == "die": os.kill(os.getpid(), 9)
            reply(id=r["id"], result=os.getpid())
        """,
    )
    first = await probe.ask("who")
    with pytest.raises(WorkerError, match="killed"):
        await probe.ask("die")
    assert await probe.ask("who") != first
    await over(probe)


async def test_a_flood_on_stderr_and_stray_prints_do_not_block(tmp_path: Path) -> None:
    probe = script(
        tmp_path,
        """
        sys.stderr.write("noise " * 100_000)
        for r in requests:
            print("Loading weights: 100%")
            reply(id=r["id"], result="x" * 1_000_000)
        """,
    )
    assert len(await probe.ask("big")) == 1_000_000
    await over(probe)


async def test_a_cancelled_request_is_taken_back(tmp_path: Path) -> None:
    probe = script(
        tmp_path,
        """
        for r in requests:
            if r.get("call") == "slow": continue  # never answered
            if "cancel" in r: last = r["cancel"]; continue
            reply(id=r["id"], result=last)
        """,
    )
    task = asyncio.create_task(probe.ask("slow"))
    while not probe._waiting:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await probe.ask("what was cancelled") == 1
    await over(probe)


async def test_events_come_before_the_answer_and_of_the_request_alone(tmp_path: Path) -> None:
    line = encode(Logged("info", "half way"), 0, 1.0)
    probe = script(
        tmp_path,
        f"""
        for r in requests:
            reply(id=r["id"], event={line!r})
            reply(id=r["id"] + 1, event={line!r})
            reply(id=r["id"], event="torn")
            reply(id=r["id"], result="done")
        """,
    )
    heard: list[Line] = []
    assert await probe.ask("long", heard.append) == "done" and await probe.another().ask("x") == "done"
    assert [line.event for line in heard] == [Logged("info", "half way")]
    await over(probe)


def test_long_work_that_reports_ends_when_nobody_wants_it_any_more() -> None:
    request = Request(1, "scout", {})
    heard: list[str] = []
    request.told = heard.append
    request.tell(Logged("info", "one"))
    request.stop.set()
    with pytest.raises(Cancelled):
        request.tell(Logged("info", "two"))
    assert len(heard) == 1


async def test_a_helper_that_cannot_start_says_so(tmp_path: Path) -> None:
    probe = Probe([str(tmp_path / "no such program")])
    with pytest.raises(WorkerError, match="cannot be started"):
        await probe.ask("facts")


async def test_the_real_helper_on_tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the shapes the models were made with."""
    monkeypatch.setenv("TMERGE_CACHE", str(tmp_path / "cache"))
    source = make_model(tmp_path / "source", "llama", layers=3, hidden=32)
    target = make_model(tmp_path / "target", "qwen2", layers=2, hidden=16, intermediate=24, seed=1)
    text = make_text(tmp_path / "text.txt", 40)
    models = {role: {"folder": str(path), "name": role} for role, path in (("source", source), ("target", target))}
    recipe = {
        "source": str(source),
        "target": str(target),
        "calibration": {"path": str(text), "samples": 20, "holdout": 10},
        "fusion": {"k": 999},
        "output": str(tmp_path / "run"),
    }
    probe = Probe()
    facts = await probe.ask("facts", **models["source"])
    assert (facts["layers"], facts["hidden"], facts["model_type"]) == (3, 32, "llama")
    said = await probe.ask("match", kinds=["q", "k", "v", "o"], **models)
    assert said["kinds"] == ["q", "k", "v", "o"] and said["layers"] == [3, 2]
    assert said["shapes"]["k"] == [[[16, 32]], [[8, 16]]] and set(said["shapes"]) == set(said["kinds"])
    seen = await probe.ask(
        "preview",
        calibration=recipe["calibration"],
        seed=0,
        count=2,
        models=models,
    )
    assert len(seen["samples"]) == 2 and (seen["calibration"], seen["holdout"]) == (20, 10)
    assert seen["samples"][0]["source"]["tokens"] > 0
    needs = await probe.ask("estimate", recipe=recipe, **models)
    assert needs["memory"] > 0 and needs["disk"] > 0 and needs["seconds"] > 0
    assert not needs["bound"] and any("fusion.k" in problem for problem in needs["problems"])
    assert needs["advice"] == {}, "all three layers are kept by default"
    deep = {**recipe, "transport": {"top_layers": 99}}
    advice = (await probe.ask("estimate", recipe=deep, **models))["advice"]
    assert advice == {"transport.top_layers": "the source has 3 layers: all are kept"}
    said = await probe.ask("check", recipe=recipe)
    assert any("fusion.k" in problem for problem in said["problems"])
    events: list[Line] = []
    wide = {**recipe, "fusion": {"k": 8}, "calibration": {**recipe["calibration"], "validation": 5}}
    found = await probe.ask("scout", events.append, recipe=wide)
    assert found["texts"]["measured"] == 5 and found["models"]["target"]["after"] is not None
    assert {"RunStarted", "StageProgressed", "StageFinished"} <= {type(line.event).__name__ for line in events}
    needs = await probe.ask("estimate", recipe=wide, **models)
    assert needs["scouted"] and needs["seconds"] == pytest.approx(found["estimate"]["seconds"], rel=0.5)
    assert await probe.ask("fields", path=str(text)) == []
    with pytest.raises(ModelError):
        await probe.ask("facts", folder=str(tmp_path), name="nothing")
    unfinished = RunDir.create(recipe["output"])
    unfinished.recipe.write_text(dump_recipe(make_recipe({**recipe, "fusion": {"k": 8}})))
    with pytest.raises(StorageError, match="is empty"):
        await probe.ask("plan", run=str(unfinished.path), l=0, m=0, side="q.out")
    with pytest.raises(WorkerError, match="KeyError"):
        await probe.ask("match")
    await over(probe)
