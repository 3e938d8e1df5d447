"""Whether an adapter has its weights, and saved tensors of its base's shapes: known from headers, without peft."""

from __future__ import annotations

from collections.abc import Mapping

from tmerge_tui.errors import ModelError
from tmerge_tui.hub.locate import Located
from tmerge_tui.hub.manifest import ADAPTER_WEIGHTS
from tmerge_tui.models.header import read_header

PREFIX = "base_model.model."  # of every name in an adapter's file
SAVED = (".modules_to_save.default", ".modules_to_save", ".original_module", ".base_layer")


def refuse_unfit(adapter: Located, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """`shapes` are those of the base's tensors. An adapter that is still on the Hub, or a .bin, is not looked into.

    Raises ModelError: no file of weights, or an embedding or head of another size than the base has.
    """
    assert adapter.base is not None
    if adapter.pending is not None:
        return
    files = [adapter.folder / name for name in ADAPTER_WEIGHTS]
    if not any(file.is_file() for file in files):
        raise ModelError(
            f"{adapter.name} has adapter_config.json, but no weights",
            " or ".join(ADAPTER_WEIGHTS),
            "a training that still runs has them in a folder checkpoint-N; or download the adapter again",
        )
    if not files[0].is_file():
        return
    for name, info in read_header(files[0]).tensors.items():
        own = name.removeprefix(PREFIX)
        for part in SAVED:
            own = own.replace(part, "")
        asked = shapes.get(own)
        if asked is not None and tuple(info.shape) != tuple(asked):
            raise ModelError(
                f"{adapter.name} has {own} with {info.shape[0]} rows, its base {adapter.base.name} has {asked[0]}: the "
                f"base was given other embeddings before it was adapted",
                "a base of the same size",
                f"load the base, resize_token_embeddings({info.shape[0]}), save_pretrained, and name that folder as "
                f"base_model_name_or_path in adapter_config.json",
            )
