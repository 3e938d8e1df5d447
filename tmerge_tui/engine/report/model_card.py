"""What goes beside the merged weights: a model card (README.md) and the recipe (tmerge_recipe.yaml).

Every other non-weight file of the output is the target's, byte for byte. README.md is the one exception: the target's
own is kept as README.target.md. Nothing that leaves with the model names a local path or holds a token.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tmerge_tui.engine.report import besides_views
from tmerge_tui.engine.report.besides import SAYS, row_of
from tmerge_tui.engine.report.redact import LOCAL, public
from tmerge_tui.engine.report.templates import environment
from tmerge_tui.engine.report.verdict import judge, median_ratio
from tmerge_tui.engine.report.views import adaptation
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.models.licence import card_head, licence_of
from tmerge_tui.quantities import NONE, bits, interval, known, number, signed
from tmerge_tui.recipe import hub_file
from tmerge_tui.recipe.evaluation import EVERY

RECIPE_FILE = "tmerge_recipe.yaml"
NORWEGIAN = "no"
AS_GGUF = """python convert_hf_to_gguf.py . --outtype bf16 --outfile {name}-bf16.gguf
llama-quantize {name}-bf16.gguf {name}-Q4_K_M.gguf Q4_K_M"""


def write_card(results: Mapping[str, Any], model_folder: Path, target_readme: Path | None) -> tuple[str, ...]:
    """Writes README.md and tmerge_recipe.yaml into `model_folder`; returns what the user should be warned about.

    `results` is report.json; `model_folder` is one of its outputs, by name. Raises StorageError.
    """
    own, notes = _front_matter(target_readme)
    licence, licence_notes = _licence(results, own)
    notes += licence_notes
    with storage(model_folder):
        if target_readme is not None and target_readme.exists():
            _keep(target_readme, model_folder)
            # a target that was itself merged brings a recipe of its own
            _keep(target_readme.with_name(RECIPE_FILE), model_folder)
        trained = _trained(results, model_folder)
        card = _card(results, _alpha_of(results, model_folder), trained, own, licence, licence_notes)
        write_atomic(model_folder / "README.md", card.encode())
        write_atomic(model_folder / RECIPE_FILE, public_recipe(results.get("recipe") or {}).encode())
    return tuple(notes)


def public_recipe(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML, each local path cut to its last name, tokens removed."""
    return yaml.safe_dump(public(recipe), sort_keys=False, allow_unicode=True, width=120)


def _card(
    results: Mapping[str, Any],
    alpha: float | None,
    trained: Mapping[str, Any] | None,  # its row of `adaptation`; None for a model that was only fused
    own: Mapping[str, Any],
    licence: Mapping[str, str],
    flags: list[str],
) -> str:
    recipe = results.get("recipe") or {}
    verdict = judge(
        results.get("scores") or [],
        results.get("contrasts") or [],
        results.get("projections") or [],
        alpha=alpha,
        norm=_mixing(recipe.get("fusion") or {}),
        strength=results.get("strength"),
        claims=results["method"]["claims"],
    )
    name = PurePosixPath(str(recipe.get("output") or "merged model")).name
    ids = {role: hub_id((recipe.get(role) or {}).get("model")) for role in ("target", "source")}
    corpus = (recipe.get("calibration") or {}).get("repo_id")
    datasets = [*_words(own.get("datasets")), *([corpus] if corpus else [])]
    data = ModelCardData(
        base_model=[i for i in ids.values() if i] or None,
        base_model_relation="merge",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["merge", "tmerge"],
        language=_words(own.get("language")) or None,
        datasets=list(dict.fromkeys(datasets)) or None,
        model_name=name,
        eval_results=_measured(results, alpha, trained, corpus),
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    shown = {
        "name": name,
        "alpha": alpha,
        "verdict": verdict,
        "models": [(role, ids[role], _name(recipe, role), _shape(results, role)) for role in ("target", "source")],
        "method": results["method"]["about"],
        "settings": _settings(recipe, alpha, results),
        "scores": [
            (
                s["model"],
                NONE if s["alpha"] is None else f"{s['alpha']:g}",
                bits(s.get("bits_per_byte")),
                signed(s.get("difference")),
                interval(s.get("low"), s.get("high")),
            )
            for s in results.get("scores") or []
            if s["alpha"] is None or s["alpha"] == alpha
        ],
        "adaptation": adaptation(results["adaptation"]) if trained else None,
        "besides": _besides(results, ("fused", alpha) if trained is None else (trained["model"], None)),
        "flags": flags,
        "as_gguf": AS_GGUF.format(name=re.sub(r"[^\w.-]+", "-", name)),
        "recipe": public_recipe(recipe),
        "versions": results.get("versions") or {},
    }
    body = environment().get_template("card.md.jinja").render(shown)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _mixing(fusion: Mapping[str, Any]) -> str:
    """As `FusionOptions.mixing`."""
    return str(fusion.get("norm", "free")) if fusion.get("reference") is None else "added"


def _besides(results: Mapping[str, Any], who: tuple[str, float | None]) -> dict[str, Any] | None:
    """What else has changed in this model: sentences, and its row of general text beside target and source."""
    selection = results.get("selection")
    if selection:
        who = selection["model"], selection["alpha"]
    said = [line for says in SAYS.values() for line in says(results, who)]
    general = results.get("general")
    rows = []
    if general:
        told = [row_of(general["rows"], each) for each in (("target", None), ("source", None), who)]
        told = [row for at, row in enumerate(told) if row is not None and row not in told[:at]]
        rows = besides_views.general({**general, "rows": told})["rows"]
    return {"said": said, "rows": rows} if said else None


def hub_id(name: Any) -> str | None:
    """The repository of `name` when it can be a model on the Hub; None for a folder."""
    if not isinstance(name, str) or LOCAL.match(name):
        return None
    repo, _ = hub_file(name)
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return None
    return repo


def _alpha_of(results: Mapping[str, Any], model_folder: Path) -> float | None:
    outputs = results.get("output") or []
    mine = [o["alpha"] for o in outputs if PurePosixPath(o["folder"]).name == model_folder.name]
    return (mine or [o["alpha"] for o in outputs] or [None])[0]


def _front_matter(readme: Path | None) -> tuple[dict[str, Any], list[str]]:
    """What the target's own card declares, and a warning when it cannot be read."""
    if readme is None or not readme.exists():
        return {}, []
    try:
        return card_head(readme), []
    except (ValueError, yaml.YAMLError, OSError) as error:
        reason = str(error).splitlines()[0]
        return {}, [f"the target's README.md has a header that cannot be read ({reason}); nothing is inherited from it"]


def _licence(results: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Card fields of the target's licence, and what to flag about the two."""
    models = results.get("models") or {}
    target = licence_of(own.get("license")) or (models.get("target") or {}).get("licence")
    source = (models.get("source") or {}).get("licence")
    several = own.get("license") if isinstance(own.get("license"), list) else None
    fields = {
        "license": _words(several) or target,
        "license_name": own.get("license_name"),
        "license_link": own.get("license_link"),
    }
    notes = []
    if not target:
        notes.append("the target declares no licence, so the merged model has none; check before sharing it")
    if source and _licences(source) != _licences(target):
        notes.append(f"the source's licence ({source}) differs from the target's ({target or 'none'}); both may apply")
    elif not source:
        notes.append("the source declares no licence; check its terms before sharing the merged model")
    return {name: value for name, value in fields.items() if isinstance(value, (str, list)) and value}, notes


def _licences(stated: str | None) -> set[str]:
    return {one.strip().lower() for one in (stated or "").split(",")}


def _trained(results: Mapping[str, Any], model_folder: Path) -> Mapping[str, Any] | None:
    """The row of `adaptation` that this model is the first seed of; None for a model that was only fused."""
    adaptation = results.get("adaptation")
    mine = [o for o in results.get("output") or [] if PurePosixPath(o["folder"]).name == model_folder.name]
    if not adaptation or not any(o.get("trained") for o in mine):
        return None
    return next(row for row in adaptation["rows"] if row["model"] == adaptation["result"])


def _measured(
    results: Mapping[str, Any], alpha: float | None, trained: Mapping[str, Any] | None, corpus: str | None
) -> list[EvalResult] | None:
    """The one number measured for this model: bits per byte on the hold-out."""
    row = next((s for s in results.get("scores") or [] if s["model"] == "fused" and s["alpha"] == alpha), None)
    value = known(row.get("bits_per_byte")) if row else None
    if trained:
        value = known(trained["seeds"][0])
    if value is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=corpus or "local",
            dataset_name="held-out text",
            metric_type="bits_per_byte",
            metric_name="bits per byte",
            metric_value=round(value, 6),
        )
    ]


def _settings(recipe: Mapping[str, Any], alpha: float | None, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The hyperparameters a reader compares, in words."""
    corpus = recipe.get("calibration") or {}
    ratio = median_ratio(results.get("projections") or [])
    rows = [
        ("alpha", _alpha(alpha, results.get("strength"))),
        *((name, value) for name, value in results["method"]["settings"]),
        ("calibration", corpus.get("repo_id") or (corpus.get("path") and "local text")),
        ("calibration samples", corpus.get("samples")),
        ("pooling", corpus.get("pooling")),
        ("seed", recipe.get("seed")),
        ("transported norm / target norm, median", None if ratio is None else number(ratio)),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _alpha(alpha: float | None, strength: Mapping[str, Any] | None) -> str:
    """The strength, or one for each kind of projection when they were chosen."""
    if strength is None or EVERY in strength["strengths"]:
        return NONE if alpha is None else f"{alpha:g}"
    return ", ".join(f"{kind} {chosen:g}" for kind, chosen in strength["strengths"].items())


def _name(recipe: Mapping[str, Any], role: str) -> str:
    return str(public((recipe.get(role) or {}).get("model") or "unknown"))


def _shape(results: Mapping[str, Any], role: str) -> str:
    facts = (results.get("models") or {}).get(role) or {}
    parts = [facts.get("architecture")]
    parts += [f"{facts[name]} {name}" for name in ("layers", "hidden") if facts.get(name)]
    parts += [f"read from {facts['precision']}"] if facts.get("precision") else []
    return ", ".join(str(p) for p in parts if p)


def _words(value: Any) -> list[str]:
    """The words of a field, one or several. YAML makes `no`, Norwegian, false; what is no word is left out."""
    given = value if isinstance(value, (list, tuple)) else [value]
    words = [NORWEGIAN if one is False else one for one in given]
    return [word for word in words if isinstance(word, str) and word]


def _keep(path: Path, folder: Path) -> None:
    """Copies a file that ours replaces to name.target.suffix; a target that has that name too gets a number."""
    if not path.exists():
        return
    kept, times = f"{path.stem}.target{path.suffix}", 1
    while path.with_name(kept).exists():
        times += 1
        kept = f"{path.stem}.target{times}{path.suffix}"
    shutil.copyfile(path, folder / kept)
