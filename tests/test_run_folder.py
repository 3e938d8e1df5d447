"""Pieces of tensors: what is read back, and what becomes of damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tmerge_tui.errors import StorageError
from tmerge_tui.run_folder import RunDir, open_piece


@pytest.fixture
def piece(tmp_path: Path) -> Path:
    run = RunDir.create(tmp_path / "run")
    path = run.piece("thing", "x")
    run.save(path, {"a": torch.arange(6.0).view(3, 2), "b": torch.ones(1)}, {"note": [1, 2]})
    return path


def test_a_piece_is_read_as_it_was_saved(piece: Path) -> None:
    tensors, meta = RunDir(piece.parent.parent).load(piece)
    assert torch.equal(tensors["a"], torch.arange(6.0).view(3, 2)) and meta == {"note": [1, 2]}
    with open_piece(piece) as file:
        part = file.get_slice("a")[1:]
    assert part.tolist() == [[2.0, 3.0], [4.0, 5.0]]  # still there when the file is closed


@pytest.mark.parametrize("damage", [b"", b"torn", b"\xff" * 64, None])
def test_damage_is_a_storage_error_that_says_what_to_do(piece: Path, damage: bytes | None) -> None:
    piece.write_bytes(piece.read_bytes()[:-1] if damage is None else damage)
    for read in (lambda: RunDir(piece.parent.parent).load(piece), lambda: open_piece(piece).__enter__()):
        with pytest.raises(StorageError, match="delete that file and run again") as caught:
            read()
        assert str(piece) in caught.value.found


def test_damage_found_while_reading_too_and_other_errors_pass(piece: Path) -> None:
    with pytest.raises(StorageError, match="thing-x"), open_piece(piece) as file:
        file.get_tensor("never written")
    with pytest.raises(ZeroDivisionError), open_piece(piece):
        raise ZeroDivisionError
