"""Every error a user can cause. Imports nothing of ours.

    TmergeError            exit  what it is about
    ├── UsageError           2   the command line
    ├── RecipeError          2   the recipe: all its problems at once
    ├── CheckError           2   what the recipe names cannot be used: all problems at once, before any work
    ├── ExtraMissing         2   an optional package that is not installed
    ├── ModelError           1   a checkpoint that cannot be read or merged
    ├── DataError            1   calibration or hold-out text
    ├── NumericsError        1   NaN, Inf, or a result that fails its check
    ├── StorageError         1   disk full, unwritable, a file that vanished
    ├── MemoryShortage       1   no batch is small enough
    ├── ClusterError         1   a Ray cluster that cannot be reached, or that lost its tasks
    ├── RunFolderError       1   a folder that is not ours, or is in use
    ├── WorkerError          1   the worker process died
    └── Interrupted        130   stopped by the user

A message says what was found, what was expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class TmergeError(Exception):
    """Base of all user-facing errors.

    `found` is the fact, `expected` what was needed, `hint` the next thing to do; the last two may be empty.
    """

    exit_code = 1

    longest = 3000  # characters of each part: a name or a list of names from a file can have millions

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        found, expected, hint = (_clipped(part, self.longest) for part in (found, expected, hint))
        super().__init__(found, expected, hint)
        self.found = found
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.found]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.hint:
            parts.append(f"next: {self.hint}")
        return "\n  ".join(parts)


def _clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text):,} characters)"


class UsageError(TmergeError):
    exit_code = 2


class ProblemsError(TmergeError):
    """Several problems found in one pass; each is a full sentence or a short block of lines."""

    exit_code = 2
    title = "problems"
    longest = 15_000
    most = 100  # problems that are shown

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        told = [_clipped(p, TmergeError.longest) for p in self.problems[: self.most]]
        lines = "\n".join("  - " + p.replace("\n", "\n  ") for p in told)
        lines += f"\n  and {count - self.most:,} more" if count > self.most else ""
        super().__init__(f"{self.title}: {count} problem{'s' if count != 1 else ''}\n{lines}", hint=hint)


class RecipeError(ProblemsError):
    title = "recipe"


class CheckError(ProblemsError):
    title = "check"


class ExtraMissing(TmergeError):
    exit_code = 2


class ModelError(TmergeError):
    pass


class DataError(TmergeError):
    pass


class NumericsError(TmergeError):
    pass


class StorageError(TmergeError):
    pass


class MemoryShortage(TmergeError):
    pass


class ClusterError(TmergeError):
    pass


class RunFolderError(TmergeError):
    pass


class WorkerError(TmergeError):
    pass


class Interrupted(TmergeError):
    exit_code = 130
