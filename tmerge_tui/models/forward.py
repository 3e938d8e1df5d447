"""Forward passes of a loaded model."""

from __future__ import annotations

import gc

import torch


def release() -> None:
    """Gives back what a model that nobody holds any more has taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
