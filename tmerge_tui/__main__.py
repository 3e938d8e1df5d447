"""`tmerge` and `python -m tmerge_tui`. Imports torch only when a job starts."""

from __future__ import annotations

import sys


def main() -> int:
    if getattr(sys, "frozen", False):
        import multiprocessing

        multiprocessing.freeze_support()
    if sys.argv[1:2] == ["_worker"] and len(sys.argv) == 3:  # hidden: the process that does the work
        from tmerge_tui.worker.main import main as work

        return work(sys.argv[2])
    if sys.argv[1:] == ["_probe"]:  # hidden: answers the wizard's questions that need torch
        from tmerge_tui.worker.probe import main as answer

        return answer()
    from tmerge_tui.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
