"""A LoRA adapter as source or target: merged onto its base once, into a folder that later runs find again.

The result is the base's checkpoint, byte for byte, with the adapted tensors replaced; it lies under the Hub's home
folder, named after the commits (or, for local folders, the files) of adapter and base.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tmerge_tui.engine.rundir import key
from tmerge_tui.errors import ModelError
from tmerge_tui.extras import imported, require
from tmerge_tui.files import storage
from tmerge_tui.hub.locate import Located, fetched, find
from tmerge_tui.models.checkpoint import Checkpoint, patch_checkpoint
from tmerge_tui.models.config import first_line, quiet
from tmerge_tui.recipe import ModelChoice

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def whole_folder(choice: ModelChoice) -> Path:
    """The folder of a model that can be loaded as it is: downloaded, and merged when it is an adapter."""
    return merged(fetched(find(choice)), choice.trust_remote_code).folder


def require_peft(adapter: Located) -> None:
    """Raises ExtraMissing when adapters cannot be merged here."""
    require(f"{adapter.name} is a LoRA adapter for {adapter.base.name if adapter.base else '?'}", "lora")


def merged_folder(adapter: Located) -> Path:
    """Where the merge of this adapter and this base lies, or will lie."""
    from huggingface_hub import constants

    assert adapter.base is not None
    return Path(constants.HF_HOME) / "tmerge" / "merged" / key(_identity(adapter), _identity(adapter.base))


def merged(located: Located, trust_remote_code: bool) -> Located:
    """`located` itself, or the merge of an adapter and its base, both of which are on this disk.

    Raises ExtraMissing; ModelError: an adapter that does not fit its base; StorageError; NumericsError.
    """
    if located.base is None:
        return located
    out = merged_folder(located)
    if not (out / "config.json").is_file():
        require_peft(located)
        _merge(located, located.base, out, trust_remote_code)
    return replace(located, folder=out, pending=None)


def _merge(adapter: Located, base: Located, out: Path, trust_remote_code: bool) -> None:
    changed = _adapted(adapter, base, trust_remote_code)
    checkpoint = Checkpoint(base.folder)
    unknown = [name for name in changed if name not in checkpoint.names]
    if unknown:
        raise ModelError(
            f"{adapter.name} changes {unknown[0]!r}, which {base.name} does not have in its files",
            "an adapter of separate linear layers",
            "merge it yourself (peft: merge_and_unload, save_pretrained) and give that folder",
        )

    def patch(value: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda before: value

    making = out.with_name(f"{out.name}.making")
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    patch_checkpoint(checkpoint, making, {name: patch(value) for name, value in changed.items()}, lambda count: None)
    with storage(out):
        for name in TOKENIZER:
            if (adapter.folder / name).is_file():
                shutil.copyfile(adapter.folder / name, making / name)
        making.rename(out)


def _adapted(adapter: Located, base: Located, trust_remote_code: bool) -> dict[str, Tensor]:
    """The base's tensors that the adapter changes, by their names in the checkpoint."""
    with imported(f"{adapter.name} is a LoRA adapter", "lora"):
        import peft
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                base.folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter.folder))
            prefix = "base_model.model."
            names = [
                f"{name.removeprefix(prefix)}.{part}"
                for name, module in wrapped.named_modules()
                if hasattr(module, "lora_A") or hasattr(module, "modules_to_save")
                for part in ("weight", "bias")
            ]
            state: dict[str, Any] = wrapped.merge_and_unload(safe_merge=True).state_dict()
        except Exception as error:  # peft and model code raise what they like
            raise ModelError(
                f"{adapter.name} cannot be merged onto {base.name}: {first_line(error)}",
                "an adapter that fits its base",
                "merge it yourself (peft: merge_and_unload, save_pretrained) and give that folder",
            ) from error
    return {name: state[name].detach().clone() for name in names if name in state}


def _identity(located: Located) -> str:
    """The commit, or of a folder what changes when its files do."""
    if located.commit is not None:
        return f"{located.name} {located.commit}"
    files = sorted(path for path in located.folder.iterdir() if path.suffix in (".safetensors", ".json"))
    lines = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
