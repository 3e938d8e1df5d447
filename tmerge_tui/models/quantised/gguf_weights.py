"""A GGUF file's tensors under the names and in the layout that transformers has them, one block of layers at a time.

Names and layouts are transformers' own tables; every parameter of the model has to come out of the file, and every
tensor of the file has to go into the model, so that nothing is ever left random or forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmerge_tui.errors import ModelError
from tmerge_tui.models.config import build_on_meta, first_line
from tmerge_tui.models.quantised.gguf_config import IN_THE_CONFIG
from tmerge_tui.models.quantised.gguf_file import Gguf

BLOCK = re.compile(r"^blk\.(\d+)\.")
HINT = "name the model it was made from, or upgrade transformers"


class GgufWeights:
    """The weights of one file as a model of `config` has them. Raises ModelError when the two do not fit."""

    def __init__(self, gguf: Gguf, config: Any, name: str, mapped: bool = True) -> None:
        """`mapped`: whether transformers has a table of its names, without which only `check` can be asked."""
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self.gguf, self.name = gguf, name
        model = build_on_meta(config, name, trust_remote_code=False)
        self.shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        self._same = _same_tensors(model)
        self._names: dict[str, str] = {}
        if not mapped:
            return
        self._processor = TENSOR_PROCESSORS.get(gguf.architecture, TensorProcessor)(config=config.to_dict())
        try:
            self._names = get_gguf_hf_weights_map(model, self._processor)
        except (NotImplementedError, KeyError) as error:
            raise ModelError(
                f"{name}: transformers does not know the tensors of {gguf.architecture}: {first_line(error)}",
                "an architecture that it reads from GGUF files",
                HINT,
            ) from error

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """Names of the file's tensors that are unpacked together: what is outside of layers, then layer by layer."""
        groups: dict[int, list[str]] = {}
        for name in self.gguf.tensors:
            found = BLOCK.match(name)
            groups.setdefault(int(found[1]) if found else -1, []).append(name)
        return tuple(tuple(groups[key]) for key in sorted(groups))

    def block(self, names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors that these of the file make. Raises ModelError for one without a place, or of another shape."""
        made: dict[str, Tensor] = {}
        for name in names:
            if name in IN_THE_CONFIG:
                continue
            for key, value in self._placed(name, made):
                made[key] = value.to(dtype).contiguous()
                if self.shapes.get(key) not in (None, tuple(value.shape)):
                    raise ModelError(
                        f"{self.name}: {name} has shape {list(value.shape)}, and {key} of a "
                        f"{self.gguf.architecture} {list(self.shapes[key])}",
                        "a file that says how large its model is",
                        HINT,
                    )
        return made

    def _placed(self, name: str, made: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What one tensor of the file becomes; experts' halves are put into what is `made` already."""
        halves = {key: value.float() for key, value in made.items() if key.endswith("experts.gate_up_proj")}
        parsed: dict[str, dict[str, Tensor]] = {"tensors": halves}
        result = self._processor.process(
            weights=self.gguf.values(name), name=name, tensor_key_mapping=self._names, parsed_parameters=parsed
        )
        if result.name in self._names:
            yield self._names[result.name], torch.from_numpy(np.ascontiguousarray(result.weights))
        elif result.name is None:
            yield from parsed["tensors"].items()
        else:
            raise self._no_place(name)

    def foresee(self) -> None:
        """As `check`, from names alone, before anything is unpacked; nothing where there is no table of names."""
        if not self._names:
            return
        places = {}  # experts' matrices are named without an ending
        for name in (name for name in self.gguf.tensors if name not in IN_THE_CONFIG):
            place = self._names.get(name) or self._names.get(name.removesuffix(".weight"))
            if place is None:
                raise self._no_place(name)
            places[place] = name
        self.check(places)

    def check(self, written: Mapping[str, Any]) -> None:
        """Raises ModelError when a parameter of the model is not among `written` (nor one that is the same tensor)."""
        have = set(written)
        gone = [key for key in self.shapes if not have & self._same.get(key, {key})]
        if gone:
            raise ModelError(
                f"{self.name}: {len(gone)} weights of a {self.gguf.architecture} are not in the file, first {gone[0]}",
                "a file with every weight of its model",
                HINT,
            )
        odd = sorted(have - set(self.shapes))
        if odd:
            raise self._no_place(odd[0])

    def _no_place(self, name: str) -> ModelError:
        return ModelError(
            f"{self.name}: {name} has no place in the model that transformers makes of a {self.gguf.architecture}",
            "a model that uses every tensor of its file",
            HINT,
        )


def _same_tensors(model: torch.nn.Module) -> dict[str, set[str]]:
    """For each name of a tied parameter, every name that it has."""
    names: dict[int, set[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), set()).add(name)
    return {name: group for group in names.values() for name in group if len(group) > 1}
