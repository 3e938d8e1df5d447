"""From what a recipe names to a folder on this disk: local folders, and Hub ids through the standard cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmerge_tui.errors import ModelError
from tmerge_tui.files import is_pointer, parse_json
from tmerge_tui.hub.download import download, download_texts
from tmerge_tui.hub.listing import Listing, list_model, remember
from tmerge_tui.hub.manifest import ADAPTER, is_adapter
from tmerge_tui.recipe import ModelChoice, hub_file, is_gguf


@dataclass(frozen=True)
class Located:
    """`pending` lists what has to be downloaded before the folder holds weights; None when it does."""

    name: str  # what the user typed
    folder: Path
    commit: str | None  # of the Hub repository; None for a folder
    pending: Listing | None = None
    note: str = ""  # what the user should know of how it was found
    base: Located | None = None  # of a LoRA adapter: the model it was made for
    adapter: Path | None = None  # of a LoRA adapter that has been merged: its own folder; `folder` is the merge
    packed: Path | None = None  # of a quantised source: its own file or folder; `folder` is what is known of it
    precision: str | None = None  # of a quantised source: format and bits
    unpacked: bool = False  # whether `folder` holds a quantised source's weights as plain ones

    @property
    def whole(self) -> bool:
        """Whether `folder` is that of the model itself: no adapter yet to be merged, nothing yet to be unpacked."""
        return (self.base is None or self.adapter is not None) and (self.packed is None or self.unpacked)

    @property
    def downloads(self) -> tuple[Listing, ...]:
        """What is pending, of the model and of its base."""
        own = () if self.pending is None else (self.pending,)
        return own if self.base is None else (*own, *self.base.downloads)


def locate(choice: ModelChoice) -> Located:
    """The folder of a model with all its files, downloaded into the standard cache when something is not there.

    An adapter's own folder and that of its base are two: see `engine.preflight.lora_merge`.
    Raises ModelError: no such folder, no such repository, not allowed, or offline and not cached; StorageError.
    """
    return fetched(find(choice))


def fetched(found: Located) -> Located:
    """`found` with nothing pending. Raises ModelError, StorageError."""
    for listing in found.downloads:
        download(listing)
    return replace(found, pending=None, base=None if found.base is None else replace(found.base, pending=None))


def find(choice: ModelChoice) -> Located:
    """As `locate`, but of a Hub model only the small files are downloaded: configuration, tokenizer, card."""
    if choice.is_folder:
        folder = Path(choice.model).expanduser()
        if folder.is_file() and is_gguf(folder):
            return Located(choice.model, folder, None)
        if not folder.is_dir():
            raise ModelError(
                f"no model folder {folder}",
                "a folder with config.json and safetensors weights",
                "check the path, or give a Hub id such as org/name",
            )
        _refuse_pointers(folder)
        adapter = is_adapter(path.name for path in folder.iterdir())
        found = Located(choice.model, folder, None)
    else:
        repo, file = hub_file(choice.model)
        if file is None and is_gguf(repo):
            raise ModelError(
                f"no file {choice.model}", "a GGUF file on this disk, or org/name:file.gguf", "check the path"
            )
        listing = list_model(repo, choice.revision, choice.trust_remote_code, file)
        download_texts(listing)
        remember(listing)
        pending, adapter = listing if listing.missing else None, listing.is_adapter
        folder = listing.folder if file is None else listing.folder / listing.manifest.weights[0]
        found = Located(listing.name, folder, listing.commit, pending, listing.note)
    if not adapter:
        _refuse_both(found)
        return found
    wanted = _base(found, choice.trust_remote_code)
    try:
        base = find(wanted)
    except ModelError as error:
        raise ModelError(
            f"{found.name} is an adapter whose base cannot be used: {error.found}",
            error.expected,
            f"{error.hint or 'get that model'}; or correct base_model_name_or_path in {found.folder / ADAPTER}",
        ) from error
    if base.base is not None:
        raise ModelError(
            f"{found.name} is an adapter for {base.name}, which is an adapter itself", "a base that is a whole model"
        )
    notes = "; ".join(filter(None, (found.note, base.note)))
    return replace(found, base=base, note=notes)


def _refuse_both(model: Located) -> None:
    """Raises ModelError for a whole model beside an adapter: transformers would load the one with the other on it, and
    the files that are merged would be another model than the one that is measured."""
    if (model.folder / ADAPTER).is_file():
        raise ModelError(
            f"{model.name} holds a whole model and a LoRA adapter: {ADAPTER} lies beside the weights",
            "one of them",
            f"move the model's own files, or {ADAPTER} and adapter_model.safetensors, to a folder of their own",
        )


def _refuse_pointers(folder: Path) -> None:
    """Raises ModelError for a folder that git cloned without its large files."""
    pointers = [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_pointer(path)]
    if pointers:
        raise ModelError(
            f"{folder}: {', '.join(pointers[:4])}: {len(pointers)} pointers of git-lfs, not the files themselves",
            "the files",
            "run `git lfs pull` in that folder, or download the model by its Hub id",
        )


def _base(adapter: Located, trust_remote_code: bool) -> ModelChoice:
    """The model that an adapter's configuration names. Raises ModelError when it is no LoRA, or names none."""
    try:
        config: dict[str, Any] = parse_json((adapter.folder / ADAPTER).read_text(encoding="utf-8"))
        kind, base = str(config.get("peft_type", "LORA")), config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, AttributeError):
        kind, base = "LORA", None
    if kind != "LORA":
        raise ModelError(f"{adapter.name} is a {kind} adapter", "a LoRA adapter, or a whole model", "merge it yourself")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{adapter.name} is an adapter whose {ADAPTER} names no base model",
            "base_model_name_or_path in it",
            "merge it into its base yourself (peft: merge_and_unload) and give that folder",
        )
    beside = adapter.folder / base
    if base.startswith(".") and not Path(base).is_dir() and beside.is_dir():  # written from where the adapter lies
        base = str(beside.resolve())
    try:
        return ModelChoice(model=base, revision=config.get("revision"), trust_remote_code=trust_remote_code)
    except ValueError:
        raise ModelError(f"{adapter.name}: {ADAPTER} names the base {base!r}", "a Hub id or a folder") from None
