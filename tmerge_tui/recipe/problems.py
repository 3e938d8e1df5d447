"""What is wrong with a recipe, in lines a person can act on: pydantic's errors, reworded and without its doubles."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


def problems_of(error: ValidationError, root: type[BaseModel], data: Mapping[str, Any]) -> list[str]:
    """One line per problem. A union of types that all failed is one problem, and so is a list with a bad item."""
    grouped: dict[str, list[Any]] = {}
    for each in error.errors():
        location = _location(each["loc"], data)
        grouped.setdefault(".".join(location), []).append(each)
    return [_line(where, errors, root) for where, errors in grouped.items() if not _echo(where, errors, grouped)]


def booleans_for_numbers(data: Mapping[str, Any], section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """YAML reads yes, no, on and off as booleans, and pydantic takes those for 1 and 0."""
    for name, field in section.model_fields.items():
        value = data.get(name)
        inner = section_of(field.annotation)
        if inner is not None:
            if isinstance(value, Mapping):
                yield from booleans_for_numbers(value, inner, f"{prefix}{name}.")
            continue
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) for v in values) and {int, float} & set(_types(field.annotation)):
            yield f"{prefix}{name}: expected a number (found {value!r})"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section a field holds, if it holds one; `Section | None` is a section that may be left out."""
    inner = [each for each in get_args(annotation) if each is not type(None)] or [annotation]
    if len(inner) != 1 or not isinstance(inner[0], type) or get_origin(annotation) is tuple:
        return None
    return inner[0] if issubclass(inner[0], BaseModel) else None


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _location(loc: tuple[int | str, ...], data: Any) -> list[str]:
    """Where in the file: without the names of union branches, and without an index where no list was written."""
    parts = []
    for part in loc:
        if isinstance(part, int):
            if not isinstance(data, (list, tuple)):
                continue
            data = data[part] if part < len(data) else None
        elif isinstance(data, Mapping):
            data = data.get(part)
        else:
            continue  # a branch of a union, or pydantic's name of a validator
        parts.append(str(part))
    return parts


def _echo(where: str, errors: list[Any], grouped: Mapping[str, list[Any]]) -> bool:
    """A list that counts as too short only because its items are wrong."""
    return all(e["type"] == "too_short" and e["input"] for e in errors) and any(
        other.startswith(f"{where}.") for other in grouped
    )


def _line(where: str, errors: list[Any], root: type[BaseModel]) -> str:
    errors = [e for e in errors if e["type"] != "too_short" or not e["input"]] or errors
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_suggestion(where.split('.'), root)}"
    if first["type"] == "missing":
        return f"{where}: missing"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    expected = ", or ".join(dict.fromkeys(_expected(e, where, root) for e in errors))
    return f"{where}: expected {expected} (found {_short(first['input'])}){_near(errors)}"


def _expected(error: Any, where: str, root: type[BaseModel]) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "greater_than":
            return f"more than {context['gt']:g}"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "literal_error":
            return str(context["expected"])
        case "int_parsing" | "int_type" | "int_from_float":
            return "a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "a number"
        case "bool_parsing" | "bool_type":
            return "true or false"
        case "string_type":
            return "text"
        case "string_too_short":
            return "text that is not empty"
        case "string_pattern_mismatch":  # no one wants to read the pattern
            return next(str(field.description) for path, field in fields(root) if path == where)
        case "tuple_type":
            return "a list"
        case "too_short":
            return f"at least {context['min_length']} item" + ("s" if context["min_length"] > 1 else "")
        case "model_type":
            return "a section with keys"
        case "none_required":
            return "nothing"
        case _:
            message = error["msg"].removeprefix("Input should be ")
            return message[0].lower() + message[1:]


def _near(errors: list[Any]) -> str:
    """A did-you-mean for a word that is almost one of the allowed ones."""
    words = [w for e in errors if e["type"] == "literal_error" for w in e["ctx"]["expected"].split("'")[1::2]]
    close = difflib.get_close_matches(str(errors[0]["input"]), words, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggestion(location: list[str], root: type[BaseModel]) -> str:
    *sections, name = location
    section: type[BaseModel] | None = root
    for part in sections:
        field = section.model_fields.get(part) if section else None
        section = section_of(field.annotation) if field else None
    known = list(section.model_fields) if section else []
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    elsewhere = [path for path, _ in fields(root) if path.split(".")[-1] == name]
    if not close and elsewhere:
        return f"it belongs to {' or '.join(elsewhere)}"
    close = close or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every field, sections and their fields alike."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        inner = section_of(field.annotation)
        if inner is not None:
            yield from fields(inner, f"{prefix}{name}.")
