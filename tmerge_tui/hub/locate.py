"""From what a recipe names to a folder on this disk: local folders, and Hub ids through the standard cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tmerge_tui.errors import ModelError
from tmerge_tui.recipe import ModelChoice

# What a merge needs of a repository; never both weight formats, never the original/ or onnx/ copies.
NEEDED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md", "LICENSE*"]
SKIPPED = ["*/*.safetensors", "onnx/*", "original/*", "*.gguf"]


@dataclass(frozen=True)
class Located:
    name: str  # what the user typed
    folder: Path
    commit: str | None  # of the Hub repository; None for a folder


def locate(choice: ModelChoice) -> Located:
    """The folder of a model, downloaded into the standard cache when it is a Hub id that is not there.

    Raises ModelError: no such folder, no such repository, not allowed, or offline and not cached.
    """
    if choice.is_folder:
        folder = Path(choice.model).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"no model folder {folder}",
                "a folder with config.json and safetensors weights",
                "check the path, or give a Hub id such as org/name",
            )
        return Located(choice.model, folder, None)
    return _from_hub(choice)


def _from_hub(choice: ModelChoice) -> Located:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = choice.model if choice.revision is None else f"{choice.model}@{choice.revision}"
    try:
        folder = snapshot_download(
            choice.model, revision=choice.revision, allow_patterns=NEEDED, ignore_patterns=SKIPPED
        )
    except HFValidationError as error:
        raise ModelError(
            f"{choice.model!r} is neither a folder here nor a Hub id",
            "org/name or the path of a folder",
            "check the spelling",
        ) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated",
            "an account that accepted its terms",
            f"accept them at https://huggingface.co/{choice.model} and run `hf auth login`",
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name} is not in the local cache and the Hub cannot be reached",
            "a cached model or a connection",
            "go online once, or give the path of a folder",
        ) from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"{name}: the Hub said: {str(error).splitlines()[0]}",
            "a repository that exists and that you may read",
            "check the id and revision; a private one needs `hf auth login`",
        ) from error
    return Located(name, Path(folder), Path(folder).name)
