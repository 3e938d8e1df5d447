"""Mutated checkpoints: a clear error, or the tensors that the safetensors library and torch read there."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tests.soak.edits import NASTY, edited, edited_bytes, paths, propose_bytes, propose_structure
from tests.soak.judge import Campaign, Edit
from tmerge_tui.models.checkpoint import Checkpoint, patch_checkpoint

NUMBERS = (0, -1, 1, 7, 8, 9, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 100_000_001)
KINDS = ("F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F64", "X", "f32", "")
PARTS = ("start", "end", "both", "shape", "dtype")
LINKS = ("../secret.safetensors", "/etc/hostname", "model.safetensors", "gone.safetensors", "..", "/dev/zero")


class Evil:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> Any:
        return os.system, ("touch entered",)


@functools.cache
def tensors() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(4, 6, generator=made), "a.bias": torch.randn(4, generator=made),
        "b.weight": torch.randn(3, 4, generator=made).half(), "c.weight": torch.randn(2, 2, generator=made).bfloat16(),
        "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "ids": torch.arange(5),
    }  # fmt: skip


@functools.cache
def layout() -> tuple[str, bytes]:
    """(header as JSON, data)"""
    from safetensors.torch import save

    raw = save(tensors(), {"format": "pt"})
    length = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + length].decode().rstrip(), raw[8 + length :]


def propose(dice: Random) -> list[Edit]:
    kind = dice.choice(
        ("header", "header", "header", "length", "bytes", "offsets", "index", "pickle", "zip", "link", "config")
    )
    if kind == "header":
        places = list(paths(json.loads(layout()[0])))
        return [("header", edit) for edit in propose_structure(dice, places)]
    if kind == "offsets":
        names = list(json.loads(layout()[0]))[1:]
        return [
            (
                "offsets",
                dice.choice(names),
                dice.choice(("start", "end", "both", "shape", "dtype")),
                dice.randrange(len(NUMBERS)),
            )
            for _ in range(dice.randint(1, 3))
        ]
    if kind == "length":
        return [("length", dice.randrange(len(NUMBERS)), dice.random() < 0.5)]
    if kind in ("bytes", "pickle", "config"):
        return [(kind, edit) for edit in propose_bytes(dice)]
    if kind == "index":
        return [("index", dice.choice(("model.safetensors", *LINKS)), dice.randrange(len(NASTY)), dice.random())]
    return [(kind, dice.choice(LINKS), dice.randrange(6))]


def attempt(edits: list[Edit], folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    (folder / "secret.safetensors").write_bytes(_whole())
    (model / "config.json").write_bytes(edited_bytes(b'{"model_type": "llama"}', _of("config", edits)))
    kind = edits[0][0] if edits else "none"
    file = model / "model.safetensors"
    if kind in ("pickle", "zip"):
        file = model / "pytorch_model.bin"
        file.write_bytes(_pickled(edits))
    elif kind == "link":
        file.symlink_to(edits[0][1])
    elif kind == "index":
        _shards(model, edits[0])
    else:
        file.write_bytes(_safetensors(edits))
    os.chdir(folder)
    try:
        found = Checkpoint(model)
        mine = {name: found.read(name) for name in found.names}
        found.fingerprint()
        theirs = _theirs(found)
        assert set(mine) == set(theirs), "other tensors than the reference reads"
        assert all(_same(mine[name], theirs[name]) for name in mine), "a tensor with other content"
        patch_checkpoint(found, folder / "out", {}, lambda count: None)
        assert set(Checkpoint(folder / "out").names) == set(mine), "a copy with other tensors"
    finally:
        assert not (folder / "entered").exists(), "code that was in the file has run"


def _of(kind: str, edits: list[Edit]) -> list[Edit]:
    return [edit[1] for edit in edits if edit[0] == kind]


def _whole(header: bytes | None = None, length: int | None = None) -> bytes:
    head, data = layout()
    raw = head.encode() if header is None else header
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw) if length is None else length % 2**64) + raw + data


def _safetensors(edits: list[Edit]) -> bytes:
    head = edited(json.loads(layout()[0]), _of("header", edits))
    for edit in edits:
        if edit[0] == "offsets":
            _move(head, *edit[1:])
    try:
        raw = json.dumps(head).encode("utf-8", "surrogatepass")
    except RecursionError:
        raw = b'{"a":' * 20000
    length = next(
        (NUMBERS[edit[1]] if edit[2] else len(raw) + NUMBERS[edit[1]] for edit in edits if edit[0] == "length"), None
    )
    return edited_bytes(_whole(raw, length), _of("bytes", edits))


def _move(head: dict[str, Any], name: str, what: str, number: int) -> None:
    entry = head[name]
    if what == "dtype":
        entry["dtype"] = KINDS[number % len(KINDS)]
    elif what == "shape":
        entry["shape"] = [*entry["shape"], NUMBERS[number]]
    else:
        for place in {"start": (0,), "end": (1,), "both": (0, 1)}[what]:
            entry["data_offsets"][place] += NUMBERS[number] if number % 2 else -NUMBERS[number] // 3


def _shards(model: Path, edit: Edit) -> None:
    _, name, nasty, roll = edit
    (model / "one.safetensors").write_bytes(_whole())
    places: Any = dict.fromkeys(tensors(), "one.safetensors")
    if roll < 0.5:
        places["a.bias"] = name
    elif roll < 0.75:
        places = copy.deepcopy(NASTY[nasty])
    else:
        places["not there"] = "one.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), "utf-8", "surrogatepass")


def _pickled(edits: list[Edit]) -> bytes:
    out = io.BytesIO()
    kind, *more = edits[0]
    if kind == "pickle":
        torch.save(tensors(), out)
        return edited_bytes(out.getvalue(), _of("pickle", edits))
    which = more[1]
    if which == 0:
        torch.save({"a": Evil()}, out)
    elif which == 1:
        torch.save({"a": Evil()}, out, _use_new_zipfile_serialization=False)
    elif which == 2:
        out.write(pickle.dumps(Evil()))
    elif which == 3:  # a bomb: 200 MB of zeros in a few bytes
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 200_000_000)
    elif which == 4:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("../../entered", b"x")
            archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    else:
        torch.save([tensors()], out)
    return out.getvalue()


def _theirs(found: Checkpoint) -> dict[str, Tensor]:
    read: dict[str, Tensor] = {}
    for file in found.weight_files:
        if found.pickled:
            read |= torch.load(file, weights_only=True)
        else:
            with safe_open(file, "pt") as opened:
                read |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return read


def _same(mine: Tensor, theirs: Tensor) -> bool:
    raw = [bytes(one.contiguous().view(-1).view(torch.uint8).numpy()) if one.numel() else b"" for one in (mine, theirs)]
    return mine.dtype == theirs.dtype and mine.shape == theirs.shape and raw[0] == raw[1]


CHECKPOINTS = Campaign("checkpoints", 3_000, propose, attempt)
