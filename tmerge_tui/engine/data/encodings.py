"""Which encoding bytes are in that are not UTF-8 and have no byte order mark.

charset-normalizer tells scripts apart well, and Latin ones badly: its guess for French in cp1252 is cp1257. So between
Latin encodings the letters decide: a text is in the one in which its letters beyond ASCII are all of one language.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

DETECTED = [  # what files of one language are found in, Windows' own encodings among them
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
    *("koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
]
LATIN = {  # letters beyond ASCII of the languages written in each; the first encoding wins a tie
    "cp1252": (
        "àâæçéèêëîïôœùûüÿ", "äöüßé", "áéíñóúü", "àáâãçéêíóôõúü", "àèéìíîòóùú", "åäöéæøóòâôê", "áéíóúýþæðö",
        "áéëïíóöúüèê", "àçéèíïóòúü",
    ),
    "cp1250": ("áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "ąćęłńóśźż", "áéíóöőúüű", "ăâîşţ", "čćđšž"),
    "iso8859_2": ("áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "ąćęłńóśźż", "áéíóöőúüű", "ăâîşţ", "čćđšž"),
    "cp1254": ("çğıi̇öşüâîû",),
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž"),
}  # fmt: skip
HEBREW = range(0xE0, 0xFB)  # its letters in cp1255, where Cyrillic encodings have letters of both cases
LOOKED_AT = 1 << 18  # bytes


def two_bytes_each(data: bytes) -> str | None:
    """utf-16-le or utf-16-be where letters of an alphabet have a zero beside them; None where they have not."""
    head = data[:LOOKED_AT]
    if len(head) % 2 or not head:
        return None
    zeros = (head[0::2].count(0), head[1::2].count(0))
    if max(zeros) > len(head) // 16 and min(zeros) < max(zeros) // 8:
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    return None


def wide(data: bytes) -> str | None:
    """utf-16-le or utf-16-be of other scripts (Chinese, Japanese, Thai and the like), None where bytes are not so.

    They are where they give assigned characters alone, line feeds or spaces among them: bytes of another encoding are
    next to never all of these at once.
    """
    head = data[:LOOKED_AT]
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = head.decode(encoding)
        except UnicodeDecodeError:
            continue
        kinds = {unicodedata.category(char) for char in text if char not in "\n\r\t"}
        if kinds.isdisjoint({"Cn", "Co", "Cc", "Cs"}) and ("\n" in text or " " in text or "\u3002" in text):
            return encoding
    return None


def detected(data: bytes) -> str | None:
    """The encoding that fits best; None where the bytes are no text in any."""
    from charset_normalizer import from_bytes

    found = wide(data)
    if found:
        return found
    head = data[:LOOKED_AT]
    if b"\0" in head:
        return None
    guesses = from_bytes(head.rpartition(b"\n")[0] or head, cp_isolation=DETECTED)
    best = guesses.best()
    if best is None:
        return None
    if best.encoding in ("cp1251", "koi8_r") and any(guess.encoding == "cp1255" for guess in guesses):
        return "cp1255" if all(byte in HEBREW for byte in head if byte >= 0xC0) else best.encoding
    return _latin(head) if best.encoding in (*LATIN, "cp1258") else best.encoding


def _latin(data: bytes) -> str:
    shares = {}
    for encoding, alphabets in LATIN.items():
        text = data.decode(encoding, "replace").lower()
        letters = Counter(char for char in text if ord(char) > 127 and (char.isalpha() or char == "\ufffd"))
        fitting = max(sum(n for char, n in letters.items() if char in alphabet) for alphabet in alphabets)
        shares[encoding] = fitting / letters.total() if letters else 1.0
    return max(shares, key=lambda encoding: shares[encoding])
