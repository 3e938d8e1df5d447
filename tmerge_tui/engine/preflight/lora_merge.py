"""A LoRA adapter as source or target: merged onto its base once, into a folder that later runs find again.

The result is the base's checkpoint, byte for byte, with the changed tensors replaced, and with the adapter's tokenizer
where it brings one; it lies under the Hub's home folder, named after the commits (or, for local folders, the files) of
adapter and base.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tmerge_tui.extras import require
from tmerge_tui.files import storage
from tmerge_tui.hub.locate import Located, fetched, find
from tmerge_tui.models.checkpoint import Checkpoint, patch_checkpoint
from tmerge_tui.models.tokenizer import tokenizer_files
from tmerge_tui.recipe import ModelChoice
from tmerge_tui.run_folder import key
from tmerge_tui.system import insist

WAY = 2  # counts up when merges are made otherwise, so that older ones are not taken for new ones


def whole_folder(choice: ModelChoice) -> Path:
    """The folder of a model that can be loaded as it is: downloaded, and merged when it is an adapter."""
    return merged(fetched(find(choice)), choice.trust_remote_code).folder


def require_peft(adapter: Located) -> None:
    """Raises ExtraMissing when adapters cannot be merged here."""
    require(f"{adapter.name} is a LoRA adapter for {adapter.base.name if adapter.base else '?'}", "lora")


def brings_tokenizer(adapter: Path) -> bool:
    """Whether the folder of an adapter has a tokenizer of its own, which then is that of the merge."""
    return (adapter / "tokenizer_config.json").is_file()


def already_merged(located: Located) -> Located:
    """`located`, an adapter whose merge lies there from an earlier run, as that merge; any other as it is."""
    if located.whole or not (_merged_folder(located) / "config.json").is_file():
        return located
    return _as_merge(located)


def merged(located: Located, trust_remote_code: bool) -> Located:
    """`located` itself, or the merge of an adapter and its base, both of which are on this disk.

    Raises ExtraMissing; ModelError: an adapter that does not fit its base; StorageError; NumericsError.
    """
    located = already_merged(located)
    if located.whole:
        return located
    require_peft(located)
    _merge(located, _merged_folder(located), trust_remote_code)
    return _as_merge(located)


def _as_merge(located: Located) -> Located:
    return replace(located, folder=_merged_folder(located), pending=None, adapter=located.folder)


def _merged_folder(adapter: Located) -> Path:
    """Where the merge of this adapter and this base lies, or will lie."""
    from huggingface_hub import constants

    assert adapter.base is not None and adapter.adapter is None
    return Path(constants.HF_HOME) / "tmerge" / "merged" / key(WAY, _identity(adapter), _identity(adapter.base))


def _merge(adapter: Located, out: Path, trust_remote_code: bool) -> None:
    from tmerge_tui.engine.preflight.adapter_weights import changed_tensors

    assert adapter.base is not None
    checkpoint = Checkpoint(adapter.base.folder)
    changed = changed_tensors(adapter, adapter.base, checkpoint.names, trust_remote_code)

    def patch(value: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda before: value

    making = out.with_name(f"{out.name}.making")
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    patch_checkpoint(checkpoint, making, {name: patch(value) for name, value in changed.items()}, lambda count: None)
    with storage(out):
        if brings_tokenizer(adapter.folder):
            _exchange_tokenizer(making, adapter.folder, trust_remote_code)
        insist(lambda: making.rename(out))


def _exchange_tokenizer(folder: Path, adapter: Path, trust_remote_code: bool) -> None:
    """Puts the adapter's tokenizer in place of the base's, whole: two halves of two would be neither."""
    for file in tokenizer_files(folder, trust_remote_code):
        (folder / file).unlink()
    for file in tokenizer_files(adapter, trust_remote_code):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(adapter / file, folder / file)


def _identity(located: Located) -> str:
    """The commit, or of a folder what changes when its files do."""
    if located.commit is not None:
        return f"{located.name} {located.commit}"
    files = sorted(path for path in located.folder.iterdir() if path.is_file())
    lines = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
