"""A checkpoint on disk: safetensors read lazily by byte range, and the same checkpoint with some tensors overwritten.

Only headers are read when a checkpoint is opened; they are checked against the files' sizes, so a cut download is
found before any work. Checkpoints in PyTorch's .bin format are read too; what is written from one is safetensors, with
the same tensors under the same names in the same shards.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmerge_tui.errors import ModelError, NumericsError, StorageError
from tmerge_tui.files import parse_json, storage
from tmerge_tui.models.header import TensorInfo, read_header, reading
from tmerge_tui.models.pickled import header_of, read_pickled, safetensors_name, write_safetensors
from tmerge_tui.models.weight_files import ADAPTER, FOREIGN_WEIGHTS, INDEX, find_weight_files, no_config
from tmerge_tui.system import insist, sync

CHUNK = 8 * 2**20  # bytes copied or checked at a time


class Checkpoint:
    """A folder with config.json and safetensors weights, in one file or in shards with an index.

    Raises ModelError when the folder, its config or weights are missing, when the index names files or tensors that
    are not there, and when a file is cut or its header damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ModelError(f"no model folder at {self.folder}", "a folder with config.json and safetensors weights")
        self.config_file = self.folder / "config.json"
        if not self.config_file.is_file():
            raise no_config(self.folder)
        found = find_weight_files(self.folder)
        self.weight_files, self.index_file, self.pickled = found.files, found.index_file, found.pickled
        self._headers: dict[Path, str] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._unpickled: dict[str, Tensor] = {}
        for file in self.weight_files:
            if self.pickled:
                tensors = read_pickled(file)
                header = header_of(file, tensors)
                self._unpickled.update(tensors)
            else:
                header = read_header(file)
            self._headers[file] = header.sha256
            self._tensors.update(header.tensors)
        self._check_index(found.index)
        if not self._tensors:
            raise ModelError(f"{self.folder} holds no tensor at all", "weights", "download the model again")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    @property
    def bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self.weight_files)

    def info(self, name: str) -> TensorInfo:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"{self.folder} has no tensor {name!r}", "a tensor of the checkpoint") from None

    def read(self, name: str, rows: Tensor | slice | None = None) -> Tensor:
        """A tensor [d0, ...] in the file's dtype, or only its `rows` [k, ...] (first axis; int64 indices or a slice).

        Only the bytes asked for are read. Raises ModelError when the file has changed or gone, IndexError for a row
        that is not there.
        """
        info = self.info(name)
        if rows is None:
            return self._read_spans(name, [(0, info.numel)]).view(info.shape)
        if not info.shape:
            raise IndexError(f"{name} is a scalar and has no rows")
        count, width = info.shape[0], math.prod(info.shape[1:])
        if isinstance(rows, slice):
            wanted: Iterable[int] = range(*rows.indices(count))
        else:
            wanted = [row + count if row < 0 else row for row in rows.tolist()]
        spans = []
        for first, last in _runs(wanted):
            if first < 0 or last >= count:
                raise IndexError(f"{name} has {count} rows, asked for {first} to {last}")
            spans.append((first * width, (last + 1) * width))
        return self._read_spans(name, spans).view(-1, *info.shape[1:])

    def check_finite(
        self, names: Iterable[str], advance: Callable[[int], None], rows: Mapping[str, int] | None = None
    ) -> None:
        """Streams over tensors; `advance` gets the bytes as they are checked. `rows`: how many rows of a tensor, when
        not all.

        Raises NumericsError naming the first tensor that holds NaN or Inf.
        """
        for name in names:
            info = self.info(name)
            if info.dtype.is_floating_point:
                step = CHUNK // info.dtype.itemsize
                limit = (rows or {}).get(name)
                last = info.numel if limit is None else min(info.numel, limit * math.prod(info.shape[1:]))
                for first in range(0, last, step):
                    values = self._read_spans(name, [(first, min(first + step, last))])
                    if not _finite(values):
                        raise NumericsError(
                            f"{name} of {self.folder} holds {int((~torch.isfinite(values.float())).sum())} NaN or Inf",
                            "finite weights",
                            "the checkpoint is damaged: download it again, or choose another model",
                        )
            advance(info.bytes)

    def fingerprint(self) -> str:
        """64 hex digits that change when the config or any weight file is exchanged or rewritten. Reads no weights."""
        digest = hashlib.sha256(self.config_file.read_bytes())
        for file in self.weight_files:
            stat = file.stat()
            line = f"{file.name} {stat.st_size} {stat.st_mtime_ns} {self._headers[file]}\n"
            digest.update(line.encode())
        return digest.hexdigest()

    @property
    def other_files(self) -> tuple[Path, ...]:
        """Every file that is no weight (config, tokenizer, templates, code, index), except in hidden sub-folders.

        Raises ModelError for a link that leads nowhere (a cut download).
        """
        found = []
        for folder, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in sorted(Path(folder) / name for name in files):
                kept = path == self.index_file and not self.pickled
                if path in self.weight_files or (path.name.endswith(FOREIGN_WEIGHTS) and not kept):
                    continue
                if path.name == ADAPTER:  # its weights stay behind; transformers would look for them
                    continue
                if path.is_symlink() and not path.exists():
                    raise ModelError(f"{path} is a link to nothing", "its content", "download the model again")
                if path.is_file():
                    found.append(path)
        return tuple(found)

    @property
    def written_index(self) -> dict[str, Any] | None:
        """The index of the safetensors shards that a sharded .bin checkpoint is written as; None for any other."""
        if self.index_file is None or not self.pickled:
            return None
        index = parse_json(self.index_file.read_text(encoding="utf-8"))
        return {**index, "weight_map": {name: safetensors_name(file) for name, file in index["weight_map"].items()}}

    def write_as_safetensors(self, file: Path, copy: Path, advance: Callable[[int], None]) -> None:
        """One of the .bin files as a safetensors file; `advance` gets bytes of tensors."""
        write_safetensors(copy, {n: t for n, t in self._unpickled.items() if self._tensors[n].file == file}, advance)

    def _check_index(self, index: Mapping[str, str]) -> None:
        missing = [name for name in index if name not in self._tensors]
        if missing and self.index_file:
            raise ModelError(
                f"{len(missing)} tensors that {self.index_file.name} names are in no file, first {missing[0]!r}",
                "an index that fits its shards",
                "download the model again",
            )

    def _read_spans(self, name: str, spans: list[tuple[int, int]]) -> Tensor:
        """Elements `spans` (first, past the last) of a tensor, joined in one flat tensor."""
        info = self.info(name)
        if self.pickled:
            flat = self._unpickled[name].reshape(-1)
            return torch.cat([flat[first:last] for first, last in spans] or [flat[:0]])
        values = torch.empty(sum(last - first for first, last in spans), dtype=info.dtype)
        target = memoryview(_bytes(values))
        done = 0
        with reading(info.file), open(info.file, "rb", buffering=0) as stream:
            for first, last in spans:
                stream.seek(info.start + first * info.dtype.itemsize)
                end = done + (last - first) * info.dtype.itemsize
                while done < end:
                    count = stream.readinto(target[done:end])
                    if not count:
                        raise ModelError(f"{info.file} has been cut while in use", "a file that stays as it is")
                    done += count
        return values


def copy_bytes(target: Checkpoint, names: Iterable[str]) -> int:
    """What `patch_checkpoint` will report to `advance` in all: bytes copied, then bytes of patched tensors."""
    weights = sum(target.info(name).bytes for name in target.names) if target.pickled else target.bytes
    others = sum(file.stat().st_size for file in target.other_files)
    return weights + others + sum(target.info(name).bytes for name in names)


def patch_checkpoint(
    target: Checkpoint,
    out: Path,
    patches: Mapping[str, Callable[[Tensor], Tensor]],
    advance: Callable[[int], None],
) -> None:
    """Copies `target` to the folder `out` and overwrites the tensors that `patches` names, in place.

    Each patch gets the tensor as it is in the file and returns one of the same shape, in any floating type; it is cast
    once, to the tensor's own dtype. Everything else (sharding, headers, names, untouched tensors, other files) stays
    byte for byte; the files of a .bin checkpoint become safetensors first, one for one. `out` appears whole at the end;
    an `out` that was there is replaced at that moment.

    Raises ModelError for an unknown tensor or a wrong shape, NumericsError naming a tensor that is not finite in its
    dtype, StorageError when `out` cannot be written.
    """
    for name in patches:
        target.info(name)
    origin, place = target.folder.resolve(), out.resolve()
    if place == origin or origin in place.parents or place in origin.parents:
        raise StorageError(f"output {out} and the target model {target.folder} overlap", "another output folder")
    part, old = (out.with_name(out.name + suffix) for suffix in (".part", ".old"))
    with storage(out):
        for leftover in (part, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        part.mkdir(parents=True)
    try:
        weights = [_copy_weights(target, file, part, advance) for file in target.weight_files]
        copies = [
            *weights,
            *(_copy(file, part / file.relative_to(target.folder), advance) for file in target.other_files),
        ]
        if target.written_index is not None:
            copies.append(part / INDEX)
            with storage(copies[-1]):
                copies[-1].write_bytes(json.dumps(target.written_index, indent=2, sort_keys=True).encode() + b"\n")
        places = {name: info for copy in weights for name, info in read_header(copy).tensors.items()}
        for name, patch in patches.items():
            _overwrite(places[name], _patched(name, target.read(name), patch))
            advance(places[name].bytes)
        with storage(out):
            for copy in copies:
                sync(copy)
            for folder in {copy.parent for copy in copies}:
                sync(folder)
            if out.exists():
                insist(lambda: out.rename(old))
            insist(lambda: part.rename(out))
            sync(out.parent)
            if old.exists():
                shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # room for whoever met a full disk
        raise


def _patched(name: str, before: Tensor, patch: Callable[[Tensor], Tensor]) -> Tensor:
    after = patch(before)
    if after.shape != before.shape:
        raise ModelError(f"{name}: new shape {list(after.shape)}", f"the tensor's own {list(before.shape)}")
    after = after.detach().cpu()
    cast = after.to(before.dtype).contiguous()
    if not _finite(cast):
        kind = str(before.dtype).removeprefix("torch.")
        if _finite(after):
            peak = float(after.abs().max())
            found = f"{name}: {peak:.4g} does not fit {kind}, whose largest is {torch.finfo(before.dtype).max:.4g}"
        else:
            found = f"{name}: fused values hold NaN or Inf"
        raise NumericsError(found, "finite weights", "use a smaller alpha, or norm: keep")
    return cast


def _overwrite(info: TensorInfo, values: Tensor) -> None:
    with storage(info.file), open(info.file, "rb+") as stream:
        stream.seek(info.start)
        stream.write(_bytes(values))


def _copy_weights(target: Checkpoint, file: Path, folder: Path, advance: Callable[[int], None]) -> Path:
    """The same file in `folder`, or the same tensors as safetensors when it is a .bin file."""
    if not target.pickled:
        return _copy(file, folder / file.relative_to(target.folder), advance)
    copy = folder / safetensors_name(file.name)
    target.write_as_safetensors(file, copy, advance)
    return copy


def _copy(source: Path, copy: Path, advance: Callable[[int], None]) -> Path:
    """Content, not links: files of the Hub cache are links."""
    with storage(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(copy, "wb") as stream:
            for chunk in _chunks(source):
                stream.write(chunk)
                advance(len(chunk))
    return copy


def _chunks(file: Path) -> Iterator[bytes]:
    with reading(file), open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _bytes(values: Tensor) -> Any:
    """The memory of a contiguous tensor, to read into or write from."""
    return values.view(-1).view(torch.uint8).numpy()


def _finite(values: Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def _runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of stretches of neighbouring rows, so that they are read at once."""
    first = last = None
    for row in rows:
        if first is None or last is None:
            first = last = row
        elif row == last + 1:
            last = row
        else:
            yield first, last
            first = last = row
    if first is not None and last is not None:
        yield first, last
