"""The trainings of a recipe over several processes, under a launcher:

    accelerate launch -m tmerge_tui.commands.train recipe.yaml

Everything before training is done by the first process and read by the others; then all of them train together. What
is left are finished pieces: the recipe, run as usual, folds, measures and reports them. The first process, which alone
writes, holds the run's lock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from tmerge_tui.errors import TmergeError, UsageError
from tmerge_tui.events import Event, TrainingStep, Warned
from tmerge_tui.recipe import load_recipe
from tmerge_tui.visible import visible
from tmerge_tui.worker import trust


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if len(given) != 1:
            raise UsageError(f"{len(given)} arguments", "one recipe", "end the command with recipe.yaml")
        recipe = load_recipe(given[0])
        if recipe.adaptation is None:
            raise UsageError(f"{given[0]} has no section adaptation", "something to train", "run it without a launcher")
        trust.refuse(recipe)
        from accelerate import PartialState

        from tmerge_tui.engine import pipeline
        from tmerge_tui.run_folder import RunDir
        from tmerge_tui.worker import lock

        state = PartialState(cpu=recipe.device == "cpu")
        say = _say if state.is_main_process else _hush
        run = RunDir(recipe.output)
        try:
            with state.main_process_first():
                if state.is_main_process:
                    lock.acquire(RunDir.create(recipe.output))
                pipeline.run(recipe, run, say, until="adapt")
            pipeline.run(recipe, run, say, until="trained")
        finally:
            lock.release(run)
    except TmergeError as error:
        print(visible(str(error)), file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _say(event: Event) -> None:
    """A line of JSON for every report of a training, and every warning."""
    if isinstance(event, (TrainingStep, Warned)):
        shown = {"time": round(time.time(), 1), "event": type(event).__name__, **vars(event)}
        print(json.dumps(shown), file=sys.stderr, flush=True)


def _hush(event: Event) -> None:
    """The other processes say nothing."""


if __name__ == "__main__":
    sys.exit(main())
