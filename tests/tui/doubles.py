"""Stand-ins for what the wizard talks to, and a way to read its screen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from tmerge_tui.errors import TmergeError
from tmerge_tui.events import Line, RunStarted, StageProgressed, StageStarted
from tmerge_tui.tui.helper import Probe

PROGRESS = (
    RunStarted("scout", 1, "cpu", {}, [{"name": "scout_target", "label": "Try the target", "weight": 1.0}]),
    StageStarted("scout_target", "Trying target-qwen2", 420, "texts"),
    StageProgressed("scout_target", 210, 420, "texts", 30.0, "step 20 of 40, loss 3.1"),
)
SCOUTED = {
    "outcome": "headroom",
    "verdict": "The source is better on this text by 0.4149 bits per byte than the target, after both have learnt the "
    "same texts: there is something to carry over.",
    "sentences": ["This is an early estimate, after at most 40 steps: a whole training goes further."],
    "pending": [],
    "tokenizers": {"shared_vocabulary": 0.906, "positions_with_teacher": 0.878, "refused": "", "unread": {}},
    "models": {
        "target": {"before": 2.1269, "after": 2.1002},
        "source": {"before": 1.6853, "after": 1.6889},
    },
    "headroom": {
        "untouched": {"difference": -0.4416, "low": -0.4827, "high": -0.3995},
        "against_tuned_target": {"difference": -0.4149, "low": -0.4532, "high": -0.378},
        "both_tuned": {"difference": -0.4149, "low": -0.4532, "high": -0.378},
    },
    "texts": {"measured": 50, "wanted": 50, "tuned": 320},
    "device": "cpu",
    "estimate": {"seconds": 91.2, "bound": False, "scouted": True},
    "arms": [
        {"name": "merge", "title": "aligning, fusing, measuring", "seconds": 20.3, "seeds": 1},
        {"name": "sft", "title": "fine-tuned (SFT)", "seconds": 70.9, "seeds": 3},
    ],
}


class FakeProbe(Probe):
    """Answers like the helper process, at once and without one. `fails` maps a call to the error it meets."""

    def __init__(self) -> None:
        super().__init__(argv=["never", "started"])
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fails: dict[str, TmergeError] = {}
        self.waits: asyncio.Event | None = None  # answers only once it is set
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
            "scout": SCOUTED,
            "extras": {},
            "generate": {"text": " and go on together", "tokens": 4, "seconds": 0.2},
        }

    def start(self) -> None:
        pass

    def another(self) -> FakeProbe:
        return self

    async def ask(self, call: str, told: Callable[[Line], None] | None = None, **args: Any) -> Any:
        self.asked.append((call, args))
        await asyncio.sleep(0)
        if told is not None:
            for number, event in enumerate(PROGRESS):
                told(Line(number, 1_700_000_000.0 + number, event))
        if self.waits is not None:
            await self.waits.wait()
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
