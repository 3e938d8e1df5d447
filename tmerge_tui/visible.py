"""Text from elsewhere as a terminal may show it.

A model's name, a log line, a generated text or an error can hold characters that move the cursor, change the terminal,
write to the clipboard or turn the rest of a line around. Every face of tmerge sends its text through here: the command
line writes such a character out (`visible`), the wizard leaves it out (`without`), since a cell of the screen has no
room for more.
"""

from __future__ import annotations

import re

# C0 but for tab and newline, DEL, C1, marks that reorder a line (embeddings, overrides, isolates), separators that some
# terminals take for a newline, half a surrogate pair, and the invisible copy of ASCII (tags)
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")


def visible(text: str) -> str:
    r"""`text` with every unsafe character written out as JSON writes it, `\u001b`: JSON stays the same JSON."""
    return _UNSAFE.sub(_written_out, text.replace("\r\n", "\n"))


def without(text: str) -> str:
    """`text` less its unsafe characters."""
    return _UNSAFE.sub("", text)


def _written_out(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
