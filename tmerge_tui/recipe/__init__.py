"""Everything a run depends on: the recipe, its sections, and how it is read and written."""

from tmerge_tui.recipe.fusion import ATTENTION, FEED_FORWARD, PROJECTIONS, FusionOptions, ProjectionKind
from tmerge_tui.recipe.ls_merge import LS_CONTROLS, LsMerge
from tmerge_tui.recipe.ot_fusion import OtFusion
from tmerge_tui.recipe.paths import gguf_parts, hub_file, is_folder, is_gguf, is_text_file, task_name
from tmerge_tui.recipe.recipe import (
    Calibration,
    ModelChoice,
    Recipe,
    Transport,
    dump_recipe,
    load_recipe,
    make_recipe,
    options,
    parse_bytes,
    parse_recipe,
)

__all__ = [
    "ATTENTION",
    "FEED_FORWARD",
    "LS_CONTROLS",
    "PROJECTIONS",
    "Calibration",
    "FusionOptions",
    "LsMerge",
    "ModelChoice",
    "OtFusion",
    "ProjectionKind",
    "Recipe",
    "Transport",
    "dump_recipe",
    "gguf_parts",
    "hub_file",
    "is_folder",
    "is_gguf",
    "is_text_file",
    "load_recipe",
    "make_recipe",
    "options",
    "parse_bytes",
    "parse_recipe",
    "task_name",
]
