"""The run folder: what a run leaves on disk, and how a later run finds it again.

    recipe.yaml    the resolved recipe          state/     finished pieces: <stage>-<key>.safetensors or .json
    events.jsonl   what happened, append-only   figures/   report.html  report.md  report.json
    worker.log     stray output of libraries    model/     the merged checkpoint
    lock           pid and start time of the worker that is writing; .lock guards it while it is taken
    stop           on Windows for a moment: the pid of the worker that is to stop

A piece is named after everything its content depends on, written under a temporary name, synced and renamed: a piece
that is there is whole. Resuming is running again; a piece whose key is unchanged is read and not redone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tmerge_tui.errors import RunFolderError, StorageError
from tmerge_tui.files import renamed, storage, write_atomic

FORMAT = 1
MARK = "tmerge-run.json"


def key(*parts: Any) -> str:
    """16 hex digits that name the content computed from `parts` (anything JSON can hold)."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def open_piece(path: Path) -> Iterator[Any]:
    """A finished piece of tensors as safetensors opens it for torch: mapped into memory, read when asked for a tensor.

    Raises StorageError when it cannot be opened, and when what is read inside the block turns out to be damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: {error}", "a piece that an earlier run finished", "delete that file and run again"
        ) from error


class RunDir:
    """Paths and pieces of one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.state = self.path / "state"
        self.figures = self.path / "figures"
        self.model = self.path / "model"
        self.recipe = self.path / "recipe.yaml"
        self.events = self.path / "events.jsonl"
        self.log = self.path / "worker.log"
        self.lock = self.path / "lock"
        self.stop = self.path / "stop"

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """Makes the folder, or takes up one that an earlier run made. Raises as `usable`; StorageError when it cannot
        be written."""
        run = cls.usable(path)
        mark = run.path / MARK
        with storage(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            if not mark.exists():  # before anything else: a folder with something in it and no mark is not ours
                from tmerge_tui import __version__

                write_atomic(mark, json.dumps({"format": FORMAT, "version": __version__}).encode())
            run.state.mkdir(exist_ok=True)
            run.figures.mkdir(exist_ok=True)
        return run

    @classmethod
    def usable(cls, path: str | Path) -> RunDir:
        """The folder, of which nothing is made yet.

        Raises RunFolderError when the path is a file, holds something that is not a run, or has a newer format.
        """
        run = cls(path)
        if run.path.is_file():
            raise RunFolderError(f"output {run.path} is a file", "a folder that is new or holds an earlier run")
        mark = run.path / MARK
        if mark.exists():
            made = json.loads(mark.read_text(encoding="utf-8"))
            if made.get("format", 0) > FORMAT:
                raise RunFolderError(
                    f"{run.path} was made by tmerge {made.get('version', '?')} in format {made['format']}",
                    f"format {FORMAT} or older",
                    "upgrade tmerge, or choose another output",
                )
        elif run.path.exists() and any(run.path.iterdir()):
            raise RunFolderError(
                f"output {run.path} exists and is not a run of tmerge",
                "a folder that is new, empty, or holds an earlier run",
                "choose another output; nothing in the folder was touched",
            )
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run. Raises RunFolderError when `path` is none."""
        run = cls(path)
        if not (run.path / MARK).exists():
            raise RunFolderError(f"{run.path} is not a run of tmerge", "a folder that tmerge --batch has made")
        return run

    def piece(self, stage: str, piece_key: str, suffix: str = ".safetensors") -> Path:
        return self.state / f"{stage}-{piece_key}{suffix}"

    def save(self, path: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
        """Writes a piece of torch tensors; `meta` is any JSON. Raises StorageError."""
        from safetensors.torch import save_file

        with storage(path), renamed(path) as temporary:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, temporary, metadata={"meta": json.dumps(meta or {})})

    def load(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """(tensors, meta) of a piece. Raises StorageError when it cannot be read."""
        with open_piece(path) as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118

    def save_json(self, path: Path, value: Any) -> None:
        with storage(path):
            write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
