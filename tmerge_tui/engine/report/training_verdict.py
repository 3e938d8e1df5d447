"""What training has changed, in plain words: sentences for the verdict, and how was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.engine.report.verdict import Comparison
from tmerge_tui.quantities import bits, count, known

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
    who = "Low-rank updates" if adaptation["method"] == "lora" else "Every weight"
    over = f"{count(seeds)} seed{'s' if seeds != 1 else ''}"
    if patience := adaptation.get("patience"):
        said = [f"{who} trained on {count(adaptation['samples'])} samples; {over}. {_patience(patience)}"]
        said += [_passes(row, patience) for row in adaptation["trainings"] if row["told"]]
    else:
        said = [
            f"{who} trained for {count(adaptation['steps'])} steps on {count(adaptation['tokens'])} tokens of "
            f"{count(adaptation['samples'])} samples, the same for every method; {over}.",
        ]
    if adaptation.get("distillation"):
        said.append(f"Distillation compares {adaptation['distillation']}.")
    if tuned := adaptation.get("tuned"):
        how = "low-rank updates" if tuned["method"] == "lora" else "every weight but embeddings and head"
        said.append(
            f"The source was tuned first ({how}): {bits(tuned['before'])} bits per byte of {count(tuned['texts'])} "
            f"validation texts before, {bits(tuned['after'])} after; the fine-tuned target {bits(tuned['sft'])}."
        )
        if not tuned.get("helped", True):
            said.append("Tuning did not help, so the source as it was is the teacher.")
        if tuned["why_not"]:
            said.append(f"Nothing was distilled: {tuned['why_not']}.")
    if written := adaptation.get("synthetic"):
        said += _written(written)
    if search := adaptation.get("search"):
        said.append(_searched(search))
    return said


def _written(written: Row) -> list[str]:
    """What the source wrote and what became of it."""
    said = []
    if "source" in written:
        for role, who in (("source", "The source"), ("target", "The target, as a control,")):
            one = written[role]
            why = ", ".join(f"{count(number)} {reason}" for reason, number in one["dropped"].items())
            said.append(
                f"{who} wrote {count(one['written'])} texts from {count(written['texts'])} training texts by "
                f"{one['by']}; {count(one['kept'])} could be learnt" + (f", dropped were: {why}." if why else ".")
            )
    if written["why_not"]:
        return [*said, f"Nothing was trained on written text: {written['why_not']}."]
    return [
        *said,
        f"Written text was learnt first, {count(written['samples'])} texts of {count(written['tokens'])} tokens in "
        f"{count(written['steps'])} steps; the real text last, for as long as it helped. The control with more passes "
        "has had as many steps over the real text as both together.",
    ]


def _patience(patience: Row) -> str:
    """The rule of `epochs: auto`."""
    return (
        f"Every training went on until {count(patience['passes'])} passes in a row had gained less than "
        f"{patience['min_gain']:g} bits per byte of validation text each, at most {patience['max_epochs']:g} passes: "
        "the rate stayed, and from the best moment fell to 0 in a fifth of the steps that led there. Methods may "
        "differ in steps, each has what is best for it."
    )


def _passes(row: Row, patience: Row) -> str:
    """How far one training went, and what was kept of it."""
    whole = patience["steps_of_pass"]
    measured = row["told"][1:]
    best = min(measured, key=lambda point: point[1] if known(point[1]) is not None else math.inf)
    end = "that was kept" if row["steps"] > best[0] else "which is not better: the best pass was kept"
    return (
        f"{beside_trained(row['model'])}, seed {row['seed']}: {bits(row['told'][0][1])} at the start, best after "
        f"{best[0] / whole:g} of {measured[-1][0] / whole:g} passes ({bits(best[1])}), with the fall of the rate "
        f"{bits(row['decayed'])}, {end}."
    )


def told_curve(row: Row) -> list[tuple[int, float]]:
    """(step, bits per byte of the validation text) after every pass; last what the fall of the rate has left."""
    points = [(step, value) for step, value in row["told"] if known(value) is not None]
    if known(row["decayed"]) is None or not points[1:]:
        return points
    best = min(points[1:], key=lambda point: point[1])
    fallen = row["steps"] if row["steps"] > best[0] else points[-1][0]
    return sorted([*points, (fallen, row["decayed"])])


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
