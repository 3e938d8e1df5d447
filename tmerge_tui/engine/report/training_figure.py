"""The figures of training: the loss of every training over its steps, a figure for each method, and beside it what
validation text said after every pass, where that decided how many there were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tmerge_tui.engine.report.axes import Frame
from tmerge_tui.engine.report.names import beside_trained
from tmerge_tui.engine.report.svg import SERIES, Figure, polyline, text, ticks
from tmerge_tui.engine.report.training_verdict import told_curve
from tmerge_tui.quantities import known, number

Row = Mapping[str, Any]
Points = list[tuple[int, float]]


def training_curves(trainings: Sequence[Row]) -> Iterator[Figure]:
    """A line for each seed. Methods stand apart, since what their losses are made of differs."""
    for model in dict.fromkeys(row["model"] for row in trainings):
        curves = [
            [(step, loss) for step, loss in row["curve"] if known(loss) is not None]
            for row in trainings
            if row["model"] == model
        ]
        name = beside_trained(model)
        if any(curves):
            title = f"Loss of {name} over its steps, a line for each seed"
            yield _figure(
                f"training-{model}", title, name, "loss, nats a token", [points for points in curves if points]
            )
        told = [told_curve(row) for row in trainings if row["model"] == model and row.get("told")]
        if any(told):
            title = f"Validation text told by {name} after every pass; the last point is where the rate has fallen"
            yield _figure(f"validation-{model}", title, f"{name}, validation text", "bits per byte", told)


def _figure(key: str, title: str, name: str, unit: str, curves: Sequence[Points]) -> Figure:
    losses = [loss for points in curves for _, loss in points]
    last = max(2, *(step for points in curves for step, _ in points))
    low, high = min(losses), max(losses)
    margin = 0.08 * (high - low or 1.0)
    frame = Frame(72.0, 28.0, 280.0, 150.0, low - margin, high + margin)

    def at_x(step: float) -> float:
        return frame.left + frame.width * (step - 1) / (last - 1)

    steps = [step for step in ticks(1, last, 4) if step == round(step)]
    body = [*frame.levels(ticks(frame.low, frame.high, 4), number), *frame.below((at_x(s), f"{s:,.0f}") for s in steps)]
    body += frame.names("optimiser step", unit)
    body.append(text(frame.left, 16, name, "strong"))
    for place, points in enumerate(curves):
        body.append(polyline([(at_x(step), frame.at_y(loss)) for step, loss in points], f"s{place % SERIES} line"))
    return Figure(key, title, frame.right + 14, frame.bottom + 48, "".join(body))
