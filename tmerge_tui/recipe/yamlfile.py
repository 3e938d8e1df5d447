"""YAML as people mean it: `1e-6` is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tmerge_tui.errors import RecipeError

LONGEST = 1_000_000  # characters of a recipe
MOST = 100_000  # values of a recipe


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises RecipeError: unreadable, not UTF-8, not YAML, not a mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError([f"{path}: {error.strerror or error}"], "give the path of a recipe (YAML) file") from error
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: not UTF-8 text"], "save the recipe as UTF-8") from error
    return parse_mapping(text, str(path))


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping in YAML text; `name` is what errors call it. Raises RecipeError."""
    try:
        data = read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        raise RecipeError([f"{name}: not valid YAML: {error}"]) from error
    if data is None:
        raise RecipeError([f"{name}: empty, expected keys such as source, target, calibration"])
    if not isinstance(data, dict):
        raise RecipeError([f"{name}: found a {type(data).__name__}, expected keys such as source, target, calibration"])
    return {str(key): value for key, value in data.items()}


def read_scalar(text: str) -> Any:
    """One value as YAML reads it: `0.1`, `1e-6`, `[q, k]`, `all`. Text that is no YAML stays text."""
    try:
        return read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text


def read_yaml(text: str) -> Any:
    """What YAML that anyone may have written says.

    Raises yaml.YAMLError and ValueError, also for text that is nested or repeats itself without measure.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters, more than {LONGEST:,}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _nodes(node, {}) > MOST:  # aliases of aliases: few lines can stand for billions
                raise ValueError(f"more than {MOST:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("nested too deep") from None


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, those behind aliases included. Raises ValueError for one inside itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("a value that holds itself")
        return known[id(node)]
    known[id(node)] = 0
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inside = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    known[id(node)] = count = 1 + sum(_nodes(one, known) for one in inside)
    return count
