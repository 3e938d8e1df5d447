"""What the tensors of a checkpoint's files are called in the running model: transformers renames some as it loads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def file_names(model: Any, names: Collection[str]) -> tuple[dict[str, str], set[str]]:
    """(name in the model -> name in the files, names in the model whose tensors are put together from others).

    The second are no tensor of any file as they stand: packed experts, for instance. Checkpoints of a bare trunk
    ("h.0.attn" for "transformer.h.0.attn") are understood as transformers understands them.
    """
    plain: dict[str, str] = {}
    assembled: set[str] = set()
    for name, (renamed, together) in model_names(model, names).items():
        if together:
            assembled.add(renamed)
        elif renamed not in plain or name == renamed:
            plain[renamed] = name
    return plain, assembled


def model_names(model: Any, names: Collection[str]) -> dict[str, tuple[str, bool]]:
    """Name in the files -> (name in the model, whether transformers puts that tensor together from several)."""
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    if not isinstance(model, PreTrainedModel):
        return {name: (name, False) for name in names}
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    found = {}
    for name in names:
        renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if renamed not in known and name in known:
            renamed, converter = name, None
        found[name] = (renamed, converter is not None)
    return found
