"""Whether a checkpoint fills its model: every parameter in its files, in the shape that config.json asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmerge_tui.errors import ModelError
from tmerge_tui.models.file_names import file_names


def refuse_misfit(model: Any, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Compares the modules of a model (on the meta device) with the `shapes` of the tensors in its files.

    What transformers puts together from several tensors is taken as fitting. Raises ModelError naming the first tensor
    that is missing or has another shape: transformers would go on with random numbers in its place.
    """
    plain, assembled = file_names(model, shapes.keys())
    groups: dict[int, list[str]] = {}  # the names of one parameter: one of them in a file is enough
    for own, value in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(value), []).append(own)
    for names in groups.values():
        if not any(own in plain or own in assembled for own in names):
            raise ModelError(
                f"{name}: {names[0]} is in no weight file",
                "a checkpoint that holds every weight of its model",
                "download the model again; if only the head is missing, set tie_word_embeddings: true in config.json",
            )
        for own in names:
            asked, found = tuple(model.get_parameter(own).shape), shapes.get(plain.get(own, ""))
            if found is not None and tuple(found) != asked and own not in assembled:
                raise ModelError(
                    f"{name}: {plain[own]} has shape {list(found)} in its file, and config.json asks for {list(asked)}",
                    "weights that fit config.json",
                    "download the model again, config.json and weights together",
                )
