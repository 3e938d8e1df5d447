"""`tmerge generate`: target and result continue a prompt."""

from __future__ import annotations

import json

from tmerge_tui.commands.output import data
from tmerge_tui.commands.trust import settle
from tmerge_tui.recipe import load_recipe
from tmerge_tui.run_folder import RunDir
from tmerge_tui.worker.summary import verdict_folder


def generate(path: str, prompts: tuple[str, ...], folder: str | None, as_json: bool, trusted: bool) -> int:
    """Greedy continuations of each prompt by both models of a finished run. Raises RunFolderError, ModelError."""
    run = RunDir.open(path)
    settle(load_recipe(run.recipe), trusted)
    chosen = folder or verdict_folder(run)
    from tmerge_tui.worker.helper import Request
    from tmerge_tui.worker.questions import generate as answer

    for prompt in prompts:
        for model in ("target", "fused"):
            args = {"run": str(run.path), "model": model, "prompt": prompt, "folder": chosen}
            text = answer(Request(0, "generate", args))["text"]
            if as_json:
                data(json.dumps({"prompt": prompt, "model": model, "text": text}, ensure_ascii=False))
            else:
                data(f"{model}: {prompt}{text}")
    return 0
