"""Edits of structured and of raw input, as plain data, so that a failing case can be made smaller and read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf"), "", " ",
    "x", "../../../../etc/passwd", "/etc/passwd", "a" * 5000, "\x00", "\ud800", "\x1b[2J", "[red]", "${HOME}", "~",
    "é中𝕏", [], {},
    [[]], [None], {"": None}, {"a": {"b": {}}}, [1, "a", None], "1e400", "0x10", "yes", "auto", "all",
)  # fmt: skip
JUNK = (b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"[" * 200, b'"', b"\n", b"\r", b"---\n",
        b"!!python/object:os.system x",
        b"\x80\x04\x95", b"PK\x03\x04", b"&a [*a]", b",,,,", b"\xed\xa0\x80", b"1e999999", b"\x1f\x8b")  # fmt: skip


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a nested structure lies."""
    if prefix:
        yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from paths(inner, (*prefix, name))


def propose_structure(dice: Random, places: Sequence[tuple[Any, ...]], most: int = 4) -> list[tuple[Any, ...]]:
    """Some edits of a structure that has these places."""
    made: list[tuple[Any, ...]] = []
    for _ in range(dice.randint(1, most)):
        place = dice.choice(places)
        kind = dice.choice(("put", "put", "put", "drop", "rename", "swap", "nest", "add", "long"))
        if kind in ("put", "add"):
            made.append((kind, place, dice.randrange(len(NASTY))))
        elif kind == "swap":
            made.append((kind, place, dice.choice(places)))
        elif kind == "nest":
            made.append((kind, place, dice.choice((3, 50, 900))))
        elif kind == "long":
            made.append((kind, place, dice.choice((10, 300, 3000))))
        else:
            made.append((kind, place))
    return made


def edited(value: Any, edits: Sequence[tuple[Any, ...]]) -> Any:
    """`value` with the edits made; those whose place is gone are passed over."""
    value = copy.deepcopy(value)
    for kind, place, *more in edits:
        try:
            holder, last = _holder(value, place)
            if kind == "put":
                holder[last] = copy.deepcopy(NASTY[more[0]])
            elif kind == "add":
                holder[f"{last}_" if isinstance(holder, dict) else last] = copy.deepcopy(NASTY[more[0]])
            elif kind == "drop":
                del holder[last]
            elif kind == "rename":
                holder[f"{last}x"] = holder.pop(last)
            elif kind == "swap":
                other, name = _holder(value, more[0])
                holder[last], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[last])
            elif kind == "nest":
                for _ in range(more[0]):
                    holder[last] = [holder[last]]
            elif kind == "long":
                holder[last] = [holder[last]] * more[0]
        except (KeyError, IndexError, TypeError, RecursionError):
            continue
    return value


def _holder(value: Any, place: Sequence[Any]) -> tuple[Any, Any]:
    for name in place[:-1]:
        value = value[name]
    if not isinstance(value, (dict, list)):
        raise TypeError
    return value, place[-1]


def propose_bytes(dice: Random, most: int = 4) -> list[tuple[Any, ...]]:
    """Some edits of raw bytes; places are shares of the length."""
    made: list[tuple[Any, ...]] = []
    for _ in range(dice.randint(1, most)):
        kind = dice.choice(("flip", "cut", "insert", "repeat", "erase", "tail"))
        made.append((kind, dice.random() ** 2, dice.random(), dice.randrange(len(JUNK))))
    return made


def edited_bytes(data: bytes, edits: Sequence[tuple[Any, ...]]) -> bytes:
    for kind, where, much, junk in edits:
        at = int(where * len(data))
        if kind == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << int(much * 8))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + JUNK[junk] + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 50] * int(much * 100) + data[at:]
        elif kind == "erase":
            data = data[:at] + data[at + int(much * 40) :]
        elif kind == "tail":
            data = data + JUNK[junk] * (1 + int(much * 50))
    return data
