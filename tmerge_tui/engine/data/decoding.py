"""The text of a file, whatever it was written in: UTF-8, what a byte order mark says, or what is detected and told."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from tmerge_tui.engine.data.encodings import detected, two_bytes_each
from tmerge_tui.engine.data.packing import read_bytes
from tmerge_tui.errors import DataError

MARKS = (  # the longer first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
ESCAPES = (b"\x1b$B", b"\x1b$@", b"\x1b(J")  # Japanese mail: bytes below 128, between escapes
DAMAGED = 10  # characters beyond ASCII that are whole for each that is not, and it is UTF-8 with a few bytes broken


def read_text(path: Path) -> tuple[str, list[str]]:
    """(content, notices); a packed file is unpacked. Line ends become line feeds; byte order marks go.

    Raises DataError when no encoding fits or the packed file is broken, OSError.
    """
    text, told = _decoded(read_bytes(path), path)
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\ufeff" in plain:
        plain = re.sub("^\ufeff", "", plain, flags=re.MULTILINE)  # files that were joined
    return plain, [f"{path}: {told}"] if told else []


def _decoded(data: bytes, path: Path) -> tuple[str, str]:
    """(text, what to say about a guess)."""
    mark = next((encoding for mark, encoding in MARKS if data.startswith(mark)), None)
    guess = None if mark else two_bytes_each(data)
    if guess is None and not mark and any(escape in data for escape in ESCAPES):
        guess = "iso2022_jp"
    if guess is None:
        try:
            return data.decode(mark or "utf-8"), ""
        except UnicodeDecodeError as error:
            broken = error
        mended = data.decode("utf-8", "replace")
        bad = mended.count("\ufffd")
        if not mark and DAMAGED * bad <= sum(ord(char) > 127 for char in mended) - bad:
            return mended, f"{bad} characters are broken: � stands for each"
        guess = None if mark else detected(data)
        if guess is None:
            raise DataError(
                f"{path}: not UTF-8 text: {broken.reason} at byte {broken.start}", "UTF-8", "save the file as UTF-8"
            ) from broken
    try:
        text = data.decode(guess)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: neither UTF-8 nor {guess}, which it looks like: {error.reason} at byte {error.start}",
            "text in one encoding",
            "save the file as UTF-8",
        ) from error
    return text, f"read as {guess}, which was found by its content; save it as UTF-8 if letters are wrong"
