"""`tmerge` and `python -m tmerge_tui`. Imports torch only when a job starts."""

from __future__ import annotations

import sys

from tmerge_tui import stopping

# Commands that the terminal part of a one-file executable leaves to its engine. The others need no torch, or start it.
ENGINE = ("demo", "plan", "scout", "check", "report", "eval", "push", "generate", "resume", "_worker", "_probe")


def main() -> int:
    stopping.heed()  # first of all: the imports of a command take seconds
    if getattr(sys, "frozen", False):
        import multiprocessing

        multiprocessing.freeze_support()
        from tmerge_tui import bundle

        if bundle.is_split() and _needs_engine(sys.argv[1:]):
            from tmerge_tui.commands.engine import hand_over

            return hand_over(sys.argv[1:])
    if sys.argv[1:2] == ["_worker"] and len(sys.argv) == 3:  # hidden: the process that does the work
        stopping.block()  # it awaits them itself, to write the last event
        from tmerge_tui.worker.main import main as work

        return work(sys.argv[2])
    if sys.argv[1:] == ["_probe"]:  # hidden: answers the wizard's questions that need torch
        from tmerge_tui.worker.helper import main as answer

        answer()
    from tmerge_tui.cli import main as command

    return command()


def _needs_engine(arguments: list[str]) -> bool:
    return arguments[:1] != [] and arguments[0] in ENGINE and not {"-h", "--help"} & set(arguments)


if __name__ == "__main__":
    sys.exit(main())
