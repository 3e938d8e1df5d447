"""A whole run on tiny models in a forked child: disturbed, gone on with, and compared with one that nothing disturbed.

Models come from a local Hub, so that downloads take part. Children are forked: the libraries are imported once.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.engine.pair import make_pair, recipe_of
from tests.hub.server import Hub
from tmerge_tui.recipe import dump_recipe
from tmerge_tui.run_folder import RunDir

VOLATILE = ("timings", "memory", "created")  # of report.json
ADAPT = {
    "samples": 20, "block_length": 24, "packing": "pad", "batch_size": 4, "accumulation": 1, "learning_rate": 1e-3,
    "compare": ["distill"], "seeds": [0], "checkpoints": 2, "max_steps": 4,
}  # fmt: skip
JOURNAL_LOST = 3  # exit code of a child whose event file could not be written
Hook = Callable[[Path], None]  # called in the child with the run folder, before the run


@dataclass
class Tally:
    """What one kind of disturbance came to."""

    name: str
    done: int = 0  # disturbances
    equal: int = 0  # results that were equal to the undisturbed one afterwards
    refused: int = 0  # clear errors on the way
    note: str = ""
    where: dict[str, int] = field(default_factory=dict)  # stage -> disturbances
    faults: list[str] = field(default_factory=list)

    def at(self, stage: str) -> None:
        self.done += 1
        self.where[stage] = self.where.get(stage, 0) + 1


class Bench:
    """`with Bench(folder) as bench:` makes the pair, serves it, and has run it once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.seconds = 0.0
        self.straight = folder / "straight" / "run"

    def __enter__(self) -> Bench:
        self.pair = make_pair(self.folder)
        rows = [{"context": f"rivers {i}", "choices": [" meet", " part"], "label": i % 2} for i in range(4)]
        questions = self.folder / "questions.jsonl"
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._serve()
        begun = time.monotonic()
        code = self.wait(self.start(self.straight))
        self.seconds = time.monotonic() - begun
        if code:
            self.__exit__()
            raise RuntimeError(f"the undisturbed run ended with {code}: {self.ending(self.straight)}")
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.server, 9)
        os.waitpid(self.server, 0)

    def _serve(self) -> None:
        """The Hub, in a process of its own: the children are forked from one without threads."""
        back, forth = os.pipe()
        parent = os.getpid()
        self.server = os.fork()
        if self.server == 0:
            with Hub() as hub:
                for role in ("source", "target"):
                    hub.add(f"org/{role}", Path(self.pair[role]))
                os.write(forth, hub.url.encode())
                os.close(forth)
                while os.getppid() == parent:
                    time.sleep(0.5)
                os._exit(0)
        os.close(forth)
        self.url = os.read(back, 200).decode()
        os.close(back)

    def recipe(self, output: Path) -> str:
        mapping = {
            **self.pair, "source": "org/source", "target": "org/target", "output": str(output),
            "transport": {"projections": ["q", "o", "down"]}, "adaptation": ADAPT,
            "evaluation": {**self.pair["evaluation"], "choices": [str(self.folder / "questions.jsonl")]},
        }  # fmt: skip
        return dump_recipe(recipe_of(mapping))

    def fresh(self) -> Path:
        """A run folder that is not there yet, with a cache of its own beside it."""
        self.count += 1
        return self.folder / f"run-{self.count}" / "run"

    def start(self, output: Path, hook: Hook = lambda path: None) -> int:
        """Forks a worker for `output`; its pid."""
        output.parent.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            sys.stdout.flush()
            log = os.open(output.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = self._run(output, hook)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def _run(self, output: Path, hook: Hook) -> int:
        from huggingface_hub import constants

        from tmerge_tui.errors import StorageError, TmergeError
        from tmerge_tui.worker import lock, main
        from tmerge_tui.worker.journal import Journal

        torch.set_num_threads(1)
        os.environ["XDG_STATE_HOME"] = str(output.parent / "state")
        home = output.parent / "hf"
        constants.ENDPOINT = self.url
        constants.HUGGINGFACE_CO_URL_TEMPLATE = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HOME, constants.HF_HUB_CACHE = str(home), str(home / "hub")
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
        hook(output)
        try:
            run = RunDir.create(output)
            lock.acquire(run)
            try:
                if not run.recipe.exists():
                    run.recipe.write_text(self.recipe(output), "utf-8")
                return main._run(run, Journal(run.events))
            finally:
                lock.release(run)
        except TmergeError as error:
            print(error, file=sys.stderr)
            return JOURNAL_LOST if isinstance(error, StorageError) else error.exit_code

    def wait(self, child: int) -> int:
        """Exit code, or minus the signal."""
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def ending(self, output: Path) -> dict[str, Any]:
        """The last stage begun, and the failure of the last event, if it was one."""
        stage, last = "start", {}
        try:
            for line in (output / "events.jsonl").read_text("utf-8").splitlines():
                last = json.loads(line)
                stage = last["stage"] if last["type"] == "StageStarted" else stage
        except (OSError, ValueError, KeyError):
            pass
        failed = last if last.get("type") == "RunFailed" else {}
        return {"stage": stage, "kind": failed.get("kind", ""), "message": failed.get("message", "")}

    def differences(self, output: Path) -> list[str]:
        """What is not as in the undisturbed run: files of the model, pieces of tensors, figures of the report."""
        found = []
        for pattern in ("model*/**/*", "state/*.safetensors"):
            names = [{p.relative_to(one) for p in one.glob(pattern) if p.is_file()} for one in (self.straight, output)]
            found += [f"{name} is in one of them" for name in names[0] ^ names[1]]
            both = sorted(names[0] & names[1])
            found += [str(n) for n in both if not filecmp.cmp(self.straight / n, output / n, shallow=False)]
        said = [_figures(one) for one in (self.straight, output)]
        return found + [f"report.json: {key}" for key in said[0] if said[0][key] != said[1].get(key)]

    def finish(self, output: Path, tally: Tally) -> None:
        """Goes on undisturbed to the end, compares, and clears away."""
        code = self.wait(self.start(output))
        wrong = [f"resumed, it ended with {code}: {self.ending(output)}"] if code else self.differences(output)
        if wrong:
            tally.faults.append(f"{output}: {'; '.join(wrong[:5])}")
            return
        tally.equal += 1
        shutil.rmtree(output.parent, ignore_errors=True)


def _figures(run: Path) -> dict[str, Any]:
    text = (run / "report.json").read_text("utf-8").replace(str(run), "RUN").replace(str(run.parent), "HERE")
    said = json.loads(text)
    return {key: value for key, value in said.items() if key not in VOLATILE}
