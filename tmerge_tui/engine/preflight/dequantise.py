"""A quantised source, read: unpacked once into a folder that later runs find again.

A source is only read, so what quantisation took from it is all there is to say. It is unpacked block by block, on a
CPU, and an interrupted unpacking goes on where it was. The result lies under the Hub's home folder, named after the
file or the commit.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from tmerge_tui import machine
from tmerge_tui.engine.preflight.remote_checkpoint import outline
from tmerge_tui.errors import MemoryShortage, ModelError, TmergeError
from tmerge_tui.files import as_the_umask_leaves, parse_json, renamed, storage, write_atomic
from tmerge_tui.hub.headers import read_range
from tmerge_tui.hub.listing import Listing, RemoteFile
from tmerge_tui.hub.locate import Located
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.models.config import QUANTISED, QUANTISER_FILES, build_on_meta, first_line, read_config
from tmerge_tui.models.header import TensorInfo, read_header
from tmerge_tui.models.quantised.gguf_file import Part, local_parts
from tmerge_tui.models.quantised.gguf_model import GgufModel
from tmerge_tui.models.quantised.packed_folder import PackedFolder, plain_tensors
from tmerge_tui.models.quantised.schemes import scheme_of
from tmerge_tui.models.weight_files import INDEX
from tmerge_tui.quantities import size
from tmerge_tui.recipe import is_gguf
from tmerge_tui.run_folder import key
from tmerge_tui.system import insist

WAY = 2  # counts up when sources are unpacked otherwise
ABOUT = "tmerge_unpacked.json"  # beside the weights: what they were
COPIES = 3  # of the largest tensor in float32 while it is unpacked


class Packed(Protocol):
    """A model whose weights are packed; `head` is the folder of its configuration and tokenizer."""

    @property
    def precision(self) -> str: ...  # format and bits, in words
    @property
    def dtype(self) -> torch.dtype: ...  # of what is unpacked
    @property
    def rounded(self) -> bool: ...  # whether the format has rounded anything
    def write_head(self, folder: Path) -> tuple[str, ...]: ...
    def groups(self, head: Path) -> tuple[tuple[str, ...], ...]: ...
    def make(self, head: Path, group: tuple[str, ...]) -> dict[str, Tensor]: ...
    def sizes(self, group: tuple[str, ...]) -> list[int]: ...  # entries of each of its tensors
    def check(self, head: Path, written: Sequence[str]) -> None: ...


Advance = Callable[[int, bool], None]  # bytes written, and whether just now


def is_packed(located: Located) -> bool:
    """Whether the model is quantised in a way that is unpacked here."""
    if _is_file(located.folder):
        return True
    with suppress(OSError, ValueError, AttributeError):  # no configuration, or none that can be read: said elsewhere
        return scheme_of(located.folder) is not None
    return False


def _is_file(path: Path) -> bool:
    """Whether a model lies in a GGUF file, which may not be here yet, and not in a folder of whatever name."""
    return is_gguf(path) and not path.is_dir()


def unpacked_folder(located: Located) -> Path:
    """Where the unpacked model lies, or will lie."""
    from huggingface_hub import constants

    if located.commit is not None:
        name = f"{located.name.partition('@')[0]} {located.commit}"  # the same whichever way the commit was named
    else:
        file = located.folder if located.folder.is_file() else located.folder / "config.json"
        stat = file.stat()
        name = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return Path(constants.HF_HOME) / "tmerge" / "unpacked" / key(WAY, name)


def described(located: Located) -> Located:
    """The quantised source as what is known of it: its unpacked folder, or until then one of configuration and
    tokenizer. `note` says what it costs. Raises ModelError when it cannot be read here."""
    out = unpacked_folder(located)
    done = (out / "config.json").is_file()
    head = out if done else out.with_name(f"{out.name}.head")
    if not (head / "config.json").is_file():
        _write_head(located, head)
    about = parse_json((head / ABOUT).read_text(encoding="utf-8"))
    lost = "; what quantisation has rounded away stays away" if about["rounded"] else ""
    own = f"{located.name}: {about['precision']}, is read as {about['dtype']}{lost}"
    note = "; ".join(filter(None, (located.note, own, *about["doubts"])))
    known = replace(located, folder=head, note=note, packed=located.folder, precision=about["precision"])
    return replace(known, pending=None, unpacked=True) if done else known


def expected(located: Located, trust_remote_code: bool) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors that unpacking will give."""
    assert located.packed is not None
    config = read_config(located.folder, located.name, trust_remote_code)
    model = build_on_meta(config, located.name, trust_remote_code)
    once = set({id(v): name for name, v in reversed(model.state_dict(keep_vars=True).items())}.values())  # tied ones
    built = {name: tuple(value.shape) for name, value in model.state_dict().items() if name in once}
    scheme = None if _is_file(located.packed) else scheme_of(located.packed)
    if scheme is not None:
        weights = outline(located.pending, trust_remote_code) if located.pending else Checkpoint(located.packed)
        return plain_tensors({name: weights.info(name) for name in weights.names}, scheme, built, located.name)
    dtype: torch.dtype = getattr(torch, parse_json((located.folder / ABOUT).read_text(encoding="utf-8"))["dtype"])
    file = located.folder / "model.safetensors"
    return {name: TensorInfo(file, dtype, shape, 0, math.prod(shape) * dtype.itemsize) for name, shape in built.items()}


def unpacked(located: Located, trust_remote_code: bool, advance: Advance) -> Located:
    """The model with plain weights, written once; `advance` gets their bytes. What an interrupted unpacking has written
    is kept, what a damaged model has given is not. Raises ModelError, MemoryShortage, StorageError."""
    from filelock import FileLock

    assert located.packed is not None
    out = unpacked_folder(replace(located, folder=located.packed))
    with storage(out), FileLock(out.with_name(f"{out.name}.lock")):  # two runs unpack a model once
        if not (out / "config.json").is_file():
            try:
                _unpack(located, out, advance)
            except ModelError:
                shutil.rmtree(_making(out), ignore_errors=True)
                raise
    return replace(located, folder=out, pending=None, unpacked=True)


def _making(out: Path) -> Path:
    return out.with_name(f"{out.name}.making")


def _unpack(located: Located, out: Path, advance: Advance) -> None:
    assert located.packed is not None
    making = _making(out)
    with storage(making):
        making.mkdir(parents=True, exist_ok=True)
        for rest in making.glob(".*.part"):
            rest.unlink()
    with _reading(located):
        packed = _open(replace(located, folder=located.packed))
        groups = packed.groups(located.folder)
        places: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            file = making / f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            there = file.is_file()
            if not there:
                _room(located, packed, group)
                tensors = packed.make(located.folder, group)
                with storage(file), renamed(file) as temporary:
                    save_file(tensors, temporary, {"format": "pt"})
            written = read_header(file).tensors
            places |= dict.fromkeys(written, file.name)
            advance(sum(tensor.bytes for tensor in written.values()), not there)
        packed.check(located.folder, tuple(places))
    with storage(out):
        index = {"metadata": {}, "weight_map": places}
        write_atomic(making / INDEX, json.dumps(index, indent=2).encode())
        shutil.copytree(located.folder, making, dirs_exist_ok=True)
        as_the_umask_leaves(making)
        insist(lambda: making.rename(out))


def _room(located: Located, packed: Packed, group: tuple[str, ...]) -> None:
    sizes = packed.sizes(group)
    need, there = packed.dtype.itemsize * sum(sizes) + 4 * COPIES * max(sizes), machine.memory().available
    if need > there:
        raise MemoryShortage(
            f"{located.name}: unpacking its largest part takes {size(need)} of memory, {size(there)} are free",
            "room for one block of layers, and for one matrix in float32",
            "unpack it on a larger machine and name that folder, or name the model it was made from",
        )


def _open(located: Located) -> Packed:
    if _is_file(located.folder):
        parts = local_parts(located.folder) if located.pending is None else _remote_parts(located.pending)
        return GgufModel(parts, located.name)
    scheme = scheme_of(located.folder)
    assert scheme is not None
    return PackedFolder(located.folder, located.name, scheme)


def _remote_parts(listing: Listing) -> tuple[Part, ...]:
    def part(file: RemoteFile) -> Part:
        return Part(file.path, file.size, lambda start, end: read_range(listing, file, start, min(end, file.size)))

    return tuple(part(file) for file in listing.weights)


def _write_head(located: Located, head: Path) -> None:
    making = head.with_name(f"{head.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    with storage(head):
        making.mkdir(parents=True)
        readme = _card(located)
        if readme is not None:
            shutil.copyfile(readme, making / "README.md")
    with _reading(located):
        packed = _open(located)
        doubts = packed.write_head(making)
    about = {
        "precision": packed.precision,
        "dtype": str(packed.dtype).removeprefix("torch."),
        "rounded": packed.rounded,
        "doubts": doubts,
    }
    with storage(head):
        (making / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
        _drop_quantisation(making, about["dtype"])
        as_the_umask_leaves(making)
        insist(lambda: making.rename(head))


def _card(located: Located) -> Path | None:
    """The model card of the repository that a GGUF file comes from."""
    snapshot = next((folder for folder in located.folder.parents if folder.name == located.commit), None)
    card = None if snapshot is None else snapshot / "README.md"
    return card if card is not None and card.is_file() else None


@contextmanager
def _reading(located: Located) -> Iterator[None]:
    """Whatever readers of many formats raise, said as what it is: a source that cannot be read here."""
    try:
        yield
    except TmergeError:
        raise
    except Exception as error:
        raise ModelError(
            f"{located.name}: its quantised weights cannot be read: {first_line(error)}",
            "a packed model that the installed transformers unpacks on a CPU",
            "name the model it was made from, or upgrade transformers",
        ) from error


def _drop_quantisation(folder: Path, dtype: object) -> None:
    """Takes the mention of a packing that is gone out of the configuration."""
    for name in QUANTISER_FILES:
        (folder / name).unlink(missing_ok=True)
    path = folder / "config.json"
    data = parse_json(path.read_text(encoding="utf-8"))
    for section in (data, data.get("text_config") or {}):
        for name in QUANTISED:
            section.pop(name, None)
    path.write_text(json.dumps({**data, "dtype": dtype}, indent=2, ensure_ascii=False), encoding="utf-8")
