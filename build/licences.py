"""THIRD_PARTY_LICENSES.txt: what a binary carries, under which licences, with every text that came with it.

`pip-licenses` prints one text for a package, where torch alone brings a hundred; so this reads the metadata itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inside import Component

RULE = "=" * 100
NO_TEXT = "No licence text came with it; its home page has it."


def document(title: str, components: Sequence[Component]) -> str:
    """Plain text. A text that several bring is printed once, and named by its first place afterwards."""
    return "\n".join([*_overview(title, components), *_texts(components)]) + "\n"


def without_text(components: Sequence[Component]) -> list[str]:
    """Names and declared licences of what brought no text."""
    return [f"{c.title}: {c.licence or 'no licence declared'}" for c in components if not c.texts]


def _overview(title: str, components: Sequence[Component]) -> Iterator[str]:
    yield f"Software inside {title} and its licences"
    yield ""
    yield "tmerge itself is under the Apache License 2.0 (LICENSE). It carries:"
    yield ""
    width = max((len(c.title) for c in components), default=0)
    for c in components:
        yield f"  {c.title:{width}}  {c.licence or 'no licence declared'}"
    if missing := without_text(components):
        yield ""
        yield "Without a licence text of their own:"
        yield ""
        yield from (f"  {line}" for line in missing)


def _texts(components: Sequence[Component]) -> Iterator[str]:
    printed: dict[str, str] = {}
    for c in components:
        yield ""
        yield RULE
        yield c.title
        yield f"Licence: {c.licence or 'none declared'}"
        if c.url:
            yield f"Home: {c.url}"
        if c.files:
            yield f"Files: {', '.join(name for name, _ in c.files)}"
        yield RULE
        if not c.texts:
            yield ""
            yield NO_TEXT
        for file, text in c.texts:
            text = "\n".join(line.rstrip() for line in text.strip().splitlines())
            yield ""
            if text in printed:
                yield f"--- {file}: the same text as {printed[text]}"
            else:
                printed[text] = f"{c.name}, {file}"
                yield f"--- {file}"
                yield ""
                yield text
        if c.compiled_in:
            yield ""
            yield "Compiled into it, as its own bill of materials says, without texts:"
            yield ""
            for crate in sorted(c.compiled_in, key=lambda found: (found.name, found.version)):
                yield f"  {crate.title}: {crate.licence or 'no licence declared'}"
