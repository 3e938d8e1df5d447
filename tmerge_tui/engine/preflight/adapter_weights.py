"""What a LoRA adapter makes of its base's tensors: peft's merge, compared with the base tensor by tensor.

Nothing is taken from a list of what an adapter may change: whatever differs after the merge has changed, be it a
projection, a bias, the rows of some tokens or a saved head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.engine.preflight.adapter_fit import PREFIX
from tmerge_tui.errors import ModelError
from tmerge_tui.extras import imported
from tmerge_tui.hub.locate import Located
from tmerge_tui.models.config import auto_class, first_line, quiet, read_config
from tmerge_tui.models.file_names import file_names

BY_HAND = "merge it yourself (peft: merge_and_unload, save_pretrained) and give that folder"
UNTIE = (
    "save the base with tie_word_embeddings: false and a head of its own, name that folder as base_model_name_or_path "
    "in adapter_config.json"
)


def changed_tensors(
    adapter: Located, base: Located, tensor_names: Collection[str], trust_remote_code: bool
) -> dict[str, Tensor]:
    """The base's tensors that the adapter changes, by their names in its files, which are `tensor_names`.

    Raises ExtraMissing; ModelError: peft refuses the pair, the adapter's file is not whole or made for another model,
    it changes something that is no tensor of a file, or two uses of one tensor in two ways.
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
            before, tied = _digests(model), _tied(model)
            wrapped = peft.PeftModel(model, peft.PeftConfig.from_pretrained(str(adapter.folder)))
            _refuse_misfit(peft.set_peft_model_state_dict(wrapped, weights))
            _refuse_parted(adapter, wrapped, tied)
            merged = wrapped.merge_and_unload(safe_merge=True)
        except ModelError:
            raise
        except Exception as error:  # peft and model code raise what they like
            raise ModelError(
                f"{adapter.name} cannot be merged onto {base.name}: {first_line(error)}",
                "an adapter that fits its base",
                BY_HAND,
            ) from error
    state: dict[str, Any] = merged.state_dict()
    changed = [name for name, digest in _digests(merged).items() if before.get(name) != digest]
    also = {name: group for group in tied for name in group}  # one of them in a file is enough
    unknown = [name for name in changed if not any(one in in_files for one in also.get(name, (name,)))]
    if unknown:
        raise ModelError(
            f"{adapter.name} changes {unknown[0]!r}, which {base.name} does not have in its files",
            "an adapter of separate linear layers",
            BY_HAND,
        )
    return {in_files[name]: state[name].detach().clone() for name in changed if name in in_files}


def _digests(model: Any) -> dict[str, bytes]:
    """What every tensor of the model holds, in 16 bytes."""
    return {
        name: hashlib.blake2b(value.detach().contiguous().view(-1).view(torch.uint8).numpy(), digest_size=16).digest()
        for name, value in model.state_dict().items()
    }


def _tied(model: Any) -> list[tuple[str, ...]]:
    """Parameters that are one tensor under several names."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]


def _refuse_parted(adapter: Located, wrapped: Any, tied: list[tuple[str, ...]]) -> None:
    """Raises ModelError when names of one tensor are adapted differently: merged, each would get the other's change."""
    for group in tied:
        places = {name: _adapting(wrapped, name.rpartition(".")[0]) for name in group}
        if len(set(places.values())) > 1:
            which = next(name for name, place in places.items() if place)
            others = ", ".join(name for name in group if name != which)
            raise ModelError(
                f"{adapter.name} changes {which}, which in its base is the same tensor as {others}; merged, both would "
                f"change",
                "an adapter that leaves tied weights alone, or a base without them",
                UNTIE,
            )


def _adapting(wrapped: Any, module: str) -> frozenset[int]:
    """The memory of the adapter's own tensors at a module: none where there are none, the same where they are tied."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    place = wrapped.get_submodule(PREFIX + module)
    if not isinstance(place, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        return frozenset()
    names = (*place.adapter_layer_names, "token_adapter", "modules_to_save")
    own = [value for name, value in place.named_parameters() if any(part in f"{name}." for part in names)]
    return frozenset(value.untyped_storage().data_ptr() for value in own)


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
