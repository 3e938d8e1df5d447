"""The text of a file, whatever it was written in: UTF-8, what a byte order mark says, or what is detected and told."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from pathlib import Path

from tmerge_tui.errors import DataError

MARKS = (  # the longer first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
DETECTED = [  # what files of one language are found in, Windows' own encodings among them
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
    *("koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
]
LOOKED_AT = 1 << 18  # bytes
PART = 1 << 20  # bytes unpacked at a time
FEW = 100 << 20  # bytes that any file may unpack to
MOST = 100  # times its size that a packed file may unpack to beyond that; text packs to a third or a tenth


def read_text(path: Path) -> tuple[str, list[str]]:
    """(content, notices); a file that ends in .gz is unpacked. Line ends become line feeds.

    Raises DataError when no encoding fits or the packed file is broken, OSError.
    """
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = _unpacked(data, path)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file: {error}", "a .gz file", "pack it again") from error
    text, encoding = _decoded(data, path)
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    notice = f"{path}: read as {encoding}, which was found by its content; save it as UTF-8 if letters are wrong"
    return plain, [notice] if encoding else []


def _unpacked(data: bytes, path: Path) -> bytes:
    """Raises DataError for a file that is all packing: a few bytes that stand for gigabytes."""
    parts, total = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        while part := stream.read(PART):
            parts.append(part)
            total += len(part)
            if total > FEW and total > MOST * len(data):
                raise DataError(
                    f"{path}: unpacks to more than {MOST} times its size", "packed text", "pack the text itself again"
                )
    return b"".join(parts)


def _decoded(data: bytes, path: Path) -> tuple[str, str]:
    """(text, encoding when it is a guess)."""
    mark = next((encoding for mark, encoding in MARKS if data.startswith(mark)), None)
    try:
        return data.decode(mark or "utf-8"), ""
    except UnicodeDecodeError as error:
        guess = None if mark else _detected(data)
        if guess is None:
            raise DataError(
                f"{path}: not UTF-8 text: {error.reason} at byte {error.start}", "UTF-8", "save the file as UTF-8"
            ) from error
    try:
        return data.decode(guess), guess
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: neither UTF-8 nor {guess}, which it looks like: {error.reason} at byte {error.start}",
            "text in one encoding",
            "save the file as UTF-8",
        ) from error


def _detected(data: bytes) -> str | None:
    """The encoding that fits best; None where the bytes are no text in any."""
    from charset_normalizer import from_bytes

    head = data[:LOOKED_AT]
    pairs = head[: len(head) // 2 * 2]
    zeros = (pairs[0::2].count(0), pairs[1::2].count(0))
    if max(zeros) > len(pairs) // 8 and min(zeros) < max(zeros) // 8:  # letters of an alphabet, two bytes each
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    if b"\0" in head:
        return None
    found = from_bytes(head.rpartition(b"\n")[0] or head, cp_isolation=DETECTED).best()
    return None if found is None else found.encoding
