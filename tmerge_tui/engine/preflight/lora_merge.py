"""A LoRA adapter as source or target: merged onto its base once, into a folder that later runs find again.

The result is the base's checkpoint, byte for byte, with the adapted tensors replaced; it lies under the Hub's home
folder, named after the commits (or, for local folders, the files) of adapter and base.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tmerge_tui.errors import ModelError
from tmerge_tui.extras import imported, require
from tmerge_tui.files import storage
from tmerge_tui.hub.locate import Located, fetched, find
from tmerge_tui.models.checkpoint import Checkpoint, patch_checkpoint
from tmerge_tui.models.config import auto_class, first_line, quiet, read_config
from tmerge_tui.models.file_names import file_names
from tmerge_tui.recipe import ModelChoice
from tmerge_tui.run_folder import key
from tmerge_tui.system import insist

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
BY_HAND = "merge it yourself (peft: merge_and_unload, save_pretrained) and give that folder"
PREFIX = "base_model.model."  # of every name in an adapter's file


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
    checkpoint = Checkpoint(base.folder)
    changed = _adapted(adapter, base, checkpoint.names, trust_remote_code)

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
        insist(lambda: making.rename(out))


def _adapted(
    adapter: Located, base: Located, tensor_names: Collection[str], trust_remote_code: bool
) -> dict[str, Tensor]:
    """The base's tensors that the adapter changes, by their names in its files, which are `tensor_names`.

    Raises ExtraMissing; ModelError: peft refuses the pair, the adapter's file is not whole or made for another model,
    or it changes something that is no tensor of a file.
    """
    with imported(f"{adapter.name} is a LoRA adapter", "lora"):
        import peft
    config = read_config(base.folder, base.name, trust_remote_code)
    with quiet():
        try:
            model = auto_class(config).from_pretrained(
                base.folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
            in_files, _ = file_names(model, tensor_names)
            weights = _as_the_model_names(peft.load_peft_weights(str(adapter.folder), device="cpu"), model)
            wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(adapter.folder)))
            _refuse_misfit(peft.set_peft_model_state_dict(wrapped, weights))
            names = list(_touched(wrapped))
            state: dict[str, Any] = wrapped.merge_and_unload(safe_merge=True).state_dict()
        except Exception as error:  # peft and model code raise what they like
            raise ModelError(
                f"{adapter.name} cannot be merged onto {base.name}: {first_line(error)}",
                "an adapter that fits its base",
                BY_HAND,
            ) from error
    changed = [name for name in names if name in state]
    unknown = [name for name in changed if name not in in_files]
    if unknown:
        raise ModelError(
            f"{adapter.name} changes {unknown[0]!r}, which {base.name} does not have in its files",
            "an adapter of separate linear layers",
            BY_HAND,
        )
    return {in_files[name]: state[name].detach().clone() for name in changed}


def _touched(wrapped: Any) -> Iterator[str]:
    """Tensors of the model that the adapter may change; a bias need not be there."""
    for name, module in wrapped.named_modules():
        if hasattr(module, "lora_A") or hasattr(module, "modules_to_save"):
            own = getattr(module, "parameter_name", None)  # of a module with several tensors, such as all experts
            path = name.removeprefix(PREFIX).replace(".base_layer", "")  # one such wrapper may hold another
            yield from (f"{path}.{part}" for part in ([own] if own else ["weight", "bias"]))


def _as_the_model_names(weights: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """An adapter's tensors under the names of the modules as they are now: an older transformers had others."""
    of_module = {}  # name in the adapter's file -> (name of the tensor it changes, the rest)
    for name in weights:
        module, lora, rest = name.removeprefix(PREFIX).partition(".lora_")
        of_module[name] = (f"{module}.weight", lora + rest) if lora else (module, "")
    plain, _ = file_names(model, {tensor for tensor, _ in of_module.values()})
    now = {before: after for after, before in plain.items()}
    renamed = {}
    for name, (tensor, rest) in of_module.items():
        after = now.get(tensor, tensor)
        renamed[PREFIX + (after.removesuffix(".weight") + rest if rest else after)] = weights[name]
    return renamed


def _refuse_misfit(loaded: Any) -> None:
    """Raises ValueError unless every tensor of the adapter had its place and every place its tensor: peft goes on."""
    empty = [name for name in loaded.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    for names, what in ((empty, "missing in its file"), (loaded.unexpected_keys, "in its file, but not in the base")):
        if names:
            raise ValueError(f"{names[0].removeprefix(PREFIX)} is {what}; {len(names)} tensors are")


def _identity(located: Located) -> str:
    """The commit, or of a folder what changes when its files do."""
    if located.commit is not None:
        return f"{located.name} {located.commit}"
    files = sorted(path for path in located.folder.iterdir() if path.suffix in (".safetensors", ".json"))
    lines = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
