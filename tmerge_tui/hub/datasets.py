"""Rows of a data set on the Hub as a stream: what is read is what is asked for, whatever the size of the set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tmerge_tui.errors import DataError, TmergeError
from tmerge_tui.hub.errors import SPELLING, client_errors, explain, explained, page, scrub
from tmerge_tui.hub.patience import patiently

BUFFER = 2000  # rows that wait to be drawn from: shards are shuffled whole, rows within this window
SHARDS = 4  # that fill the window side by side
ANSWER = 15.0  # seconds the Hub may take to name a commit


@dataclass(frozen=True)
class Stream:
    """One split of one configuration at one commit, in an order that the seed alone decides."""

    name: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]  # columns that hold a string
    rows: Iterator[dict[str, Any]]  # reading may raise DataError


def commit_of(repo: str, revision: str | None) -> str:
    """The commit a data set's revision is now. Raises DataError: no such data set or revision, no access, no answer."""
    from huggingface_hub import HfApi

    with explained(repo if revision is None else f"{repo}@{revision}", DataError, "data set"):
        api = HfApi()
        info = patiently(lambda: api.dataset_info(repo, revision=revision, timeout=ANSWER))
        if info.gated:
            patiently(lambda: api.auth_check(repo, repo_type="dataset"))
        if not isinstance(info.sha, str):
            raise ValueError("it names no commit")
        return info.sha


def open_stream(repo: str, config: str | None, split: str, commit: str, seed: int) -> Stream:
    """Opens a stream; kilobytes are read until rows are.

    Raises DataError: no such configuration or split, no file of a kind that can be read, no access, no connection.
    """
    import datasets

    datasets.utils.logging.set_verbosity_error()  # nor its bars: stderr may be a screen
    datasets.disable_progress_bars()
    with _explained(repo, config, split):
        builder = datasets.load_dataset_builder(repo, config, revision=commit)
        if hasattr(builder.config, "fragment_scan_options"):  # parquet: else the reader fetches whole files ahead
            from pyarrow.dataset import ParquetFragmentScanOptions

            builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
        made = builder.as_streaming_dataset(split=split)
        features = made.features or made._resolve_features().features or {}
        texts = tuple(
            name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
        )
        rows = iter(made.shuffle(seed=seed, buffer_size=BUFFER, max_buffer_input_shards=SHARDS))
    return Stream(repo, tuple(features), texts, _read(rows, repo, config, split))


def _read(rows: Iterator[dict[str, Any]], repo: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    with _explained(repo, config, split):
        yield from rows


class _explained:
    """Turns what the data set library raises into DataError."""

    def __init__(self, repo: str, config: str | None, split: str) -> None:
        self.repo, self.config, self.split = repo, config, split

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, TmergeError):
            return
        raise self._words(error) from None

    def _words(self, error: Exception) -> TmergeError:
        cause: BaseException | None = error
        while cause is not None:  # the client's own error says more than what it is wrapped in
            if isinstance(cause, client_errors()) and type(cause).__module__.startswith(("huggingface_hub", "httpx")):
                return explain(cause, self.repo, DataError, "data set")
            cause = cause.__cause__ or cause.__context__
        text = str(error)
        listed = re.search(r"\[(.*?)\]", text, re.DOTALL)
        there = ", ".join(re.findall(r"'([^']+)'", listed[1])) if listed else ""
        if "Config name is missing" in text:
            return DataError(
                f"{self.repo} has several configurations", f"one of {there}", "set calibration.config_name"
            )
        if "BuilderConfig" in text and "not found" in text:
            return DataError(
                f"{self.repo} has no configuration {self.config}", f"one of {there}", "correct calibration.config_name"
            )
        if "Bad split" in text or "Unknown split" in text:
            return DataError(f"{self.repo} has no split {self.split}", f"one of {there}", "correct calibration.split")
        if "scripts are no longer supported" in text:
            return DataError(
                f"{self.repo} is made by a Python script, which is not run",
                "a data set of plain files (jsonl, csv, parquet)",
                "choose another, or export it to a file and give that as calibration.path",
            )
        first = scrub((text.splitlines() or [type(error).__name__])[0])
        return DataError(
            f"{self.repo} cannot be read: {first}",
            "a data set of jsonl, csv, text or parquet files",
            f"{SPELLING}, and look at {page(self.repo, 'data set')}",
        )
