"""A GGUF file as a model folder: what its configuration and tokenizer are, and its weights, block by block."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.errors import ModelError
from tmerge_tui.models.config import auto_class, quiet, read_config
from tmerge_tui.models.quantised.gguf_config import complete
from tmerge_tui.models.quantised.gguf_file import PLAIN, Part, open_gguf
from tmerge_tui.models.quantised.gguf_weights import GgufWeights

WHOLE = "*"  # stands for every tensor of the file
SPLITS_AS_GPT2 = {"default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "exaone", "starcoder", "refact"}


class GgufModel:
    """One model in one or several files. Raises ModelError for what cannot be read."""

    def __init__(self, parts: Sequence[Part], name: str) -> None:
        self.name, self.gguf = name, open_gguf(parts)

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are read as: their own type where they are not quantised."""
        kinds = {tensor.kind for tensor in self.gguf.tensors.values()}
        if kinds == {"F32"}:
            return torch.float32
        return torch.float16 if kinds <= {"F32", "F16"} else torch.bfloat16

    @property
    def precision(self) -> str:
        return f"GGUF {' and '.join(self.gguf.kinds[:3])}, {self.gguf.bits:.1f} bits a weight"

    @property
    def rounded(self) -> bool:
        """Whether anything was lost."""
        return any(kind not in PLAIN for kind in self.gguf.kinds)

    def write_head(self, folder: Path) -> tuple[str, ...]:
        """Configuration, tokenizer and a card with its licence; what is to be said of them. Raises what transformers
        raises."""
        from transformers import AutoConfig, AutoTokenizer

        with quiet(), self._file(folder) as file:
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        if not self._transformers_own:
            complete(config, self.gguf)
            GgufWeights(self.gguf, config, self.name).foresee()
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        licence = self.gguf.metadata.get("general.license")
        if licence and not (folder / "README.md").exists():
            (folder / "README.md").write_text(f"---\nlicense: {json.dumps(licence)}\n---\n", encoding="utf-8")
        return tuple(self._doubts())

    def groups(self, head: Path) -> tuple[tuple[str, ...], ...]:
        """What is unpacked together; `head` has the configuration."""
        return ((WHOLE,),) if self._transformers_own else self._weights(head).blocks

    def make(self, head: Path, group: tuple[str, ...]) -> dict[str, Tensor]:
        """The tensors of one group, as transformers names them."""
        if group == (WHOLE,):
            return self._at_once(head)
        return self._weights(head).block(group, self.dtype)

    def sizes(self, group: tuple[str, ...]) -> list[int]:
        """Entries of each tensor of a group."""
        names = self.gguf.tensors if group == (WHOLE,) else group
        return [math.prod(self.gguf.tensors[name].shape) for name in names]

    def check(self, head: Path, written: Sequence[str]) -> None:
        """Raises ModelError when not every parameter of the model is among `written`."""
        self._weights(head).check(dict.fromkeys(written))

    @property
    def _transformers_own(self) -> bool:
        """Whether transformers reads this architecture by its newer way, which knows its own configuration and has no
        table of names."""
        try:
            from transformers.integrations.gguf.utils import is_gguf_arch_supported
        except ImportError:  # before it had one
            return False
        return bool(is_gguf_arch_supported(self.gguf.architecture))

    def _weights(self, head: Path) -> GgufWeights:
        if not hasattr(self, "_known"):
            config = read_config(head, self.name, False)
            self._known = GgufWeights(self.gguf, config, self.name, not self._transformers_own)
        return self._known

    def _at_once(self, head: Path) -> dict[str, Tensor]:
        import transformers

        if len(self.gguf.parts) > 1:
            raise ModelError(
                f"{self.name}: a {self.gguf.architecture} is read from one file, and this model has "
                f"{len(self.gguf.parts)}",
                "one file",
                "join them: llama-gguf-split --merge FIRST OUT",
            )
        file, config = Path(self.gguf.parts[0].name), read_config(head, self.name, False)
        with quiet():
            model = auto_class(config).from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=self.dtype,
                local_files_only=True,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
        tied = {name for name in getattr(model, "all_tied_weights_keys", None) or ()}
        return {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}

    @contextmanager
    def _file(self, folder: Path) -> Iterator[Path]:
        """A file that transformers takes for the first one: itself, or its head with room where its data would be."""
        first = self.gguf.parts[0]
        if Path(first.name).is_file():
            yield Path(first.name)
            return
        beginning = folder / Path(first.name).name
        try:
            with open(beginning, "wb") as stream:
                stream.write(first.read(0, self.gguf.head))
                stream.truncate(first.size)  # takes no room on the disk
            yield beginning
        finally:
            beginning.unlink(missing_ok=True)

    def _doubts(self) -> Iterator[str]:
        metadata = self.gguf.metadata
        split = str(metadata.get("tokenizer.ggml.pre", "default"))
        if metadata.get("tokenizer.ggml.model") == "gpt2" and split not in {*_known_splits(), *SPLITS_AS_GPT2}:
            yield f"its tokenizer splits text as {split} does, which transformers does not know: GPT-2's rules are used"


def _known_splits() -> Any:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return ()
    return GGUF_PRE_TOKENIZER_SPLITS
