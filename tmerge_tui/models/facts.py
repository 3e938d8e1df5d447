"""What a model is, from its config, its module tree on the meta device and its weight headers: no weight is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from tmerge_tui.errors import ModelError
from tmerge_tui.files import parse_json
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import (
    build_on_meta,
    front_matter,
    positions,
    read_config,
    refuse_quantised,
    understood,
)
from tmerge_tui.models.fitting import refuse_misfit
from tmerge_tui.models.header import TensorInfo
from tmerge_tui.models.layout import Heads, Layout
from tmerge_tui.models.licence import licence_of
from tmerge_tui.models.projections import decoder_layers, find_projections
from tmerge_tui.models.spaces import with_spaces
from tmerge_tui.recipe import is_folder, is_gguf


@dataclass(frozen=True)
class ModelFacts:
    name: str  # what the user typed
    folder: Path
    model_type: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: int  # tied ones once
    dtype: str  # of most weights on disk, as torch names it
    bytes_on_disk: int  # weight files
    largest_layer_bytes: int  # in the dtype on disk
    tied: bool  # output embeddings are the input embeddings
    chat_template: bool
    licence: str | None
    fingerprint: str
    trust_remote_code: bool
    layout: Layout
    rows: int = 0  # of the input embedding: every token id is below
    positions: int | None = None  # tokens the model was made to read at once; None: its configuration has no limit
    position_table: bool = False  # whether there is a table of positions, so that none can lie beyond

    @property
    def label(self) -> str:
        """The name where a line has little room: of a folder its last part."""
        if not is_folder(self.name):
            return self.name
        return Path(self.name).name if is_gguf(self.name) else self.folder.name

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Memory of all weights in `dtype`."""
        return self.parameters * dtype.itemsize

    def summary(self) -> dict[str, Any]:
        """The facts a screen or a report shows, as JSON can hold them."""
        shown = {key: value for key, value in vars(self).items() if key not in ("layout", "folder")}
        return {**shown, "folder": str(self.folder), "notes": list(self.layout.notes)}


class Weights(Protocol):
    """What facts need to know of the weights: a `Checkpoint`, or one whose headers alone are here yet."""

    @property
    def folder(self) -> Path: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def bytes(self) -> int: ...
    def info(self, name: str) -> TensorInfo: ...
    def fingerprint(self) -> str: ...


def read_facts(folder: Path, name: str, trust_remote_code: bool = False, weights: Weights | None = None) -> ModelFacts:
    """Facts of the model in `folder`; `weights` when they are not in the folder yet.

    Raises ModelError for a folder that is no model, weights that are damaged, missing or of other shapes, quantised
    checkpoints, models that are no causal language models (encoders, encoder-decoders, classifiers), pure state-space
    models, models that need their own code when that is not allowed, and models without a single plain projection.
    """
    folder = Path(folder)
    refuse_quantised(folder, name)  # before the headers, whose types would say less
    checkpoint = weights or Checkpoint(folder)
    config = read_config(folder, name, trust_remote_code)
    model = build_on_meta(config, name, trust_remote_code)
    with understood(name):
        return _facts(folder, name, trust_remote_code, checkpoint, config, model)


def _facts(
    folder: Path, name: str, trust_remote_code: bool, checkpoint: Weights, config: Any, model: Any
) -> ModelFacts:
    text = config.get_text_config()
    shapes = {tensor: checkpoint.info(tensor).shape for tensor in checkpoint.names}
    layout = with_spaces(find_projections(model, config, checkpoint.names), model, config, shapes)
    refuse_misfit(model, shapes, name)
    _, layers = decoder_layers(model, layout.layers)
    dtype = _dtype(checkpoint)
    count = int(text.num_attention_heads)
    heads = next(filter(None, layout.heads), Heads(count, count, int(text.hidden_size) // count, rotary=False))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return ModelFacts(
        name=name,
        folder=folder,
        model_type=str(config.model_type),
        architecture=type(model).__name__,
        layers=layout.layers,
        hidden=int(text.hidden_size),
        heads=heads.queries,
        kv_heads=heads.keys,
        head_dim=heads.channels,
        vocab=int(text.vocab_size),
        parameters=_parameters(model),
        dtype=str(dtype).removeprefix("torch."),
        bytes_on_disk=checkpoint.bytes,
        largest_layer_bytes=max(_parameters(layer) for layer in layers) * dtype.itemsize,
        tied=head is not None and head.weight is embedding.weight,
        chat_template=_has_chat_template(folder),
        licence=_licence(folder),
        fingerprint=checkpoint.fingerprint(),
        trust_remote_code=trust_remote_code,
        layout=layout,
        rows=int(embedding.weight.shape[0]),
        positions=positions(config),
        position_table=_position_table(model, embedding) or _penalty_table(text),
    )


def _position_table(model: nn.Module, tokens: nn.Module) -> bool:
    """Whether positions are looked up in a table: learned ones, or sines written down beforehand."""
    model = getattr(model, "get_decoder", lambda: None)() or model  # without a tower that sees
    embeddings = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    tables = [name for name, module in embeddings if module is not tokens]
    tables += [name for name, buffer in model.named_buffers() if buffer.dim() == 2]
    return any(part in name.rpartition(".")[2] for name in tables for part in ("pos", "wpe"))


def _penalty_table(text: Any) -> bool:
    """Whether attention is penalised by distance with as many penalties as the configuration says (MPT)."""
    attention = getattr(text, "attn_config", None)
    return bool(getattr(attention, "alibi", False)) and hasattr(text, "max_seq_len")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _dtype(checkpoint: Weights) -> torch.dtype:
    """The type most bytes are in."""
    sizes: Counter[torch.dtype] = Counter()
    for info in map(checkpoint.info, checkpoint.names):
        sizes[info.dtype] += info.bytes
    dtype = sizes.most_common(1)[0][0]
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ModelError(
            f"{checkpoint.folder} holds {str(dtype).removeprefix('torch.')} weights: it is quantised",
            "plain float32, float16 or bfloat16 weights",
            "name the model it was made from",
        )
    return dtype


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(parse_json((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False  # the tokenizer itself is checked when it is loaded


def _licence(folder: Path) -> str | None:
    """The licence that the model card states; a named one when it says `other`."""
    card = front_matter(folder)
    value = card.get("license_name") if card.get("license") in (None, "other") else card.get("license")
    return licence_of(value or card.get("license"))
