"""A file is read in one sitting."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 400  # lines


def test_no_file_is_longer_than_400_lines() -> None:
    files = [path for folder in ("tmerge_tui", "tests", "build") for path in (ROOT / folder).rglob("*.py")]
    assert ROOT / "tmerge_tui" / "cli.py" in files and Path(__file__) in files
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
