"""The recipe's section `adaptation`: training after the merge with the transported part frozen (eqs. 15-18)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tmerge_tui.recipe.section import Section, option
from tmerge_tui.recipe.synthetic import Synthetic

Side = Literal[
    "qkv.in", "q.out", "k.out", "v.out", "o.in", "o.out", "mlp.in", "gate.out", "up.out", "down.in", "down.out"
]


CONTROLS = "control_"  # what the names of the models that `controls` trains begin with
WRITTEN_CONTROLS = (f"{CONTROLS}self_written", f"{CONTROLS}more_passes")  # of text that the source writes
UNTUNED = f"{CONTROLS}untuned"  # that one knows the text as far as the source did: no placebo


class Hints(Section):
    """Transport hints: the target's activations are to correlate with the source's, carried through P and Q."""

    weight: float = option(
        0.5, "of 1 - correlation in the loss", "hinted", equation="ours; maps as in eq. 14", gt=0, le=100
    )
    sides: tuple[Side, ...] = option(("qkv.in", "down.in"), "where activations are compared", "hints", min_length=1)
    layers: tuple[int, ...] | None = option(None, "target layers with hints; all when empty", "hints", expert=True)
    words: int = option(
        64, "words of each sample whose activations are compared", "hints", unit="words", expert=True, ge=2
    )
    permuted_control: bool = option(
        True, "train the placebo too: the same hints with source channels permuted", "nothing"
    )
    with_distill: bool = option(False, "train hints on top of distillation too", "nothing", expert=True)


class Teacher(Section):
    """The source as teacher of the target, across tokenizers by byte events."""

    events: int = option(
        64, "events kept of what the source says at a position", "events", unit="events", expert=True, ge=1
    )
    positions: Literal["both", "every"] = option(
        "both", "compare where both tokenizers end a token, or at every position of the target", "events", expert=True
    )
    blanks: bool = option(
        True, "compare also where the target's next token is only spaces or tabs; off for code", "events", expert=True
    )
    batch_size: int = option(
        16, "texts in one forward pass of the source; halved when memory runs out", "nothing", expert=True, ge=1
    )
    tune: Literal["none", "full", "lora", "auto"] = option(
        "none", "train the source on the training text before it teaches: every weight, low-rank updates, or auto: "
        "whichever the memory holds", ("events", "distilled")
    )  # fmt: skip
    tune_epochs: float = option(
        1.0, "passes over the training text at most; the best on validation text is kept", ("events", "distilled"),
        expert=True, gt=0,
    )  # fmt: skip
    tune_learning_rate: float = option(
        5e-5, "peak of the schedule while the source is tuned", ("events", "distilled"), expert=True, gt=0
    )


class Adaptation(Section):
    """W = W_base + alpha mask Delta: Delta is frozen, W_base trains on next-token loss (eqs. 15-17)."""

    method: Literal["full", "lora"] = option(
        "full", "train every weight, or low-rank updates", "training", equation="eq. 16"
    )
    alpha: float | None = option(
        None,
        "strength of the frozen part while training; fusion.alpha when empty",
        "adapted",
        equation="eq. 15",
        ge=0,
        le=1,
    )
    path: str | None = option(None, "training text; the calibration text when empty", "training text")
    column: str | None = option(
        None, "field of that file; found by itself when it is clear", "training text", expert=True
    )
    samples: int = option(
        2000, "training samples at most", "training text", unit="samples", equation="eq. 17", ge=1, le=10**9
    )
    epochs: Annotated[float, Field(gt=0)] | Literal["auto"] = option(
        1.0,
        "passes over the training text; auto: as many as validation text gains by",
        "training",
        equation="eq. 17",
    )
    max_epochs: float = option(
        24.0,
        "with epochs: auto, passes at most, the sixth of them included in which the rate falls",
        "patience",
        unit="passes",
        ge=2,
    )
    min_gain: float = option(
        0.001,
        "with epochs: auto, what a pass has to gain on validation text",
        "patience",
        unit="bits per byte",
        expert=True,
        ge=0,
    )
    max_steps: int | None = option(None, "optimiser steps, instead of epochs", "training", unit="steps", ge=1)
    block_length: int = option(
        2048, "longest training sequence", ("training", "hints"), unit="tokens", equation="eq. 17", ge=8
    )
    packing: Literal["pack", "pad"] = option(
        "pack", "join samples and cut blocks, or one sample a row", "training", equation="eq. 17"
    )
    batch_size: int = option(1, "sequences in one forward pass of one device", "training", equation="eq. 17", ge=1)
    accumulation: int = option(8, "forward passes before each step", "training", equation="eq. 17", ge=1)
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = option(
        1e-6,
        "peak of the schedule; the paper has 1e-8 to 1e-6; auto chooses on validation text",
        "training",
        equation="eq. 17",
    )
    schedule: Literal["cosine", "linear", "constant", "stable"] = option(
        "cosine",
        "how the rate falls after the warm-up; stable: in the last sixth. Not used with epochs: auto, which is such",
        "training",
    )
    warmup: float = option(
        0.03,
        "share of the steps in which the rate rises; with epochs: auto of the first pass",
        "training",
        expert=True,
        ge=0,
        lt=1,
    )
    weight_decay: float = option(
        0.0,
        "of W_base; above 0 the frozen part is not the same as fine-tuning",
        "training",
        equation="eq. 16",
        expert=True,
        ge=0,
    )
    max_norm: float = option(1.0, "gradients are clipped to this norm", "training", expert=True, gt=0)
    answer_only: bool = option(
        False, "chat messages: train on the assistant's words alone", "training", equation="eq. 17"
    )
    gradient_checkpointing: bool = option(False, "less memory, a third more time", "training", expert=True)
    bf16: bool = option(
        False, "forward passes in bfloat16; weights and optimiser stay float32", "training", expert=True
    )
    lora_rank: int = option(
        16, "rank of the updates with method: lora", "training", equation="eq. 16", expert=True, ge=1
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = option(
        (0,), "one training for each; the first one is the result", "nothing", min_length=1
    )
    compare: tuple[Literal["sft", "distill"], ...] = option(
        (), "trained beside it, on the same tokens, steps, seeds and optimiser: the untouched target; with the source "
        "as teacher", "nothing"
    )  # fmt: skip
    distill_weight: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = option(
        0.5, "share of the teacher's part in the loss of distill; auto chooses on validation text", "distilled"
    )
    teacher: Teacher | None = option(None, "distil the source into the result itself; off when empty")
    start: Literal["merged", "target"] = option(
        "merged",
        "train the merged model, its transported part frozen, or the untouched target",
        "nothing",
        equation="eq. 16",
    )
    controls: tuple[Literal["other_text", "permuted", "unigram", "self", "untuned"], ...] = option(
        (), "placebos of distillation, trained on the same tokens: what the source said of another text, with its "
        "masses permuted, its mean; the untouched target as its own teacher; a tuned source before it was tuned",
        "nothing"
    )  # fmt: skip
    synthetic: Synthetic | None = option(
        None, "text that the source writes, learnt before the real text; off when empty. Needs epochs: auto"
    )
    hints: Hints | None = option(None, "transport hints in the loss; off when empty")
    patience: int | None = option(
        None,
        "stop after so many measurements without progress on the validation split; off when empty. With epochs: auto, "
        "after so many passes without min_gain; 2 when empty",
        "training",
        ge=1,
    )
    validation: float = option(
        0.1,
        "share of the training text set aside when patience is set, unless epochs is auto; never the hold-out",
        "training",
        expert=True,
        gt=0,
        lt=1,
    )
    checkpoints: int = option(4, "checkpoints in one training, from which it resumes", "nothing", expert=True, ge=1)

    @property
    def trainings(self) -> int:
        """How many models are trained: methods times seeds."""
        hints = self.hints
        hinted = 0 if hints is None else 1 + hints.permuted_control + hints.with_distill
        taught = (1 if self.start == "merged" and self.teacher is not None else 0) + len(self.controls)
        judged = self.tuned and "sft" not in self.compare
        written = 3 if self.synthetic is not None else 0
        return (1 + hinted + taught + len(self.compare) + judged + written) * len(self.seeds)

    @property
    def patient(self) -> bool:
        """Whether every training goes on for as long as validation text gains by it."""
        return self.epochs == "auto"

    @property
    def passes(self) -> float:
        """Over the training text; with epochs: auto at most."""
        return self.max_epochs if self.epochs == "auto" else self.epochs

    @property
    def distilled(self) -> bool:
        """Whether the source is a teacher of anything."""
        return self.teacher is not None or "distill" in self.compare

    @property
    def teaching(self) -> Teacher:
        return Teacher() if self.teacher is None else self.teacher

    @property
    def tuned(self) -> bool:
        """Whether the source is trained before it teaches."""
        return self.distilled and self.teaching.tune != "none"

    @property
    def searched(self) -> tuple[str, ...]:
        """The options that short trainings choose (`auto`)."""
        weighted = self.distill_weight == "auto" and self.distilled
        return (*(["learning_rate"] if self.learning_rate == "auto" else []), *(["distill_weight"] if weighted else []))

    @property
    def validated(self) -> bool:
        """Whether something is chosen on validation text."""
        return self.tuned or self.patient or bool(self.searched)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        if isinstance(data, dict):
            given = dict(data)
            for name in ("seeds", "compare", "controls"):
                if isinstance(given.get(name), (int, str)) and not isinstance(given[name], bool):
                    given[name] = [given[name]]
            return given
        return data

    @model_validator(mode="after")
    def _fits(self) -> Adaptation:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: each seed once")
        if self.patient and self.max_steps is not None:
            raise ValueError("epochs: auto finds the number of steps itself: leave max_steps out")
        if self.hints is not None and self.hints.with_distill and "distill" not in self.compare:
            raise ValueError("hints.with_distill needs compare: [distill]")
        if self.controls and "distill" not in self.compare and not (self.start == "target" and self.teacher):
            raise ValueError("controls are placebos of distillation: they need compare: [distill]")
        if (
            self.synthetic is not None
            and "distill" not in self.compare
            and not (self.start == "target" and self.teacher)
        ):
            raise ValueError("synthetic text is learnt with what the source says of it: it needs compare: [distill]")
        if self.synthetic is not None and not self.patient:
            raise ValueError(
                "synthetic text is worth its cost only once more passes over the real text stop helping: it needs "
                "epochs: auto, which finds that point"
            )
        if "untuned" in self.controls and not self.tuned:
            raise ValueError("the control untuned is the source before it was tuned: it needs teacher.tune")
        if self.start == "target" and self.hints is not None:
            raise ValueError("hints train the merged model: they need start: merged")
        return self
