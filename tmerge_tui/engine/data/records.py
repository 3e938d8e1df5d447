"""From a record of a data set to a sample: which field, and what it says. A value is a text or a tuple of messages.

Chat messages are lists of {role, content}, or of {from, value} as some data sets write them (human and gpt become user
and assistant), as they stand or as JSON in a string. A column written `prompt+response` joins two text fields into a
conversation of user and assistant; `instruction+input+output` is Alpaca's, whose input may be empty.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tmerge_tui.errors import DataError
from tmerge_tui.files import parse_json

Value = str | tuple[dict[str, str], ...]
KNOWN_COLUMNS = ("text", "messages", "conversations")
ALPACA = "instruction+input+output"
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "response"))
HALF = re.compile("[\ud800-\udfff]")
ROLES = {"human": "user", "gpt": "assistant"}
CALLS = "tool calls without text"
PARTS = "parts of messages that are no text"


def pick_column(path: Path | str, column: str | None, names: list[str], strings: list[str]) -> str:
    """The field to read. Raises DataError listing the fields when it is not there or not clear."""
    listed = ", ".join(names) or "none"
    if column is not None:
        optional = {"input"} if column == ALPACA else set()
        missing = [name for name in fields_of(column, names) if name not in names and name not in optional]
        if missing:
            raise DataError(
                f"{path}: no field {', '.join(missing)}",
                f"one of: {listed}",
                "set calibration.column to one of them, or to two of them as prompt+response",
            )
        return column
    for name in KNOWN_COLUMNS:
        if name in names:
            return name
    if {"instruction", "output"} <= set(names):
        return ALPACA
    pair = next((pair for pair in PAIRS if set(pair) <= set(names)), None)
    if pair is not None:
        return "+".join(pair)
    if len(strings) != 1:
        raise DataError(
            f"{path}: fields {listed}",
            f"{', '.join(KNOWN_COLUMNS)}, a pair such as prompt and response, or a single field of text",
            "set calibration.column to the field to read, or to two of them as prompt+response",
        )
    return strings[0]


def fields_of(column: str, names: Iterable[str]) -> list[str]:
    """`prompt+response` is two fields, unless one is called just that."""
    return [column] if column in names else column.split("+", 2 if column == ALPACA else 1)


def value_of(
    path: Path | str, where: str, column: str, record: Mapping[str, Any], left: Counter[str] | None = None
) -> Value | None:
    """The text or messages of one record; None when missing or empty. `left` counts what of messages is left out."""
    left = Counter() if left is None else left
    fields = fields_of(column, record)
    for name in fields:
        if name not in record and not (column == ALPACA and name == "input"):
            raise DataError(
                f"{path}, {where}: no field {name}; it has {', '.join(record) or 'none'}",
                f"{name} in every record",
                "correct or remove that record",
            )
    if len(fields) > 1:
        *asked, answered = (record.get(name) for name in fields)
        if all(value is None for value in (*asked, answered)):
            return None
        prompt = asked[0] if len(asked) == 1 else "\n\n".join(part for part in asked if part)
        pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answered}]
        return _messages(path, where, column, pair, left)
    value = _unpacked(record[column])
    if value is None or value == []:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _messages(path, where, column, value, left) or None
    raise _not_text(path, where, column, value)


def without_halves(value: Value) -> Value:
    """A text or messages without halves of characters, which JSON can write and no tokenizer reads."""
    if isinstance(value, str):
        return whole_text(value)
    return tuple({name: whole_text(text) for name, text in message.items()} for message in value)


def whole_text(text: str) -> str:
    """The text with � for each lone surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if HALF.search(text) else text


def left_out(path: Path | str, left: Counter[str]) -> list[str]:
    """What was left out of messages, in words."""
    return [f"{path}: {count} {what} left out" for what, count in sorted(left.items())]


def _unpacked(value: Any) -> Any:
    """Messages that are written as JSON in a string, as a list; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        inside = parse_json(value)
    except ValueError:
        return value
    spoken = all(isinstance(one, dict) and ("role" in one or "from" in one) for one in inside)
    return inside if spoken else value


def _messages(
    path: Path | str, where: str, column: str, value: list[Any], left: Counter[str]
) -> tuple[dict[str, str], ...]:
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise _not_text(path, where, column, value)
        role = message.get("role", message.get("from"))
        content = _joined(message.get("content", message.get("value")), left)
        if content is None and (message.get("tool_calls") or message.get("function_call")):
            left[CALLS] += 1
            continue
        if not isinstance(role, str) or not isinstance(content, str):
            raise _not_text(path, where, column, value)
        messages.append({"role": ROLES.get(role, role), "content": content})
    return tuple(messages)


def _joined(content: Any, left: Counter[str]) -> Any:
    """The text of content in parts, as OpenAI writes it; images and the like are left out."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) and "type" in part for part in content):
        return content
    texts = [part.get("text") for part in content if part["type"] in ("text", "input_text", "output_text")]
    left[PARTS] += len(content) - len(texts)
    if not left[PARTS]:
        del left[PARTS]
    return "\n".join(text for text in texts if isinstance(text, str))


def _not_text(path: Path | str, where: str, column: str, value: Any) -> DataError:
    return DataError(
        f"{path}, {where}: field {column} holds {shown(value)}",
        "text, or a list of {role, content} (or {from, value}) messages whose contents are text",
        "set calibration.column to another field, or correct that record",
    )


def shown(value: Any) -> str:
    """A value in at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
