"""Archives, parts and checksums. References: tarfile, zipfile and `sha256sum`."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import archive
import pytest
from inside import ReleaseError

EPOCH = 1_700_000_000


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_archive_depends_on_names_and_content_alone(tmp_path: Path, name: str) -> None:
    made = []
    for mode, order in ((0o600, 1), (0o777, -1)):
        folder = tmp_path / str(mode)
        folder.mkdir()
        (folder / name).write_text("")
        for member in ("run", "text"):
            (folder / member).write_text(member * 1000)
            (folder / member).chmod(mode)
        members = {f"top/{member}": folder / member for member in ("run", "text")[::order]}
        archive.make(folder / name, members, "top/run", EPOCH)
        made.append((folder / name).read_bytes())
    assert made[0] == made[1]


def test_tar_has_the_date_modes_and_no_owner(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x" * 5000)
    archive.make(tmp_path / "a.tar.gz", {"z": tmp_path / "run", "run": tmp_path / "run"}, "run", EPOCH)
    with tarfile.open(tmp_path / "a.tar.gz") as made:
        entries = [(e.name, e.mode, e.mtime, e.uid, e.gid, e.uname, e.size) for e in made]
    assert entries == [("run", 0o755, EPOCH, 0, 0, "", 5000), ("z", 0o644, EPOCH, 0, 0, "", 5000)]


def test_zip_has_the_date_and_modes(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x" * 5000)
    archive.make(tmp_path / "a.zip", {"z": tmp_path / "run", "run": tmp_path / "run"}, "run", EPOCH)
    with zipfile.ZipFile(tmp_path / "a.zip") as made:
        assert made.testzip() is None
        entries = [(e.filename, e.external_attr >> 16 & 0o777, e.date_time, e.file_size) for e in made.infolist()]
    date = (2023, 11, 14, 22, 13, 20)
    assert entries == [("run", 0o755, date, 5000), ("z", 0o644, date, 5000)]


@pytest.mark.parametrize(("size", "parts"), [(10, 0), (11, 2), (20, 2), (21, 3)])
def test_parts_joined_are_the_whole(tmp_path: Path, size: int, parts: int) -> None:
    whole = tmp_path / "a.tar.gz"
    whole.write_bytes(bytes(range(size)))
    made = archive.split(whole, 10)
    assert [file.name for file in made] == ([f"a.tar.gz.part{i + 1:02}" for i in range(parts)] or ["a.tar.gz"])
    assert b"".join(file.read_bytes() for file in made) == bytes(range(size))
    assert archive.sha256(*made) == archive.sha256(whole)


def test_sums_hold_until_a_byte_changes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("b", "a c")]
    for file in files:
        file.write_text(file.name)
    archive.write_sums(tmp_path / archive.SUMS, {file.name: archive.sha256(file) for file in files})
    command = ["sha256sum", "-c", archive.SUMS]
    reference = shutil.which("sha256sum") is not None
    assert not reference or subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    assert set(archive.check(tmp_path)) == {"b", "a c"}

    files[0].write_text("c")
    assert not reference or subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    files[1].unlink()
    with pytest.raises(ReleaseError, match="a c is missing, b was changed"):
        archive.check(tmp_path)
    (tmp_path / archive.SUMS).unlink()
    with pytest.raises(ReleaseError, match=r"no .*SHA256SUMS"):
        archive.check(tmp_path)
