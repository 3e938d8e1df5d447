"""A repository that git cloned without its large files is said to be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.pair import make_pair, recipe_of
from tmerge_tui.engine.preflight.check import check

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 12345\n"


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("names", [["model.safetensors"], ["tokenizer.json"], ["tokenizer.model", "model.safetensors"]])
def test_pointers_of_git_lfs(tmp_path: Path, role: str, names: list[str]) -> None:
    pair = make_pair(tmp_path)
    for name in names:
        (Path(pair[role]) / name).write_text(POINTER)
    (problem,) = check(recipe_of(pair))
    assert problem.startswith(f"{role}: ") and ", ".join(sorted(names)) in problem and "git lfs pull" in problem
