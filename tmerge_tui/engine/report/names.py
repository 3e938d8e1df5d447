"""What everything that is measured is called, on every face. Imports nothing heavy: the wizard reads it too.

One row for each `model` of report.json's `scores`, `benchmarks`, `samples` and `adaptation`, in the tables' order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """How one model is written and drawn."""

    title: str  # in tables and legends
    short: str = ""  # where a terminal has no room for it
    beside_trained: str = ""  # what it is called in a table of trained models
    placebo: str = ""  # in a sentence, of what a result has to beat
    series: int = 0  # its colour, .s0 to .s5 of figures.css
    shape: str = ""  # disc, square or diamond; drawn over alpha when it has one
    dash: str = ""  # of its line


NAMES = {
    "target": Name("target"),
    "source": Name("source"),
    "fused": Name("fused", beside_trained="fused, not trained", shape="disc"),
    "shrink": Name(
        "placebo: rows shrunk",
        "placebo: shrunk",
        placebo="the shrunk-rows placebo (nothing transported)",
        series=1,
        shape="square",
        dash="6 4",
    ),
    "permuted": Name(
        "placebo: source permuted",
        "placebo: permuted",
        placebo="the permuted placebo (source channels shuffled)",
        series=2,
        shape="diamond",
        dash="2 3",
    ),
    "reconstructed": Name(
        "placebo: through the autoencoder, no source",
        "placebo: autoencoder",
        placebo="the target through the same autoencoder (nothing of the source)",
        series=1,
        shape="square",
        dash="6 4",
    ),
    "random_source": Name(
        "placebo: a random source",
        "placebo: random",
        placebo="a source of random weights",
        series=2,
        shape="diamond",
        dash="2 3",
    ),
    "permuted_chunks": Name(
        "placebo: chunks permuted",
        placebo="the source's chunks permuted inside each layer",
    ),
    "noise": Name("placebo: noise", placebo="noise of the same norm in the latent space"),
    "truncated": Name(
        "placebo: rank truncated",
        "placebo: truncated",
        placebo="the target's weights truncated in rank to the autoencoder's error",
    ),
    "autoencoder": Name("autoencoder of weights"),
    "adapted": Name("fused, adapted"),
    "sft": Name("fine-tuned (SFT)"),
    "distilled": Name("distilled"),
    "hinted": Name("fused, adapted, hints"),
    "hinted_permuted": Name("placebo: hints permuted"),
    "distilled_hinted": Name("distilled, hints"),
    "adapted_distilled": Name("fused, distilled"),
    "control_other_text": Name("placebo: events of another text"),
    "control_permuted": Name("placebo: masses permuted"),
    "control_unigram": Name("placebo: the source's unigram"),
    "control_self": Name("placebo: the target as its own teacher"),
    "control_untuned": Name("control: the source as it was, untuned"),
    "synthetic": Name("distilled, text of the source first"),
    "control_self_written": Name("control: text of the target first"),
    "control_more_passes": Name("control: more passes over the real text"),
}
PLACEBOS = {model: name.placebo for model, name in NAMES.items() if name.placebo}
DRAWN = {model: name for model, name in NAMES.items() if name.shape}  # over alpha
OUTCOMES = {True: "better", False: "worse", None: "cannot tell"}  # of a 95 % interval below, above or over 0


def title(model: str) -> str:
    return NAMES[model].title if model in NAMES else model


def short(model: str) -> str:
    """The title, or less where there is a shorter word for it."""
    return (NAMES[model].short if model in NAMES else "") or title(model)


def beside_trained(model: str) -> str:
    """The title among models that were trained, where "fused" alone would not say that it was not."""
    return (NAMES[model].beside_trained if model in NAMES else "") or title(model)


def rank(model: str) -> int:
    """Its place in a table; what has no name comes last."""
    order = list(NAMES)
    return order.index(model) if model in NAMES else len(order)
