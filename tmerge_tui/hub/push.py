"""A finished run to the Hub: the merged model with its card and recipe, and the report beside it. Resumes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmerge_tui.errors import ModelError, RunFolderError, UsageError
from tmerge_tui.hub.errors import SPELLING, client_errors, explain, page
from tmerge_tui.hub.patience import patiently

REPORT = ("report.html", "report.md", "report.json")


@dataclass(frozen=True)
class Parcel:
    """What will be uploaded: files by their path in the repository."""

    repo: str
    files: dict[str, Path]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def pack(run: Path, repo: str, model: str = "model", report: Path | None = None) -> Parcel:
    """The parcel of a finished run; `model` names its model folder when it made one for each alpha.

    `report` is a folder with the report as it may be published; the run's own, local paths and all, when None.

    Raises RunFolderError when the run has no such model or no report, UsageError for a repository that is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(f"--repo {repo}", "org/name, or name for your own account", SPELLING) from None
    folder = run / model
    if not (folder / "config.json").is_file():
        made = sorted(path.parent.name for path in run.glob("model*/config.json"))
        hint = f"choose with --model: {', '.join(made)}" if made else "finish the run first: run its recipe again"
        raise RunFolderError(f"{run} has no model in {model}/", "a finished run", hint)
    report = report or run
    missing = [name for name in REPORT if not (report / name).is_file()]
    if missing:
        raise RunFolderError(
            f"{run} has no {', '.join(missing)}",
            "a finished run",
            f"write it with `tmerge report {shlex.quote(str(run))}`",
        )
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    figures = {
        path.relative_to(report).as_posix(): path for path in sorted((report / "figures").rglob("*")) if path.is_file()
    }
    return Parcel(repo, {**files, **{name: report / name for name in REPORT}, **figures})


def account() -> str:
    """Who is logged in here. Raises ModelError when no one is, or the token is not accepted."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ModelError(
            "no one is logged in to the Hub here",
            "a token that may write",
            "run `hf auth login` (or set HF_TOKEN); tokens are made at hf.co/settings/tokens",
        )
    try:
        return str(patiently(lambda: HfApi().whoami())["name"])
    except client_errors() as error:
        raise explain(error, "login", ModelError, "model") from None


def push(parcel: Parcel, public: bool, say: Callable[[str], None] = lambda text: None) -> str:
    """Uploads a parcel and returns the page of the repository, which is made when it is not there, private by default.

    Files that are there already are not sent again, so an interrupted upload goes on. An existing repository keeps its
    visibility. Raises ModelError: no login, no right to write, no connection.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        made: Any = patiently(lambda: api.create_repo(parcel.repo, private=not public, exist_ok=True))
        repo = made.repo_id
        say(f"uploading {len(parcel.files)} files to {page(repo)}")
        additions = [CommitOperationAdd(name, str(path)) for name, path in parcel.files.items()]
        api.create_commit(repo, additions, commit_message="Upload of a merge by tmerge")
    except client_errors() as error:
        raise explain(error, parcel.repo, ModelError, "model") from None
    except (RuntimeError, ValueError) as error:  # what the client wraps a failed upload in
        if isinstance(error.__cause__, client_errors()):
            raise explain(error.__cause__, parcel.repo, ModelError, "model") from None
        raise
    return page(repo)
