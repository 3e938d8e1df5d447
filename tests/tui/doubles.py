"""Stand-ins for what the wizard talks to, and a way to read its screen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from tmerge_tui.errors import TmergeError
from tmerge_tui.tui.helper import Probe


class FakeProbe(Probe):
    """Answers like the helper process, at once and without one. `fails` maps a call to the error it meets."""

    def __init__(self) -> None:
        super().__init__(argv=["never", "started"])
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fails: dict[str, TmergeError] = {}
        self.answers: dict[str, Any] = {
            "match": {
                "kinds": ["q", "k", "v", "o"],
                "notes": ["gate: the source has none"],
                "warnings": ["licences differ: target mit, source llama3.1"],
                "layers": [6, 4],
                "hidden": [192, 96],
                "shapes": {
                    "q": [[[192, 192]], [[96, 96]]],
                    "k": [[[96, 192]], [[96, 96]]],
                    "v": [[[96, 192]], [[96, 96]]],
                    "o": [[[192, 192]], [[96, 96], [96, 48]]],
                },
            },
            "preview": {
                "column": "text",
                "columns": ["text", "label"],
                "calibration": 1500,
                "holdout": 400,
                "samples": [
                    {
                        "plain": "two rivers meet",
                        "source": {"text": "<s>two rivers meet", "tokens": 5, "cut": False},
                        "target": {"text": "two rivers meet", "tokens": 4, "cut": False},
                    }
                ],
                "warnings": ["8 duplicate samples left out"],
            },
            "estimate": {
                "memory": 1_200_000_000,
                "disk": 340_000_000,
                "seconds": 187.0,
                "device": "cpu",
                "notes": [],
                "download": 0,
            },
            "check": {"problems": [], "warnings": []},
            "fields": ["text", "label"],
            "extras": {},
            "generate": {"text": " and go on together", "tokens": 4, "seconds": 0.2},
        }

    def start(self) -> None:
        pass

    async def ask(self, call: str, **args: Any) -> Any:
        self.asked.append((call, args))
        await asyncio.sleep(0)
        if call in self.fails:
            raise self.fails[call]
        if call == "facts":
            return facts(args["name"])
        return self.answers[call]

    def kill(self) -> None:
        pass


def facts(name: str) -> dict[str, Any]:
    source = "source" in Path(name).name
    return {
        "model_type": "llama" if source else "qwen2",
        "architecture": "LlamaForCausalLM" if source else "Qwen2ForCausalLM",
        "parameters": 2_828_736 if source else 492_672,
        "layers": 6 if source else 4,
        "hidden": 192 if source else 96,
        "heads": 6,
        "kv_heads": 3 if source else 6,
        "head_dim": 32 if source else 16,
        "vocab": 2048,
        "dtype": "float32",
        "bytes_on_disk": 11_320_928,
        "chat_template": False,
        "licence": "apache-2.0",
        "download": 0,
        "note": "",
    }


def screen_text(app: App) -> str:
    """What stands on the screen, line by line, without trailing blanks."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


LASTING = ("follow", "default", "quit", "start", "_loader")  # follow a run, or wait for an answer of the person


async def settle(pilot: Pilot, seconds: float = 0.05) -> None:
    """Until the workers that are not meant to go on have done their work; `seconds`: until typing counts as over."""
    await pilot.pause(seconds)
    await until(pilot, lambda: not [w for w in pilot.app.workers if w.is_running and w.group not in LASTING])
    await pilot.pause()


async def until(pilot: Pilot, seen: Callable[[], object]) -> None:
    """Until it is so; pytest's own limit is the only clock."""
    while not seen():
        await pilot.pause(0.01)


def follows(pilot: Pilot) -> bool:
    """Whether a run is still followed: not any more once its end has been drawn."""
    return any(worker.is_running and worker.group == "follow" for worker in pilot.app.workers)


async def type_text(pilot: Pilot, text: str) -> None:
    """Into the focused input, as pasted."""
    from textual import events

    assert pilot.app.focused is not None
    pilot.app.focused.post_message(events.Paste(text))
    await pilot.pause()


async def wait_for(pilot: Pilot, text: str) -> None:
    """Until `text` stands on the screen."""
    await until(pilot, lambda: text in screen_text(pilot.app))
