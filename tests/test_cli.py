"""The command line as a user meets it: real processes, fake pipelines, exit codes, stdout apart from stderr."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.waiting import until
from tmerge_tui import __version__, shipped
from tmerge_tui.errors import ModelError
from tmerge_tui.events import RunFinished, decode
from tmerge_tui.recipe import load_recipe, parse_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.follow import EventFile, cancel, state_of

TMERGE = [sys.executable, "-m", "tmerge_tui"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    data = {"source": "a/b", "target": "c/d", "calibration": {"path": "x.txt"}, "output": str(tmp_path / "run")}
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    folder = RunDir(tmp_path / "run")
    yield folder
    cancel(folder)


def environment(fake: str = "whole", **more: str) -> dict[str, str]:
    return {**os.environ, "TMERGE_PIPELINE": f"tests.worker.fakes:{fake}", "TERM": "xterm", "COLUMNS": "100", **more}


def tmerge(*arguments: str | Path, fake: str = "whole", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TMERGE, *map(str, arguments)], capture_output=True, text=True, env=environment(fake, **more)
    )


@contextmanager
def started(*arguments: str | Path, fake: str = "sleeps") -> Iterator[subprocess.Popen[str]]:
    """The command while it goes on; what is left of it at the end of the block is killed."""
    with subprocess.Popen(
        [*TMERGE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(fake),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(run: RunDir, word: str) -> None:
    until(lambda: run.events.exists() and word in run.events.read_text())


def test_version_and_help() -> None:
    assert tmerge("--version").stdout == f"tmerge {__version__}\n"
    shown = tmerge("--help")
    assert shown.returncode == 0
    commands = ("demo", "plan", "check", "watch", "cancel", "report", "eval", "models", "doctor", "--batch", "--set")
    for command in commands:
        assert command in shown.stdout
    assert "_worker" not in shown.stdout


def test_without_a_terminal_the_way_to_batch_is_shown() -> None:
    done = tmerge()
    assert done.returncode == 2 and done.stdout == "" and "tmerge --batch RECIPE" in done.stderr


def test_a_dumb_terminal_gets_no_wizard() -> None:
    main, side = pty.openpty()
    done = subprocess.run(TMERGE, stdin=side, stderr=side, stdout=subprocess.PIPE, env=environment(TERM="dumb"))
    os.close(side)
    assert done.returncode == 2 and b"--batch" in os.read(main, 4096)
    os.close(main)


def test_batch_prints_the_result_on_stdout_and_the_rest_on_stderr(recipe: Path, run: RunDir) -> None:
    done = tmerge("--batch", recipe)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "seed 0, alpha 0.1", f"model   {run.model}", f"report  {run.path}/report.html",
    ]  # fmt: skip
    assert "Solving transport: done in" in done.stderr and "warning: data: two samples were empty" in done.stderr
    assert "\x1b" not in done.stderr
    assert state_of(run) == "finished"
    # the same command again, at once
    assert tmerge("--batch", recipe, "--quiet").stderr == ""


def test_the_command_line_changes_the_recipe(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    done = tmerge(
        "--batch", recipe, "--output", other, "--device", "cpu", "--offline",
        "--set", "fusion.alpha=5e-2", "--set", "seed=7", "--set", "source.revision=main",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed 7, alpha 0.05\n")
    written = yaml.safe_load((other / "recipe.yaml").read_text())
    assert written["device"] == "cpu" and written["source"]["revision"] == "main"
    assert not (tmp_path / "run").exists()


def test_the_executor_is_an_option(recipe: Path, tmp_path: Path) -> None:
    def asked(*arguments: str) -> dict[str, Any]:
        done = tmerge("--batch", recipe, *arguments)
        assert done.returncode == 0, done.stderr
        chosen = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["transport"]
        return {name: chosen[name] for name in ("executor", "ray_address")}

    assert asked() == {"executor": "local", "ray_address": ""}
    there = {"executor": "ray", "ray_address": "head:6379"}
    assert asked("--executor", "ray", "--ray-address", "head:6379") == there
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "transport": there}))
    assert asked() == there
    assert asked("--executor", "local") == {"executor": "local", "ray_address": ""}  # the recipe's address is for ray
    done = tmerge("--batch", recipe, "--executor", "local", "--ray-address", "auto")
    assert done.returncode == 2 and "found auto with executor: local" in done.stderr


def test_json_is_the_event_file(recipe: Path, run: RunDir) -> None:
    done = tmerge("--batch", recipe, "--json", "--quiet")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == run.events.read_text()
    assert isinstance(decode(done.stdout.splitlines()[-1]).event, RunFinished)  # type: ignore[union-attr]
    again = tmerge("--batch", recipe, "--json")
    assert done.stdout + again.stdout == run.events.read_text()  # a second run prints its own events only


@pytest.mark.parametrize(
    ("fake", "code", "words"),
    [
        ("numerics", 1, ["NaN in layer 3", "expected: finite activations", "next: use dtype: float32"]),
        ("refused", 2, ["2 problems", "source: no such folder", "fusion.k: 128", "next: correct both"]),
        ("breaks", 1, ["unexpected KeyError: 'layers'", "bug", "worker.log"]),
        ("segfaults", 1, ["SIGSEGV", "Solving transport", "run the same command"]),
        ("starves", 1, ["out of memory", "batch_size"]),
    ],
)
def test_failures_are_told_in_full_and_without_traceback(recipe: Path, fake: str, code: int, words: list[str]) -> None:
    done = tmerge("--batch", recipe, fake=fake)
    assert done.returncode == code and done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_all_recipe_problems_come_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:
    done = tmerge("--batch", recipe, "--set", "fusion.alpha=1.5", "--set", "transport.epsilom=1", "--device", "gpu")
    assert done.returncode == 2 and "3 problems" in done.stderr
    assert "did you mean epsilon?" in done.stderr and not (tmp_path / "run").exists()


def test_usage_errors(recipe: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--nonsense"], ["frobnicate"], ["--batch"], ["--json"], ["--batch", recipe, "demo"],
        ["--batch", recipe, "--set", "alpha"], ["--batch", tmp_path / "none.yaml"], ["watch"],
        ["check", tmp_path],
    ):  # fmt: skip
        done = tmerge(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_an_output_that_is_not_a_run_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    done = tmerge("--batch", recipe, "--output", tmp_path / "mine")
    assert done.returncode == 1 and "is not a run of tmerge" in done.stderr
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fake", ["sleeps", "deaf", "holds_interpreter"])
def test_ctrl_c_stops_and_says_how_to_go_on(recipe: Path, run: RunDir, fake: str, number: signal.Signals) -> None:
    with started("--batch", recipe, fake=fake) as batch:
        wait_for(run, "StageStarted")
        batch.send_signal(number)
        out, err = batch.communicate()
    assert batch.returncode == 128 + number and out == ""
    assert "the same command continues" in err and "Traceback" not in err
    assert state_of(run) == "interrupted"


def test_a_reader_that_leaves_does_not_stop_the_run(recipe: Path, run: RunDir) -> None:
    command = " ".join([*TMERGE, "--batch", str(recipe), "--json", "--quiet"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1
    assert state_of(run) == "finished"


def test_a_closed_or_narrow_stdout_is_no_error(recipe: Path) -> None:
    command = " ".join([*TMERGE, "--batch", str(recipe), "--quiet"])
    closed = subprocess.run(["bash", "-c", f"{command} >&-"], capture_output=True, text=True, env=environment())
    assert (closed.returncode, closed.stderr) == (0, "")
    ascii_only = tmerge("--batch", recipe, "--quiet", "--output", recipe.parent / "ẹ̀kọ́", PYTHONIOENCODING="ascii")
    assert (ascii_only.returncode, ascii_only.stderr) == (0, "") and "??k??" in ascii_only.stdout


def test_help_into_a_closed_pipe() -> None:
    command = " ".join([*TMERGE, "--help"])
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True)
    assert done.stderr == ""


def test_bars_on_a_terminal(recipe: Path) -> None:
    main, side = pty.openpty()
    with subprocess.Popen(
        [*TMERGE, "--batch", str(recipe)],
        stdin=side,
        stderr=side,
        stdout=subprocess.PIPE,
        env=environment(NO_COLOR="1"),
    ) as batch:
        os.close(side)
        seen = b""
        with suppress(OSError):  # Linux: the other side is closed
            while part := os.read(main, 65536):
                seen += part
        os.close(main)
        out, _ = batch.communicate()
    text = seen.decode()
    assert batch.returncode == 0 and out.startswith(b"seed 0")
    assert "whole run" in text and "Solving transport" in text and "2/2 pairs" in text
    assert "\x1b[3" not in text  # no colours


def test_watch_and_cancel(recipe: Path, run: RunDir) -> None:
    assert tmerge("watch", run.path).returncode == 1  # no such run
    with started("--batch", recipe) as batch:
        wait_for(run, "StageStarted")
        busy = tmerge("--batch", recipe)
        assert busy.returncode == 1 and "in use" in busy.stderr and "tmerge watch" in busy.stderr
        with started("watch", run.path) as watching:
            assert watching.stderr is not None
            while "Solving transport" not in watching.stderr.readline():
                pass
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate()
        assert watching.returncode == 130 and "the run goes on" in err and state_of(run) == "running"
        stopped = tmerge("cancel", run.path)
        assert stopped.returncode == 0 and stopped.stdout.startswith("stopped")
        _, err = batch.communicate()
    assert batch.returncode == 130 and "continues" in err
    again = tmerge("cancel", run.path)
    assert again.returncode == 1 and "interrupted" in again.stderr
    assert tmerge("watch", run.path).returncode == 130


def test_watch_shows_the_last_start_of_a_finished_run(recipe: Path, run: RunDir) -> None:
    assert tmerge("--batch", recipe, "--quiet", fake="numerics").returncode == 1
    assert tmerge("--batch", recipe, "--quiet").returncode == 0
    seen = tmerge("watch", run.path, "--json")
    assert seen.returncode == 0
    names = [json.loads(line)["type"] for line in seen.stdout.splitlines()]
    assert names[0] == "RunStarted" and "RunFailed" not in names and names[-1] == "RunFinished"
    assert len(EventFile(run.events).read_new()) > len(names)


def test_what_fails_on_a_finished_run_leaves_it_as_it_was(recipe: Path, run: RunDir) -> None:
    assert tmerge("--batch", recipe).returncode == 0
    run.save_json(run.path / "report.json", {"verdict": {"headline": "it helped"}})
    before = run.recipe.read_bytes()
    done = tmerge("--batch", recipe, "--device", "cuda", fake="refused")
    assert done.returncode == 2 and f"the result in {run.path} is as it was" in done.stderr
    assert run.recipe.read_bytes() == before and state_of(run) == "finished"
    shown = tmerge("watch", run.path)
    assert shown.returncode == 0 and shown.stdout.startswith("seed 0, alpha 0.1\nmodel ")
    assert "note: a later attempt failed" in shown.stderr


def test_a_run_goes_on_with_resume_and_every_start_is_on_the_list(recipe: Path, run: RunDir, tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    assert tmerge("--batch", recipe, fake="numerics", **state).returncode == 1
    done = tmerge("resume", run.path, **state)
    assert done.returncode == 0 and done.stdout.startswith("seed 0, alpha 0.1\n")
    listed = tmerge("runs", **state)
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == 1 and str(run.path) in listed.stdout


def test_report_needs_a_report(recipe: Path, run: RunDir) -> None:
    tmerge("--batch", recipe, "--quiet")
    missing = tmerge("report", run.path)
    assert missing.returncode == 1 and "no report.json" in missing.stderr
    (run.path / "report.json").write_text("{")
    broken = tmerge("report", run.path)
    assert broken.returncode == 1 and "not JSON" in broken.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import make_model, make_text

    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "source", "llama", hidden=48, intermediate=64)
    make_model(folder / "target", "qwen2", layers=1)
    make_text(folder / "text.txt")
    (folder / "recipe.yaml").write_text(
        "source: source\ntarget: target\ncalibration: {path: text.txt, samples: 20, holdout: 10}\n"
        "fusion: {k: 8}\noutput: run\n"
    )
    return folder


def inside(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """The command in this process, which has torch already: (exit code, stdout, stderr)."""
    from tmerge_tui import cli

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["tmerge", *arguments])
    code = cli.main()
    return code, *capsys.readouterr()


def test_plan_prints_a_recipe_with_its_needs_and_runs_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = inside(models, monkeypatch, capsys, "plan", "recipe.yaml", "--set", "transport.epsilon=2e-1")
    assert code == 0
    printed, given = parse_recipe(out), load_recipe("recipe.yaml")
    assert printed.transport.epsilon == 0.2
    assert printed.source == given.source and printed.source.model == str(models / "source")
    assert "# target       Qwen2ForCausalLM, 1 layers, hidden 32" in out and "# memory" in out and "# disk" in out
    assert not (models / "run").exists()


def test_check_lists_everything_or_shows_a_model(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = inside(models, monkeypatch, capsys, "check", "recipe.yaml")
    assert (code, out) == (0, "") and err.endswith("no problems found\n") and "note: calibration.max_length" in err
    (models / "bad.yaml").write_text(
        "source: ./nowhere\ntarget: target\ncalibration: {path: none.txt}\nfusion: {k: 8}\noutput: run\n"
    )
    code, out, err = inside(models, monkeypatch, capsys, "check", "bad.yaml")
    assert (code, out) == (2, "") and "nowhere" in err and "none.txt" in err and "Traceback" not in err
    code, out, _ = inside(models, monkeypatch, capsys, "check", "target")
    assert code == 0 and "16 x 32  model.layers.0.self_attn.k_proj.weight + model.layers.0.self_attn.k_proj.bias" in out


def test_check_shows_where_a_projection_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import make_model

    qkv = {"gpt_neox": "gpt_neox.layers.1.attention.query_key_value", "gpt2": "transformer.h.1.attn.c_attn"}
    for family, kind, shape, name, place in (
        ("gpt_neox", "v", "32 x 32", qkv["gpt_neox"], "  rows 16-23, 40-47, ... (4 runs)"),
        ("gpt2", "k", "32 x 32", qkv["gpt2"], "  columns 32-63  stored in x out"),
        ("phi3", "up", "48 x 32", "model.layers.1.mlp.gate_up_proj", "  rows 48-95"),
    ):
        bias = f" + {name}.bias" if family in qkv else ""
        make_model(tmp_path / family, family)
        code, out, _ = inside(tmp_path, monkeypatch, capsys, "check", family)
        assert (
            code == 0
            and f"{shape}  {name}.weight{bias}{place}\n".replace("s.1.", "s.0.").replace("h.1.", "h.0.") in out
        )
        assert f"  {kind:<5} layers 0-1" in out


def test_check_of_a_hub_id_asks_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("tmerge_tui.hub.locate.find", _not_found)
    code, _, err = inside(tmp_path, monkeypatch, capsys, "check", "org/name@main")
    assert code == 1 and "asked for org/name" in err
    code, _, err = inside(tmp_path, monkeypatch, capsys, "check", "runs/recipe.yaml")
    assert code == 2 and "asked for" not in err


def _not_found(choice: Any) -> Any:
    raise ModelError(f"asked for {choice.model}", "nothing")


def test_models_lists_the_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = inside(tmp_path, monkeypatch, capsys, "models")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert (
        "q k v o gate up down" in lines["llama"]
        and "in x out" in lines["gpt2"]
        and "attention only" in lines["mixtral"]
    )
    assert "trust_remote_code" in out and "GGUF" in out


def test_the_demo_takes_its_files_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMERGE_PIPELINE", "tests.worker.fakes:whole")
    code, out, _ = inside(tmp_path, monkeypatch, capsys, "demo", "--quiet")
    assert code == 0 and out.startswith("seed 0")
    recipe = load_recipe(tmp_path / "tmerge-demo" / "recipe.yaml")
    assets = shipped.folder() / "demo"
    assert Path(recipe.source.model).parent == Path(recipe.target.model).parent == assets
    assert recipe.calibration.path is not None and Path(recipe.calibration.path).parent == assets
    assert inside(tmp_path, monkeypatch, capsys, "demo", "--quiet", "--output", "other")[0] == 0
    assert (tmp_path / "other" / "recipe.yaml").exists()


def test_report_is_written_again(
    run: RunDir, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.engine.report.sample_results import make_results

    results = make_results()
    RunDir.create(run.path)
    (run.path / "report.json").write_text(json.dumps(results))
    code, out, _ = inside(run.path, monkeypatch, capsys, "report", str(run.path))
    assert code == 0 and out.splitlines()[0] == results["verdict"]["headline"]
    assert (run.path / "report.html").exists()


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tmerge_tui import cli
    from tmerge_tui.commands import batch

    def broken(*_: Any) -> int:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(batch, "run_demo", broken)
    monkeypatch.setattr(sys, "argv", ["tmerge", "demo"])
    assert cli.main() == 1
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: by zero" in err and "TMERGE_DEBUG=1" in err and "Traceback" not in err
