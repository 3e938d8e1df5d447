"""What ls_merge shows in the report: how the autoencoder was trained and chosen, each matrix in its latent space."""

from __future__ import annotations

from typing import Any

from tmerge_tui.engine.methods.ls_merge.merge import Latents
from tmerge_tui.engine.methods.ls_merge.train import Course, Plan
from tmerge_tui.engine.part import Part


def parts(latents: Latents, plan: Plan, course: Course, seed: int) -> list[Part]:
    """The distances are ||source - target|| / ||target||, of latents before the Bures map and of the chunks."""
    shape = plan.shape
    training: dict[str, Any] = {
        "chunk": shape.c,
        "latent": shape.latent,
        "width": shape.width,
        "blocks": shape.blocks,
        "parameters": shape.parameters,
        "steps": plan.steps,
        "seed": seed,
        "chosen": course.best.step,
        "curve": [list(point) for point in course.curve],
        "moments": [vars(moment) for moment in course.moments],
    }
    return [Part("autoencoder", training), Part("latents", latents.lines)]
