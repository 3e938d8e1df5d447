"""What the sections of a recipe are made of: fields that carry their meaning, unit and equation."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

# What a run makes and keeps, first things first. What an option affects is made anew when it changes, and so is what is
# made from that; keys of pieces are built from it.
Piece = Literal[
    "models", "text", "activations", "plans", "layers", "fusion", "outputs",
    "training text", "hints", "events", "training",
    "adapted", "distilled", "hinted", "patience",  # such trainings alone; the last: epochs: auto
    "written", "kept",  # text that the source writes; what is learnt of it
    "scores", "nothing",
]  # fmt: skip
PIECES: tuple[str, ...] = get_args(Piece)


def option(
    default: Any,
    meaning: str,
    affects: Piece | tuple[Piece, ...] = (),  # a section says it option by option
    *,
    unit: str = "",
    equation: str = "",
    expert: bool = False,
    **constraints: Any,
) -> Any:
    """A recipe field: `meaning` is one line a person reads beside it, `affects` what has to be made anew with it."""
    pieces = (affects,) if isinstance(affects, str) else affects
    extra: dict[str, Any] = {"unit": unit, "equation": equation, "expert": expert, "affects": pieces}
    return Field(default, description=meaning, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def affecting(cls, *pieces: Piece) -> tuple[str, ...]:
        """Names of the options that affect any of `pieces`, in the order of the section."""
        extras = {name: cast("dict[str, Any]", field.json_schema_extra) for name, field in cls.model_fields.items()}
        return tuple(name for name, extra in extras.items() if set(pieces) & set(extra["affects"]))

    def that_affect(self, *pieces: Piece) -> dict[str, Any]:
        """Those options with their values: what the keys of such pieces are made of."""
        return self.model_dump(include=set(self.affecting(*pieces)))
