"""Code that comes with a model runs only from folders that no one else can write to."""

from __future__ import annotations

import os
from pathlib import Path

from tmerge_tui.errors import ModelError
from tmerge_tui.system import open_to_others


def refuse_shared(folder: Path, name: str) -> None:
    """For a model whose own code is allowed to run. Raises ModelError when another account could have changed it."""
    from huggingface_hub import constants

    files = list(folder.glob("*.py"))
    if not files:
        return
    copies = Path(
        os.environ.get("HF_MODULES_CACHE") or Path(constants.HF_HOME) / "modules"
    )  # transformers runs it there
    for place in dict.fromkeys((copies, folder, *(file.resolve().parent for file in files))):
        loose = open_to_others(place)
        if loose is not None:
            raise ModelError(
                f"{name}: its Python code is not run: others can change {loose}",
                "a folder that only you can write to",
                "`chmod go-w` that folder, or set HF_HOME to a folder of your own and download the model again",
            )
