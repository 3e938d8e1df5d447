"""Every pin has its hashes, and no other. Reference: constraints.txt, and what is installed here."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    return {normal(name): number for name, number in PIN.findall((ROOT / file).read_text("utf-8"))}


def test_every_pin_has_hashes_and_no_other_package_has() -> None:
    text = (ROOT / "constraints.hashes.txt").read_text("utf-8")
    assert pins("constraints.hashes.txt") == pins("constraints.txt") and len(pins("constraints.txt")) > 100
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins("constraints.txt"))
    for block in blocks:
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s)", block)
        assert hashes and len(hashes) == block.count("--hash") == len(set(hashes)), block.splitlines()[0]


def test_what_is_installed_is_what_is_pinned() -> None:
    """But for packages that this environment does without, as a platform may."""
    wrong, seen = {}, 0
    for name, number in pins("constraints.txt").items():
        try:
            found = version(name).partition("+")[0]  # a build of its own, such as torch's for the CPU
        except PackageNotFoundError:
            continue
        seen += 1
        if found != number:
            wrong[name] = found
    assert not wrong and seen > 100
