"""Mutated configs, tokenizers and chat templates: a clear error or a right result, in bounded time and memory.

Reference for a template that is left as it is: what transformers alone makes of it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tests.soak.edits import edited, edited_bytes, paths, propose_bytes, propose_structure
from tests.soak.judge import Campaign, Edit
from tests.tiny import make_model
from tmerge_tui.engine.data.corpus import Sample, render
from tmerge_tui.models.facts import read_facts
from tmerge_tui.models.tokenizer import load_tokenizer

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}{{ date_string }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ ':' ~ m.content }}"
    "{% if not loop.last %}, {% endif %}{{ loop.length }}{% endfor %}{{ messages | tojson }}",
    "{% macro say(m) %}[{{ m.role | upper }}] {{ m.content.split(' ') | join('_') }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}{{ bos_token }}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ '%s-%d' % ('a', 3) }}"
    "{{ ('ab' * 3) + 'c' }}{% set x %}block {{ messages | length }}{% endset %}{{ x }}{{ strftime_now('%%') }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
)
ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}", "{% set n = 10 ** (10 ** 10) %}{{ n }}", "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ '%1000000000d' % 1 }}", "{{ '{:>1000000000}'.format(1) }}", "{{ '%*d' % (1000000000, 1) }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}{{ ns.x | length }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}", "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "{{ ('x' * 99999).join(range(99999) | list | map('string')) }}", "{{ lipsum(n=10000000) }}",
    "{{ range(10 ** 12) | list }}",
    "{% for m in messages recursive %}{{ loop(range(99999)) }}{% endfor %}", "{{ 'x'.expandtabs(10 ** 9) }}",
    "{{ '\t'.expandtabs(10 ** 10) }}", "{{ messages | tojson(indent=10 ** 10) }}", "{{ 'a\nb' | indent(10 ** 10) }}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{{" + "(" * 3000,
    "{% for i in range(99999) %}" + "y" * 50000 + "{% endfor %}", "{{ -" * 2000, "{{ [" * 2000, "{% if 1 %}" * 2000,
)  # fmt: skip
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__ }}", "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch entered') }}", "{{ messages.append(1) }}{{ messages.clear() }}",
    "{{ lipsum.__globals__['os'].popen('touch entered') }}", "{% include '/etc/passwd' %}", "{% import 'os' as o %}",
    "{{ ('%s' % messages).format.__self__ }}", "{{ '{0.__class__}'.format(messages) }}",
    "{{ raise_exception(messages) }}",
    "{{ messages | attr('__class__') }}", "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "{{ joiner.__init__.__code__ }}",
    "{{ tools.x.y }}", "{{ 1 / 0 }}", "{{ messages[99].content }}", "{% for %}", "{{ }}", "{% endif %}",
    "{{ '\ud800' }}",
)  # fmt: skip
MESSAGES = [
    {"role": "user", "content": "Where do the two rivers meet? " * 3},
    {"role": "assistant", "content": "Below the mill, é中𝕏."},
]
JSONS = ("config.json", "tokenizer_config.json", "tokenizer.json")


@functools.cache
def base() -> Path:
    """A tiny model, made once for a process and its children."""
    folder = Path(tempfile.mkdtemp(prefix="tmerge-soak-base-")) / "model"
    make_model(folder, "llama", hidden=16, layers=1, heads=2, kv_heads=1, intermediate=16)
    return folder


@functools.cache
def parsed(name: str) -> tuple[Any, tuple[tuple[Any, ...], ...]]:
    data = json.loads((base() / name).read_text("utf-8"))
    every = list(paths(data))
    few = [place for place in every if len(place) < 3] or every
    return data, tuple(few + every[:: max(1, len(every) // 200)])


@functools.cache
def whole() -> Any:
    return load_tokenizer(base())


def propose(dice: Random) -> list[Edit]:
    roll = dice.random()
    if roll < 0.45:
        name = dice.choice(JSONS)
        return [("json", name, edit) for edit in propose_structure(dice, parsed(name)[1], 2)]
    if roll < 0.6:
        name = dice.choice(JSONS)
        return [("bytes", name, edit) for edit in propose_bytes(dice, 2)]
    if roll < 0.9:
        text = dice.randrange(len(PLAIN))
        return [("template", text), *(("cut", edit) for edit in propose_bytes(dice, 3) if dice.random() < 0.8)]
    kind = dice.choice(("endless", "escape"))
    return [(kind, dice.randrange(len(ENDLESS if kind == "endless" else ESCAPES)))]


def attempt(edits: list[Edit], folder: Path) -> None:
    if not edits or edits[0][0] in ("json", "bytes"):
        _files(edits, folder)
    else:
        os.chdir(folder)
        try:
            _template(edits)
        finally:
            assert not (folder / "entered").exists(), "code of a template has run"


def _files(edits: list[Edit], folder: Path) -> None:
    model = shutil.copytree(base(), folder / "model")
    for name in JSONS:
        if any(edit[0] == "json" and edit[1] == name for edit in edits):
            data = edited(parsed(name)[0], [edit[2] for edit in edits if edit[0] == "json" and edit[1] == name])
            try:
                (model / name).write_bytes(json.dumps(data).encode("utf-8", "surrogatepass"))
            except RecursionError:
                (model / name).write_bytes(b'{"a":' * 20000)
        raw = edited_bytes((model / name).read_bytes(), [e[2] for e in edits if e[0] == "bytes" and e[1] == name])
        (model / name).write_bytes(raw)
    facts = read_facts(model, "mutated", False)
    assert facts.layers > 0 and facts.hidden > 0
    tokenizer = load_tokenizer(model)
    for sample in (Sample(text="Two rivers é中 meet."), Sample(messages=tuple(MESSAGES))):
        assert isinstance(render(sample, tokenizer, "auto"), str)


def _template(edits: list[Edit]) -> None:
    kind, number = edits[0]
    text = {"template": PLAIN, "endless": ENDLESS, "escape": ESCAPES}[kind][number]
    raw = edited_bytes(text.encode("utf-8", "surrogatepass"), [edit[1] for edit in edits[1:]])
    tokenizer = whole()
    tokenizer.chat_template = raw.decode("utf-8", "replace")
    made = render(Sample(messages=tuple(MESSAGES)), tokenizer, "auto")
    assert len(made) < 200_000_000, "more than a conversation has"
    if kind == "template" and tokenizer.chat_template:
        assert made == _reference(tokenizer.chat_template), "not what transformers makes of it"


def _reference(text: str) -> str:
    """Rendered by transformers' own compiler."""
    from transformers.utils import chat_template_utils as theirs

    compile = getattr(theirs._compile_jinja_template, "compile", theirs._compile_jinja_template)
    special = whole().special_tokens_map
    return compile(text).render(
        messages=json.loads(json.dumps(MESSAGES)), tools=None, documents=None, add_generation_prompt=False, **special,
        date_string="26 Jul 2024",
    )  # fmt: skip


TOKENIZERS = Campaign("tokenizers", 2_000, propose, attempt)
