"""The stages that a section `adaptation` brings, in order: name, what a person reads, share of the run's work."""

from __future__ import annotations

from tmerge_tui.recipe.adaptation import Adaptation

HINTS = ("hints", "Carry the source's activations", 0.3)
TUNE = ("tune", "Tune the source on the training text", 1.0)
TEACHER = ("teacher", "Read what the source says next", 0.3)
TEACHER_UNTUNED = ("teacher_untuned", "Read what it said before it was tuned", 0.3)
TEACHER_SELF = ("teacher_self", "Read what the target says next", 0.05)
SEARCH = ("search", "Choose learning rate and weight on validation text", 0.5)
TRAIN = ("adapt", "Train", 2.0)
WRITTEN = (
    ("write", "Let the source write", 1.0),
    ("teacher_written", "Read what the source says of it", 0.3),
    ("teacher_written_self", "Read what it says of what the target wrote", 0.3),
    ("adapt_written", "Train on written text", 2.0),
)


def training_stages(options: Adaptation | None) -> list[tuple[str, str, float]]:
    """Those that are asked for, until everything is trained; none without the section."""
    if options is None:
        return []
    return [
        *([HINTS] if options.hints else []),
        *([TUNE] if options.tuned else []),
        *([TEACHER] if options.distilled else []),
        *([TEACHER_UNTUNED] if "untuned" in options.controls else []),
        *([TEACHER_SELF] if "self" in options.controls else []),
        *([SEARCH] if options.searched else []),
        TRAIN,
        *(WRITTEN if options.synthetic else []),
    ]
