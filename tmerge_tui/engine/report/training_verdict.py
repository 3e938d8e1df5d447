"""What training has changed, in plain words: sentences for the verdict, and how was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.engine.report.verdict import Comparison
from tmerge_tui.quantities import bits, count

Row = Mapping[str, Any]


def with_adaptation(verdict: Row, adaptation: Row | None) -> dict[str, Any]:
    """The verdict on fusion, with what training did to it said first among its sentences."""
    if adaptation is None:
        return dict(verdict)
    name = adaptation["result"]
    rows = {row["model"]: row for row in adaptation["rows"]}
    mine = rows[name]
    seeds = len(adaptation["seeds"])
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    said = [
        f"The headline is about fusion alone; model/ is the model trained afterwards ({beside_trained(name)}, seed "
        f"{adaptation['seeds'][0]}): {bits(mine['bits_per_byte'])} bits per byte{over}, "
        f"{_word(mine)} than the target ({Comparison.of(mine)})."
    ]
    for contrast in adaptation["contrasts"]:
        if contrast["model"] == name:
            compared = Comparison.of(contrast)
            end = {True: "is better", False: "is worse", None: "cannot be told apart"}[compared.better]
            said.append(f"Against {beside_trained(contrast['against'])} on the same tokens, it {end} ({compared}).")
    if "sft" not in rows:
        said.append("Plain fine-tuning was not measured (adaptation.compare: [sft]): training alone may explain it.")
    return {**verdict, "sentences": [*said, *verdict["sentences"]]}


def _word(row: Row) -> str:
    return {True: "better", False: "worse", None: "not measurably other"}[Comparison.of(row).better]


def facts(adaptation: Row) -> list[str]:
    """How was trained, in sentences."""
    seeds = len(adaptation["seeds"])
    said = [
        f"{'Low-rank updates' if adaptation['method'] == 'lora' else 'Every weight'} trained for "
        f"{count(adaptation['steps'])} steps on {count(adaptation['tokens'])} tokens of {count(adaptation['samples'])} "
        f"samples, the same for every method; {count(seeds)} seed{'s' if seeds != 1 else ''}.",
    ]
    if adaptation.get("distillation"):
        said.append(f"Distillation compares {adaptation['distillation']}.")
    if tuned := adaptation.get("tuned"):
        how = "low-rank updates" if tuned["method"] == "lora" else "every weight but embeddings and head"
        said.append(
            f"The source was tuned first ({how}): {bits(tuned['before'])} bits per byte of {count(tuned['texts'])} "
            f"validation texts before, {bits(tuned['after'])} after; the fine-tuned target {bits(tuned['sft'])}."
        )
        if tuned["why_not"]:
            said.append(f"Nothing was distilled: {tuned['why_not']}.")
    if search := adaptation.get("search"):
        said.append(_searched(search))
    return said


def _searched(search: Row) -> str:
    """What short trainings chose, with all that they found."""
    curve = ", ".join(
        f"{trial['learning_rate']:g}"
        + (f" with weight {trial['weight']:g}" if trial["weight"] is not None else "")
        + (": not finite" if trial["loss"] is None else f": {trial['loss']:.4f}")
        for trial in search["trials"]
    )
    return (
        f"Chosen by trainings of {count(search['steps'])} steps on {count(search['texts'])} validation texts: learning "
        f"rate {search['learning_rate']:g}, weight {search['distill_weight']:g} (nats a token: {curve})."
    )
