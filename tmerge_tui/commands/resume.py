"""`tmerge resume`: a run goes on where it stopped."""

from __future__ import annotations

from tmerge_tui.commands.batch import Options, change
from tmerge_tui.commands.batch import run as run_recipe
from tmerge_tui.errors import RunFolderError
from tmerge_tui.recipe import make_recipe
from tmerge_tui.recipe.yamlfile import read_mapping
from tmerge_tui.run_folder import RunDir


def resume(path: str, options: Options) -> int:
    """Runs the recipe of a run folder again: finished pieces are kept. Raises RunFolderError when there is none."""
    run = RunDir.open(path)
    if not run.recipe.is_file():
        raise RunFolderError(f"{path} has no recipe.yaml", "a run that was started", "run its recipe: tmerge --batch")
    recipe = read_mapping(run.recipe)
    recipe["output"] = str(run.path)  # the folder may have been moved
    return run_recipe(make_recipe(change(recipe, options)), options)
