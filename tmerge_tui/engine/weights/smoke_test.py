"""Whether a written folder is a model: it loads in stock transformers, gives finite logits and generates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmerge_tui.errors import ModelError, NumericsError
from tmerge_tui.events import Emit, Sample, Warned
from tmerge_tui.models.config import auto_class, quiet, read_config
from tmerge_tui.models.generation import continue_prompts

TOKENS = 8


@dataclass(frozen=True)
class Smoke:
    prompt: str
    text: str  # what the model wrote after it
    unused: tuple[str, ...]  # tensors of the file, the target's own, that this architecture does not read


@torch.no_grad()
def smoke(folder: Path, prompt: str, device: torch.device, emit: Emit, trust_remote_code: bool = False) -> Smoke:
    """Loads `folder` as any user would, with from_pretrained of the stock auto class.

    Raises ModelError when it does not load, when a parameter is not in the file or has another shape, or when it does
    not generate; NumericsError when logits are not finite. Tensors that the architecture does not read are the
    target's own and cost a warning.
    """
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with quiet():
            config = read_config(folder, folder.name, trust_remote_code)
            model, info = auto_class(config).from_pretrained(folder, dtype="auto", output_loading_info=True, **options)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # whatever a library objects to: the folder is not usable
        raise ModelError(f"{folder} does not load: {error}", "a folder that stock transformers loads") from error
    bad = [str(name) for which in ("missing_keys", "mismatched_keys") for name in info.get(which) or ()]
    if bad:
        raise ModelError(
            f"{folder}: {len(bad)} parameters are missing or have another shape, first {bad[0]}",
            "a checkpoint that fills the model",
        )
    unused = tuple(sorted(info.get("unexpected_keys") or ()))
    if unused:
        emit(Warned("fold", f"transformers does not use {len(unused)} tensors of the target's file, first {unused[0]}"))
    model = model.to(device).eval()
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(device)
    if not bool(torch.isfinite(model(**encoded).logits).all()):
        raise NumericsError(
            f"{folder}: logits are NaN or Inf after {prompt!r}", "finite logits", "use a smaller alpha, or norm: keep"
        )
    try:
        text = continue_prompts(model, tokenizer, [prompt], TOKENS)[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(f"{folder} does not generate: {error}", "a model that continues a prompt") from error
    emit(Sample("fused", prompt, text))
    return Smoke(prompt, text, unused)
