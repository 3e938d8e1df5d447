"""What the run screen is made of, in rooms of any size. Reference: written out by hand."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.app import App, ComposeResult
from textual.widget import Widget

from tests.tui.doubles import screen_text
from tmerge_tui.engine import resources
from tmerge_tui.engine.resources import Sampler
from tmerge_tui.events import ResourceSample, decode, encode
from tmerge_tui.tui.widgets import gauges as room
from tmerge_tui.tui.widgets.gauges import Gauges
from tmerge_tui.tui.widgets.logpane import LogPane
from tmerge_tui.tui.widgets.stages import Stages
from tmerge_tui.worker.state import RunState, Stage

GB = 10**9


class One(App[None]):
    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self.widget = widget
        widget.styles.width, widget.styles.height = "1fr", "1fr"

    def compose(self) -> ComposeResult:
        yield self.widget


def state_of(*stages: Stage) -> RunState:
    state = RunState(phase="running", started=0.0)
    state.stages = {stage.name: stage for stage in stages}
    return state


def running(label: str = "Match channels and layers", unit: str = "pairs") -> Stage:
    return Stage("t", label, 1.0, 150, 264, unit, rate=38.0, outcome="running", started=100.0)


async def drawn(size: tuple[int, int], *stages: Stage) -> list[str]:
    widget = Stages()
    async with One(widget).run_test(size=size) as pilot:
        widget.show(state_of(*stages), now=107.0)
        await pilot.pause()
        return screen_text(pilot.app).splitlines()


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            100,
            ["● Match channels and layers  █████████▏░░░░░░  150/264 pairs       38 pairs/s     0:07     0:03 left"],
        ),
        (73, ["● Match channels and layers  ████████▌░░░░░░  150/264 pairs     0:03 left"]),
        (56, ["● Match channels and layers  150/264 pairs     0:03 left"]),
        (55, ["● Match channels and layers", "  █████████████▋░░░░░░░░░░  150/264 pairs     0:03 left"]),
        (36, ["● Match channels and layers", "         150/264 pairs     0:03 left"]),
        (20, ["● Match…s and layers"]),
    ],
)
async def test_a_name_is_cut_last(width: int, lines: list[str]) -> None:
    assert [line.rstrip() for line in await drawn((width, 4), running()) if line.strip()] == lines


async def test_bytes_are_told_as_sizes() -> None:
    stage = Stage("d", "Downloading", 1.0, 250 * 10**6, 2 * GB, "bytes", rate=25e6, outcome="running", started=0.0)
    (line,) = [line for line in await drawn((100, 3), stage) if line.strip()]
    assert "250 MB/2 GB" in line and "25 MB/s" in line and "1:10 left" in line


async def test_more_stages_than_lines_are_folded() -> None:
    done = [Stage(f"d{i}", f"Done {i}", outcome="done", seconds=20.0) for i in range(6)]
    waiting = [Stage(f"w{i}", f"Waiting {i}") for i in range(5)]
    tall = await drawn((60, 13), *done, running(), *waiting)
    assert sum(bool(line.strip()) for line in tall) == 12 and not any("stages done" in line for line in tall)
    lines = await drawn((60, 10), *done, running(), *waiting)
    assert lines[0].split() == ["✓", "3", "stages", "done", "1", "min", "00", "s"], lines
    assert lines[1].startswith("✓ Done 3") and lines[4].startswith("● Match") and lines[9].startswith("○ Waiting 4")
    short = await drawn((60, 5), *done, running(), *waiting)
    assert short[0].startswith("✓ 6 stages done") and short[1].startswith("● Match") and short[4] == "○ 3 more"


async def test_what_ended_says_how_and_how_long() -> None:
    stages = (
        Stage("a", "Read the source", outcome="cached", seconds=0.2),
        Stage("b", "Measure the source", outcome="skipped", seconds=0.0),
        Stage("c", "Solve", outcome="done", seconds=187.0),
    )
    lines = await drawn((50, 4), *stages)
    assert lines[0].split(maxsplit=4) == ["✓", "Read", "the", "source", "from the earlier run     0.2 s"]
    assert lines[1].endswith("skipped") and lines[2].endswith("3 min 07 s")
    assert "earlier" not in (await drawn((30, 4), *stages))[0], "what has no room is left out"


async def test_gauges_go_on_below_where_they_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "cores", lambda: (64, 1.5))
    room.full_load.cache_clear()
    gauges = Gauges()
    async with One(gauges).run_test(size=(60, 8)) as pilot:
        assert "no measurement yet" in screen_text(pilot.app)
        sample = ResourceSample(75.0, 4 * GB, 16 * GB, 98.0, 70 * GB, 140 * GB, 80 * GB)
        gauges.show(sample, 5 * GB, 90 * GB)
        await pilot.pause()
        wide = [line.rstrip() for line in screen_text(pilot.app).splitlines() if line.strip()]
        assert wide == [
            "CPU    ██████░░░░░░ 75 % of 150 %",
            "Memory ███░░░░░░░░░ 4 GB of 16 GB, peak 5 GB",
            "GPU    ███████████▊ 98 % busy",
            "       ██████░░░░░░ 70 GB of 140 GB, peak 90 GB",
            "Disk   80 GB free",
        ]
        await pilot.resize_terminal(40, 8)
        await pilot.pause()
        lines = [line.rstrip() for line in screen_text(pilot.app).splitlines() if line.strip()]
        assert lines[2] == " " * 20 + "peak 5 GB" and len(lines) == 7 and max(map(len, lines)) <= 40
    room.full_load.cache_clear()


async def test_a_gpu_of_unknown_load_is_not_called_idle() -> None:
    gauges = Gauges()
    async with One(gauges).run_test(size=(60, 8)) as pilot:
        gauges.show(ResourceSample(75.0, 4 * GB, 16 * GB, None, 70 * GB, 140 * GB, 80 * GB), 5 * GB, 90 * GB)
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "busy" not in text and "GPU    ██████░░░░░░ 70 GB of 140 GB" in text


async def test_what_the_driver_says_reaches_the_gauge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nvidia-smi over the sampler, the event file and the state to the screen; two of four cards are ours."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho x >> ${0}.asked\nprintf 'GPU-aaa, 30\\nGPU-other, 100\\nGPU-bbb, 90\\nGPU-ccc, [N/A]\\n'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    cards = [SimpleNamespace(uuid="aaa"), SimpleNamespace(uuid="bbb")]
    cuda = SimpleNamespace(
        device_count=lambda: len(cards),
        mem_get_info=lambda i: (10 * GB, 80 * GB),
        get_device_properties=cards.__getitem__,
    )
    monkeypatch.setattr(resources, "_cuda", lambda: cuda)
    sampler = Sampler(lambda event: None, tmp_path)
    state, gauges = RunState(), Gauges()
    for n in range(resources.LOAD_EVERY):
        line = decode(encode(sampler.sample(), n, float(n)))
        assert line is not None
        state.apply(line)
    assert (tmp_path / "nvidia-smi.asked").read_text().count("x") == 1, "rarely"
    assert state.resources is not None
    async with One(gauges).run_test(size=(60, 8)) as pilot:
        gauges.show(state.resources, state.peak_rss, state.peak_gpu)
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "60 % busy" in text and "140 GB of 160 GB" in text
    cards[:] = [SimpleNamespace(uuid="ccc")]
    assert Sampler(lambda event: None, tmp_path).sample().gpu is None, "a part of a card has no load of its own"


async def test_the_log_wraps_under_itself_and_stays_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    pane = LogPane()
    entries = [(60.0 * i, "info", f"line {i}") for i in range(8)]
    entries.append((600.0, "warning", "solver: 3 pairs in /a/folder/with-a-name-longer-than-the-pane did not converge"))
    async with One(pane).run_test(size=(44, 6)) as pilot:
        pane.show(entries)
        await pilot.pause()
        assert [line.rstrip(" ▁▂▃▄▅▆▇█") for line in screen_text(pilot.app).splitlines()][-4:] == [
            "00:07:00   line 7",
            "00:10:00 ! solver: 3 pairs in",
            "           /a/folder/with-a-name-longer-",
            "           than-the-pane did not converge",
        ]
        assert pane.max_scroll_x == 0
        pane.scroll_home(animate=False)
        await pilot.pause()
        pane.show([*entries, (700.0, "info", "later")])
        await pilot.pause()
        assert "line 0" in screen_text(pilot.app), "who reads further up is left there"
        pane.show([])
        await pilot.pause()
        assert not screen_text(pilot.app).strip()
