"""Whether a written folder is a model: it loads in stock transformers, gives finite logits and generates.

A folder that does not load, or whose logits are not finite, is no result. That it also writes text is only tried: a
merge is not lost because a try-out fails, which costs a warning beside the written model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tmerge_tui.errors import MemoryShortage, ModelError, NumericsError
from tmerge_tui.events import Emit, Generated, Warned
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import auto_class, first_line, quiet, read_config
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.generation import continue_prompts, prompt_ids
from tmerge_tui.models.loading import load_model, pick_dtype
from tmerge_tui.models.tokenizer import load_tokenizer

TOKENS = 8
STAGE = "fold"


@dataclass(frozen=True)
class Smoke:
    prompt: str
    text: str | None  # what the model wrote after it; None when it could not be tried
    unused: tuple[str, ...]  # tensors of the file, the target's own, that this architecture does not read


@torch.no_grad()
def smoke(
    folder: Path,
    prompt: str,
    device: torch.device,
    emit: Emit,
    trust_remote_code: bool = False,
    memory: int | None = None,  # bytes the weights may take; what does not fit is streamed
    dtype: str = "auto",
) -> Smoke:
    """Loads `folder` within `memory`, reads the prompt and continues it.

    Raises ModelError when it does not load, or when a parameter is not in the file or has another shape; NumericsError
    when logits are not finite, with the tensor where one of the file is to blame. Tensors that the architecture does
    not read are the target's own and cost a warning; so does a model that cannot be tried or does not generate.
    """
    unused = _loads(folder, trust_remote_code)
    if unused:
        emit(Warned(STAGE, f"transformers does not use {len(unused)} tensors of the target's file, first {unused[0]}"))
    try:
        facts = read_facts(folder, folder.name, trust_remote_code)
        model = load_model(facts, device, pick_dtype(dtype, device, facts, memory)[0], memory, emit)
        tokenizer = load_tokenizer(folder, trust_remote_code)
    except MemoryShortage as error:
        emit(Warned(STAGE, f"{folder.name} is written, but could not be tried: {error.found}"))
        return Smoke(prompt, None, unused)
    ids = torch.tensor([prompt_ids(model, tokenizer, prompt)], device=device)
    if not bool(torch.isfinite(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).all()):
        checkpoint = Checkpoint(folder)
        checkpoint.check_finite([name for name in checkpoint.names if name not in unused], lambda count: None)
        raise NumericsError(
            f"{folder}: logits are NaN or Inf after {prompt!r}", "finite logits", "use a smaller alpha, or norm: keep"
        )
    try:
        text = continue_prompts(model, tokenizer, [prompt], TOKENS)[0]
    except Exception as error:  # transformers and model code raise what they like; the model itself is sound
        emit(Warned(STAGE, f"{folder.name} is written, with finite logits, but does not go on: {first_line(error)}"))
        return Smoke(prompt, None, unused)
    emit(Generated("fused", prompt, text))
    return Smoke(prompt, text, unused)


def _loads(folder: Path, trust_remote_code: bool) -> tuple[str, ...]:
    """The tensors that the stock auto class leaves unread. Raises ModelError when it does not load the folder whole.

    Nothing is read but names and shapes: the modules stand without memory.
    """
    try:
        with quiet():
            config = read_config(folder, folder.name, trust_remote_code)
            _, info = auto_class(config).from_pretrained(
                folder, dtype="auto", device_map="meta", output_loading_info=True, local_files_only=True,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
    except Exception as error:  # whatever a library objects to: the folder is not usable
        raise ModelError(f"{folder} does not load: {error}", "a folder that stock transformers loads") from error
    bad = [str(name) for which in ("missing_keys", "mismatched_keys") for name in info.get(which) or ()]
    if bad:
        raise ModelError(
            f"{folder}: {len(bad)} parameters are missing or have another shape, first {bad[0]}",
            "a checkpoint that fills the model",
        )
    return tuple(sorted(info.get("unexpected_keys") or ()))
