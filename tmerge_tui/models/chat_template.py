"""Chat templates within bounds: they are programs of whoever made the model, and may not end or write without end.

transformers runs them in Jinja's sandbox, which keeps them from everything but the messages. Here they get a budget
besides, for each conversation: turns of loops and calls, and characters that are made. What would exceed it is refused
before it is done. A template that stays within it writes exactly what transformers makes of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

STEPS = 300_000  # turns of loops, calls, filters and operators
WORK = 100_000_000  # characters and items
DIGITS = 1_000_000  # bits of a number
# methods and filters whose result can be as long as the product of what they get
GROW = {
    "replace", "join", "center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "indent",
    "wordwrap", "batch", "slice", "tojson", "truncate", "xmlattr", "urlize", "round",
}  # fmt: skip
WIDE = re.compile(r"%[-+ #0\d.]*(\*|\d{6,})|\{[^{}]*\d{6,}")  # a width or precision in a format


class TooMuch(Exception):
    """A template has used up its budget."""

    def __init__(self) -> None:
        super().__init__("it does not come to an end, or writes more than a conversation has")


def limit_templates() -> None:
    """Every chat template that transformers renders in this process has a budget from now on."""
    from transformers.utils import chat_template_utils as theirs

    if not isinstance(theirs._compile_jinja_template, _Compiler):
        theirs._compile_jinja_template = _Compiler(theirs._compile_jinja_template)


class _Compiler:
    """In place of transformers' function that compiles a template."""

    def __init__(self, compile: Callable[[str], jinja2.Template]) -> None:
        self.compile = compile
        self.made: dict[str, _Limited] = {}

    def __call__(self, text: str) -> _Limited:
        if text not in self.made:
            if len(self.made) > 50:
                self.made.clear()
            environment = self.compile(f"{{# {len(self.made)} #}}").environment.overlay()  # theirs, nothing run in it
            self.made[text] = _Limited(environment, text)
        return self.made[text]


class _Limited:
    """A compiled template; all but its budget is Jinja's."""

    def __init__(self, environment: jinja2.Environment, text: str) -> None:
        self.steps = self.work = 0
        own: Any = environment
        own.intercepted_binops = frozenset({"*", "**", "%", "+"})
        own.call_binop = functools.partial(self._operator, own.call_binop)
        own.call = functools.partial(self._call, own.call)
        own.finalize = self._written
        own.globals = {name: each for name, each in environment.globals.items() if name != "lipsum"}  # text by the ton
        own.filters = {name: self._filter(name, each) for name, each in environment.filters.items()}
        own.filters |= {"_counted": self._counted, "_concat": self._concat, "_weigh": self._weigh}
        tree = _Count().visit(environment.parse(text))
        self.template = jinja2.Template.from_code(
            environment, environment.compile(tree), environment.make_globals(None)
        )

    def render(self, *args: Any, **given: Any) -> str:
        self.steps = self.work = 0
        return self.template.render(*args, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.template, name)

    def _spend(self, work: int) -> None:
        self.steps += 1
        self.work += work
        if self.steps > STEPS or self.work > WORK:
            raise TooMuch

    def _operator(self, apply: Callable[..., Any], context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and WIDE.search(left):
            raise TooMuch
        if isinstance(left, int) and isinstance(right, int):
            longest = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if longest > DIGITS:
                raise TooMuch
            self._spend(1)
        else:
            self._spend(_product((left, right)) if operator == "*" else _sum((left, right)))
        return apply(context, operator, left, right)

    def _call(self, apply: Callable[..., Any], context: Any, function: Any, *args: Any, **named: Any) -> Any:
        name = getattr(function, "__name__", "")
        its = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps str.format
        args = self._whole(name, args)
        self._check(name, (its, *args, *named.values()) if isinstance(its, str) else (*args, *named.values()))
        return apply(context, function, *args, **named)

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            args = self._whole(name, args)
            self._check(name, (*args, *named.values()))
            return function(*args, **named)

        return counted

    def _whole(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What grows with its arguments gets lists for what is only counted as one gets to it."""
        if name not in GROW:
            return args
        return tuple(list(self._counted(one)) if isinstance(one, (Iterator, range)) else one for one in args)

    def _check(self, name: str, given: Iterable[Any]) -> None:
        given = [one for one in given if isinstance(one, (str, bytes, list, tuple, dict, int, float))]
        if name in ("format", "format_map") and given and isinstance(given[0], str) and WIDE.search(given[0]):
            raise TooMuch
        self._spend(_product(given) if name in GROW else _sum(given))

    def _written(self, value: Any) -> Any:
        self._spend(_size(value))
        return value

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    @jinja2.pass_context  # so that it is not computed once and for all while compiling
    def _weigh(self, context: Any, characters: int) -> str:
        self._spend(characters)
        return ""

    def _concat(self, parts: list[Any]) -> str:
        words = [str(part) for part in parts]
        self._spend(sum(map(len, words)))
        return "".join(words)


class _Count(NodeTransformer):
    """Sends what loops go over, what their turns and macros write, and what is joined by `~`, through the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return self._weighed(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        return self._weighed(node)

    def _weighed(self, node: Any) -> nodes.Node:
        """Each turn costs the constant text in it."""
        text = sum(len(part.data) for part in node.find_all(nodes.TemplateData))
        weight = nodes.Filter(nodes.Const(text), "_weigh", [], [], None, None, lineno=node.lineno)
        node.body = [nodes.Output([weight], lineno=node.lineno), *node.body]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 1


def _sum(values: Iterable[Any]) -> int:
    return sum(map(_size, values))


def _product(values: Iterable[Any]) -> int:
    found = 1
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        found *= max(1, int(min(abs(value), 2 * WORK)) if number and value == value else _size(value))
    return found
