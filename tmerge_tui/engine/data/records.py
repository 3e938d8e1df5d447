"""From a record of a data set to a sample: which field, and what it says. A value is a text or a tuple of messages.

Chat messages are lists of {role, content}, or of {from, value} as some data sets write them (human and gpt become user
and assistant), as they stand or as JSON in a string; a field `system` beside them comes first. A column written
`prompt+response` joins two text fields, or two lists of messages, into a conversation of user and assistant;
`instruction+input+output` is Alpaca's, whose input may be empty. A dot goes into a field: `translation.en`.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tmerge_tui.errors import DataError
from tmerge_tui.files import parse_json

Value = str | tuple[dict[str, str], ...]
KNOWN_COLUMNS = ("text", "messages", "conversations", "conversation")
TRIPLES = (("instruction", "input", "output"), ("instruction", "context", "response"))  # the second may be empty
PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "response"),
    ("instruction", "output"), ("query", "response"), ("input", "output"),
)  # fmt: skip
SYSTEM = ("system", "system_prompt")
HALF = re.compile("[\ud800-\udfff]")
ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"), "system": "system",
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "bot", "model", "ai"), "assistant"),
}  # fmt: skip
SPEAKER, SAID = ("role", "from"), ("content", "value", "text", "parts")
CALLS = "tool calls without text"
SILENT = "messages without text"
PARTS = "parts of messages that are no text"
SHOWN = ("text", "input_text", "output_text")  # types of parts


def pick_column(
    path: Path | str, column: str | None, names: list[str], strings: list[str], lists: Mapping[str, Any]
) -> str:
    """The field to read: `strings` are those of text, `lists` those that hold a list (of the first record).

    Raises DataError listing the fields when it is not there or not clear.
    """
    listed = ", ".join(names) or "none"
    if column is not None:
        fields = fields_of(column, names)
        optional = fields[1:-1]
        missing = [n for n in fields if n not in names and n not in optional and n.split(".")[0] not in names]
        if missing:
            raise DataError(
                f"{path}: no field {', '.join(missing)}",
                f"one of: {listed}",
                "set calibration.column to one of them, or to two of them as prompt+response",
            )
        return column
    for name in KNOWN_COLUMNS:
        same = next((own for own in names if own.lower() == name), None)
        if same is not None:
            return same
    known = next((fields for fields in (*TRIPLES, *PAIRS) if set(fields) <= set(names)), None)
    if known is not None:
        return "+".join(known)
    talks = [name for name, value in lists.items() if is_talk(value)]
    if len(talks) == 1:
        return talks[0]
    nested = [name for name, value in lists.items() if value and isinstance(value[0], Mapping)]
    if len(strings) != 1 or nested:
        raise DataError(
            f"{path}: fields {listed}",
            f"{', '.join(KNOWN_COLUMNS)}, a pair such as prompt and response, or a single field of text",
            "set calibration.column to the field to read, or to two of them as prompt+response",
        )
    return strings[0]


def fields_of(column: str, names: Iterable[str]) -> list[str]:
    """`prompt+response` is two fields, unless one is called just that."""
    if column in names:
        return [column]
    parts = column.split("+")
    return parts if tuple(parts) in TRIPLES else column.split("+", 1)


def columns_read(column: str, names: list[str]) -> list[str]:
    """The fields of a table that `value_of` looks at."""
    heads = [name if name in names else name.split(".")[0] for name in fields_of(column, names)]
    return [name for name in names if name in (*heads, *SYSTEM)]


def value_of(
    path: Path | str, where: str, column: str, record: Mapping[str, Any], left: Counter[str] | None = None
) -> Value | None:
    """The text or messages of one record; None when missing or empty. `left` counts what of messages is left out."""
    left = Counter() if left is None else left
    fields = fields_of(column, record)
    found = [_field(record, name) for name in fields]
    for number, (name, (there, _)) in enumerate(zip(fields, found, strict=True)):
        if not there and not 0 < number < len(fields) - 1:
            raise DataError(
                f"{path}, {where}: no field {name}; it has {', '.join(record) or 'none'}",
                f"{name} in every record",
                "correct or remove that record",
            )
    value, *others = (_unpacked(value) for _, value in found)
    if others:
        joined = _pair(value, others[:-1], others[-1])
        return None if joined is None else _messages(path, where, column, record, joined, left)
    if value is None or value == []:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and set(value) & set(SAID) and set(value) & set(SPEAKER):
        value = [value]
    if isinstance(value, list):
        return _messages(path, where, column, record, value, left) or None
    raise _not_text(path, where, column, value)


def is_talk(value: Any) -> bool:
    """Whether a value is a list of messages: every one says who speaks."""
    value = _unpacked(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and not set(SPEAKER).isdisjoint(one) for one in value)
    )


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


def _field(record: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """(whether it is there, what it holds); a dot goes into a field."""
    if name in record:
        return True, record[name]
    head, dot, rest = name.partition(".")
    if not dot or not isinstance(record.get(head), Mapping):
        return bool(dot) and head in record, None  # missing inside is nothing, as null is
    return _field(record[head], rest) if rest in record[head] or "." in rest else (True, None)


def _unpacked(value: Any) -> Any:
    """Messages written into a string, as JSON or as Python shows them, and bytes of text; anything else as it is."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        inside = parse_json(value)
    except ValueError:
        try:
            inside = ast.literal_eval(re.sub(r"\}\s+\{", "}, {", value.strip()))  # as numpy puts records in a row
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return inside if isinstance(inside, list) and is_talk(inside) else value


def _pair(asked: Any, context: list[Any], answered: Any) -> list[Any] | None:
    """A conversation of what is asked, with its context where there is one, and the answer; None without either."""
    if asked is None or answered is None:
        return None
    if is_talk(asked) or is_talk(answered):
        return [*_side(asked, "user"), *_side(answered, "assistant")]
    more = [part for part in context if part]
    prompt = "\n\n".join([asked, *more]) if isinstance(asked, str) and all(isinstance(p, str) for p in more) else asked
    return [*_side(prompt, "user"), *_side(answered, "assistant")]


def _side(value: Any, role: str) -> list[Any]:
    return list(value) if is_talk(value) else [{"role": role, "content": value}]


def _messages(
    path: Path | str, where: str, column: str, record: Mapping[str, Any], value: list[Any], left: Counter[str]
) -> tuple[dict[str, str], ...]:
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise _not_text(path, where, column, value)
        role = next((message[name] for name in SPEAKER if name in message), None)
        content = _joined(next((message[name] for name in SAID if message.get(name) is not None), None), left)
        if content is None and isinstance(role, str):
            left[CALLS if message.get("tool_calls") or message.get("function_call") else SILENT] += 1
            continue
        if not isinstance(role, str) or not isinstance(content, str):
            raise _not_text(path, where, column, value)
        messages.append({"role": ROLES.get(role.lower(), role), "content": content})
    system = next((record[name] for name in SYSTEM if isinstance(record.get(name), str) and record[name].strip()), None)
    if system is not None and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return tuple(messages)


def _joined(content: Any, left: Counter[str]) -> Any:
    """The text of content in parts, as OpenAI writes it; images and the like are left out."""
    if isinstance(content, Mapping) and "parts" in content:
        content = content["parts"]
    if not isinstance(content, list) or not all(isinstance(part, (str, Mapping)) for part in content):
        return content
    texts = [text for part in content if (text := _part(part)) is not None]
    if len(texts) < len(content):
        left[PARTS] += len(content) - len(texts)
    return "\n".join(texts) if texts else None


def _part(part: str | Mapping[str, Any]) -> str | None:
    if isinstance(part, str):
        return part
    said = part.get("text", part.get("content")) if part.get("type", SHOWN[0]) in SHOWN else None
    return said if isinstance(said, str) else None


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
