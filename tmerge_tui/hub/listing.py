"""The files of one commit of a repository: from the Hub, or from the standard cache when the Hub cannot be asked."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmerge_tui.errors import ModelError, TmergeError
from tmerge_tui.files import write_atomic
from tmerge_tui.hub.errors import MALFORMED, cache_folder, client_errors, explain, misunderstood
from tmerge_tui.hub.manifest import WHOLE, Manifest, is_adapter, is_needed, read_manifest
from tmerge_tui.hub.patience import patiently
from tmerge_tui.hub.snapshot import bring
from tmerge_tui.recipe import gguf_parts, is_gguf

CARD = "README.md"
SHOWN = 8  # file names in a message
_COMMIT = re.compile(r"[0-9a-f]{40}")
ANSWER = 15.0  # seconds the Hub may take to list a repository


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int  # bytes
    etag: str  # name of its blob in the cache: sha256 of a large file, git's sha1 of a small one


@dataclass(frozen=True)
class Listing:
    """What a merge needs of one commit; `note` says why the cache had to do, and is empty when the Hub answered."""

    repo: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]
    manifest: Manifest
    note: str = ""
    file: str | None = None  # the GGUF file asked for, where it is not the repository's own weights

    @property
    def name(self) -> str:
        return _name(self.repo, self.revision, self.file)

    @property
    def storage(self) -> Path:
        return storage_of(self.repo)

    @property
    def folder(self) -> Path:
        """Where the standard cache shows this commit; it may not exist yet."""
        return self.storage / "snapshots" / self.commit

    @property
    def weights(self) -> tuple[RemoteFile, ...]:
        return tuple(file for file in self.files if file.path in self.manifest.weights)

    @property
    def pickled(self) -> bool:
        """Whether the weights are in PyTorch's format, whose tensors cannot be told from a beginning of the file."""
        return any(path.endswith(".bin") for path in self.manifest.weights)

    @property
    def missing(self) -> tuple[RemoteFile, ...]:
        """Files that the cache does not hold."""
        return tuple(file for file in self.files if not (self.folder / file.path).is_file())

    @property
    def is_adapter(self) -> bool:
        """Whether this is a LoRA adapter: its configuration is here and a model's weights are not."""
        return is_adapter(file.path for file in self.files)


def list_model(repo: str, revision: str | None = None, code: bool = False, file: str | None = None) -> Listing:
    """The files a merge needs of a model repository, its commit pinned; `code` lets its Python files in. Of a GGUF
    `file` only that one (a split one with its other parts) and the card.

    A Hub that does not answer, or not this user, is no problem when the commit is in the cache whole: `note` says so.
    Raises ModelError: no such repository or revision, no access, offline and not (or not wholly) cached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    name = _name(repo, revision, file)
    if _COMMIT.fullmatch(revision or ""):  # a commit never changes
        found = cached_listing(repo, revision, code, file)
        if found is not None and not (found.missing or _absent(found)):
            return found
    try:
        info = patiently(lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=ANSWER))
        files, commit = _siblings(info), str(info.sha)
    except client_errors() as error:
        problem = explain(error, name, ModelError, "model")
        if isinstance(error, (HFValidationError, RevisionNotFoundError)):
            raise problem from None
        return _from_cache(repo, revision, code, problem, file)
    except MALFORMED as error:
        return _from_cache(repo, revision, code, misunderstood(error, name), file)
    if file is not None:
        _refuse_other_names(file, name, files)
        manifest = Manifest(gguf_parts(file))
        return Listing(repo, revision, commit, _needed(files, manifest, code, file), manifest, file=file)
    manifest = read_manifest(
        {file.path for file in files}, name, lambda path: (bring(repo, commit, [path], name) / path).read_bytes()
    )
    listing = Listing(repo, revision, commit, _needed(files, manifest, code, None), manifest)
    _refuse_other_formats(listing, files)
    return listing


def cached_listing(repo: str, revision: str | None, code: bool, file: str | None = None) -> Listing | None:
    """What the cache knows of a revision; its files are those the Hub listed when it was asked, if it was."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    commit = cached_commit(repo, revision)
    if commit is None:
        return None
    folder = storage_of(repo) / "snapshots" / commit
    try:
        files = [RemoteFile(file.path, file.size, file.blob_id) for file in get_cached_repo_tree(repo, revision=commit)]
    except CachedRepoTreeNotFoundError:
        paths = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        files = [RemoteFile(p.relative_to(folder).as_posix(), p.stat().st_size, "") for p in paths]
        if not files:
            return None
    names = {file.path for file in files}
    try:
        if file is None:
            manifest = read_manifest(names, repo, lambda path: (folder / path).read_bytes())
        else:
            manifest = Manifest(gguf_parts(file))
    except OSError:  # the index is not here: it is among what is missing
        manifest = Manifest(index=next(index for _, index in WHOLE if index in names))
    known = _needed(files, manifest, code, file)
    absent = tuple(RemoteFile(path, 0, "") for path in manifest.weights if path not in names)  # listed by the index
    return Listing(repo, revision, commit, (*known, *absent), manifest, file=file)


def cached_commit(repo: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit that a branch or tag was when the Hub was last asked."""
    if _COMMIT.fullmatch(revision or ""):
        return revision
    try:
        return (storage_of(repo, kind) / "refs" / (revision or "main")).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def remember(listing: Listing) -> None:
    """Notes in the cache which commit the branch or tag is, for a later run without a connection."""
    ref = listing.storage / "refs" / (listing.revision or "main")
    if listing.revision == listing.commit or cached_commit(listing.repo, listing.revision) == listing.commit:
        return
    with suppress(OSError):  # a cache that is only readable
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, listing.commit.encode())


def storage_of(repo: str, kind: str = "model") -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_folder()) / repo_folder_name(repo_id=repo, repo_type=kind)


def _from_cache(repo: str, revision: str | None, code: bool, why: TmergeError, file: str | None) -> Listing:
    from huggingface_hub import constants

    listing = cached_listing(repo, revision, code, file)
    if listing is None:
        if constants.is_offline_mode():
            raise ModelError(
                f"{repo}{f'@{revision}' if revision else ''} is not in the cache ({cache_folder()}), and offline mode "
                f"is on",
                "a model that was downloaded before",
                "run once without --offline (HF_HUB_OFFLINE), or give the path of a folder",
            ) from None
        raise why from None
    missing = [file.path for file in listing.missing] or _absent(listing)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ModelError(
            f"{listing.name} is only partly in the cache; missing: {shown} ({why.found})",
            "all its files",
            "go online and run the same command: what is there is kept",
        ) from None
    note = "offline mode" if constants.is_offline_mode() else why.found
    return replace(listing, note=f"{listing.name}: cached copy used ({note})")


def _absent(listing: Listing) -> list[str]:
    """What every model has and a cache filled file by file may lack."""
    names = {file.path for file in listing.files}
    if listing.is_adapter or listing.file is not None:
        return []
    absent = [] if "config.json" in names else ["config.json"]
    return absent + ([] if listing.weights else ["model.safetensors"])


def _name(repo: str, revision: str | None, file: str | None) -> str:
    return repo + (f":{file}" if file else "") + (f"@{revision}" if revision else "")


def _needed(files: list[RemoteFile], manifest: Manifest, code: bool, file: str | None) -> tuple[RemoteFile, ...]:
    if file is None:
        needed = [f for f in files if is_needed(f.path, manifest, code)]
    else:  # metadata are inside
        needed = [f for f in files if f.path in manifest.weights or f.path == CARD]
    return tuple(sorted(needed, key=lambda f: f.path))


def _refuse_other_names(file: str, name: str, files: list[RemoteFile]) -> None:
    """Raises ModelError when not every part of a GGUF file is there."""
    there = {one.path for one in files}
    gone = [part for part in gguf_parts(file) if part not in there]
    if gone:
        raise ModelError(f"{name}: there is no file {gone[0]}", "a GGUF file of that repository", _gguf_hint(files))


def _gguf_hint(files: list[RemoteFile]) -> str:
    """Every GGUF model of a repository, of a split one the first file."""
    named = [f for f in files if is_gguf(f.path) and gguf_parts(f.path)[0] == f.path]
    if not named:
        return "it holds no GGUF file: name the repository without a file"
    return f"it holds {', '.join(one.path for one in named[:SHOWN])}" + (" and more" if len(named) > SHOWN else "")


def _refuse_other_formats(listing: Listing, files: list[RemoteFile]) -> None:
    names = {file.path for file in files}
    gone = [path for path in listing.manifest.weights if path not in names]
    if gone:
        raise ModelError(
            f"{listing.name} lacks {gone[0]}, which {listing.manifest.index} names; {len(gone)} files are not there",
            "every file that the index names",
            "choose another revision or model",
        )
    if listing.weights:
        return
    if any(name.endswith((".bin", ".pth", ".pt")) for name in names):
        raise ModelError(
            f"{listing.name} has only other PyTorch weights",
            "safetensors weights, or pytorch_model.bin",
            "choose a repository with model.safetensors, or convert it once and give the folder",
        )
    if any(is_gguf(name) for name in names):
        raise ModelError(
            f"{listing.name} has only GGUF weights",
            f"as a source one of its files, {listing.repo}:FILE; as a target the model they were made from",
            _gguf_hint(files),
        )
    raise ModelError(f"{listing.name} holds no weights", "model.safetensors or its shards", "choose another model")


def _siblings(info: Any) -> list[RemoteFile]:
    """The files of an answer. Raises ValueError for one that names no commit, or files without a name or size."""
    files = [RemoteFile(s.rfilename, s.size or 0, _etag(s)) for s in info.siblings or ()]
    if not _COMMIT.fullmatch(str(info.sha)):
        raise ValueError("it names no commit")
    if not all(isinstance(file.path, str) and isinstance(file.size, int) for file in files):
        raise ValueError("it lists files without a name or size")
    return files


def _etag(sibling: Any) -> str:
    return sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id or ""
