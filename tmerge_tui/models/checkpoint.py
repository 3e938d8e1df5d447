"""A checkpoint on disk: safetensors read lazily by byte range, and the same checkpoint with some tensors overwritten.

Only headers are read when a checkpoint is opened; they are checked against the files' sizes, so a cut download is
found before any work.
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
from tmerge_tui.files import storage
from tmerge_tui.models.header import TensorInfo, read_header, reading

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHUNK = 8 * 2**20  # bytes copied or checked at a time

# Weights in other formats and copies of the same weights: neither read nor copied.
FOREIGN_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml"),
    *(".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".ot"),
    *(".safetensors.index.json", ".bin.index.json"),
)


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
            raise ModelError(
                f"{self.folder} has no config.json",
                "a model as save_pretrained writes it: config.json, *.safetensors, tokenizer files",
                _without_config_hint(self.folder),
            )
        self.index_file: Path | None = None
        self.weight_files = self._find_weights()
        self._headers: dict[Path, str] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for file in self.weight_files:
            header = read_header(file)
            self._headers[file] = header.sha256
            self._tensors.update(header.tensors)
        self._check_index()
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
            return self._read_spans(info, [(0, info.numel)]).view(info.shape)
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
        return self._read_spans(info, spans).view(-1, *info.shape[1:])

    def check_finite(self, names: Iterable[str], advance: Callable[[int], None]) -> None:
        """Streams over tensors; `advance` gets the bytes as they are checked.

        Raises NumericsError naming the first tensor that holds NaN or Inf.
        """
        for name in names:
            info = self.info(name)
            if info.dtype.is_floating_point:
                step = CHUNK // info.dtype.itemsize
                for first in range(0, info.numel, step):
                    values = self._read_spans(info, [(first, min(first + step, info.numel))])
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
                if path in self.weight_files or (path != self.index_file and path.name.endswith(FOREIGN_WEIGHTS)):
                    continue
                if path.is_symlink() and not path.exists():
                    raise ModelError(f"{path} is a link to nothing", "its content", "download the model again")
                if path.is_file():
                    found.append(path)
        return tuple(found)

    def _find_weights(self) -> tuple[Path, ...]:
        """The files transformers would load: the single file before the sharded ones."""
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        if single.is_symlink() or single.exists():
            return (single,)
        if not index.exists():
            raise _no_safetensors(self.folder)
        self.index_file = index
        try:
            self._index = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{index} cannot be read: {error}", "JSON with a weight_map", "download the model again"
            ) from error
        files = sorted({str(name) for name in self._index.values()})
        if any(Path(name).name != name for name in files):
            raise ModelError(f"{index} names files outside its own folder", "names of shards beside it")
        missing = [name for name in files if not (self.folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{self.folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:4])}",
                f"every file that {INDEX} names",
                "download the model again",
            )
        return tuple(self.folder / name for name in files)

    def _check_index(self) -> None:
        if self.index_file is None:
            return
        missing = [name for name in self._index if name not in self._tensors]
        if missing:
            raise ModelError(
                f"{len(missing)} tensors that {INDEX} names are in no file, first {missing[0]!r}",
                "an index that fits its shards",
                "download the model again",
            )

    def _read_spans(self, info: TensorInfo, spans: list[tuple[int, int]]) -> Tensor:
        """Elements `spans` (first, past the last) of a tensor, joined in one flat tensor."""
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
    files = (*target.weight_files, *target.other_files)
    return sum(file.stat().st_size for file in files) + sum(target.info(name).bytes for name in names)


def patch_checkpoint(
    target: Checkpoint,
    out: Path,
    patches: Mapping[str, Callable[[Tensor], Tensor]],
    advance: Callable[[int], None],
) -> None:
    """Copies `target` to the folder `out` and overwrites the tensors that `patches` names, in place.

    Each patch gets the tensor as it is in the file and returns one of the same shape, in any floating type; it is cast
    once, to the tensor's own dtype. Everything else (sharding, headers, names, untouched tensors, other files) stays
    byte for byte. `out` appears whole at the end; an `out` that was there is replaced at that moment.

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
        copies = {}
        for file in (*target.weight_files, *target.other_files):
            copies[file] = _copy(file, part / file.relative_to(target.folder), advance)
        for name, patch in patches.items():
            info = target.info(name)
            _overwrite(copies[info.file], info, _patched(name, target.read(name), patch))
            advance(info.bytes)
        with storage(out):
            for copy in copies.values():
                _sync(copy)
            for folder in {copy.parent for copy in copies.values()}:
                _sync(folder)
            if out.exists():
                out.rename(old)
            part.rename(out)
            _sync(out.parent)
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


def _overwrite(copy: Path, info: TensorInfo, values: Tensor) -> None:
    with storage(copy), open(copy, "rb+") as stream:
        stream.seek(info.start)
        stream.write(_bytes(values))


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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def _without_config_hint(folder: Path) -> str:
    if any(folder.glob("*.gguf")):
        return "GGUF files are quantised copies: name the model they were made from"
    if (folder / "adapter_config.json").is_file():
        return "this is a LoRA adapter: merge it into its base model first (peft: merge_and_unload, save_pretrained)"
    return "check the path; in the Hub cache, name the folder below snapshots/"


def _no_safetensors(folder: Path) -> ModelError:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return ModelError(
            f"{folder} has only PyTorch pickle weights (.bin, .pth)",
            "safetensors weights, which is what this version reads",
            "convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    if any(folder.glob("*.gguf")):
        return ModelError(
            f"{folder} has only GGUF weights", "safetensors weights", "name the model they were made from"
        )
    if any(folder.glob("*.safetensors")):
        return ModelError(
            f"{folder} has safetensors files but neither {WEIGHTS} nor {INDEX}",
            "one of them, as save_pretrained writes",
            "the download is incomplete, or the folder holds an adapter: merge that into its base model first",
        )
    return ModelError(f"{folder} has no weights", f"{WEIGHTS}, or {INDEX} with its shards", "download the model again")
