"""What goes beside the merged weights: a model card (README.md) and the recipe (tmerge_recipe.yaml).

Every other non-weight file of the output is the target's, byte for byte. README.md is the one exception: the target's
own is kept as README.target.md. Nothing that leaves with the model names a local path or holds a token.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

from tmerge_tui.engine.report.redact import LOCAL, public
from tmerge_tui.engine.report.templates import environment
from tmerge_tui.engine.report.verdict import judge, median_ratio
from tmerge_tui.engine.report.views import adaptation
from tmerge_tui.files import storage, write_atomic
from tmerge_tui.models.licence import licence_of
from tmerge_tui.quantities import NONE, bits, interval, known, number, signed

RECIPE_FILE = "tmerge_recipe.yaml"
NORWEGIAN = "no"
OT_FUSION = "ot_fusion"  # the method, and its section of the recipe


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
        norm=(recipe.get("fusion") or {}).get("norm", "free"),
        strength=results.get("strength"),
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
        "method": recipe.get("method"),
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
        "flags": flags,
        "recipe": public_recipe(recipe),
        "versions": results.get("versions") or {},
    }
    body = environment().get_template("card.md.jinja").render(shown)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def hub_id(name: Any) -> str | None:
    """`name` when it can be a model on the Hub; None for a folder."""
    if not isinstance(name, str) or LOCAL.match(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _alpha_of(results: Mapping[str, Any], model_folder: Path) -> float | None:
    outputs = results.get("output") or []
    mine = [o["alpha"] for o in outputs if PurePosixPath(o["folder"]).name == model_folder.name]
    return (mine or [o["alpha"] for o in outputs] or [None])[0]


def _front_matter(readme: Path | None) -> tuple[dict[str, Any], list[str]]:
    """What the target's own card declares, and a warning when it cannot be read."""
    if readme is None or not readme.exists():
        return {}, []
    try:
        return metadata_load(readme) or {}, []
    except (ValueError, yaml.YAMLError, OSError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return {}, [f"the target's README.md has a header that cannot be read ({reason}); nothing is inherited from it"]


def _licence(results: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Card fields of the target's licence, and what to flag about the two."""
    models = results.get("models") or {}
    target = licence_of(own.get("license")) or (models.get("target") or {}).get("licence")
    source = (models.get("source") or {}).get("licence")
    fields = {"license": target, "license_name": own.get("license_name"), "license_link": own.get("license_link")}
    notes = []
    if not target:
        notes.append("the target declares no licence, so the merged model has none; check before sharing it")
    if source and _licences(source) != _licences(target):
        notes.append(f"the source's licence ({source}) differs from the target's ({target or 'none'}); both may apply")
    elif not source:
        notes.append("the source declares no licence; check its terms before sharing the merged model")
    return {name: value for name, value in fields.items() if isinstance(value, str) and value}, notes


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
    corpus, transport, fusion = (recipe.get(part) or {} for part in ("calibration", "transport", "fusion"))
    ratio = median_ratio(results.get("projections") or [])
    own = [
        ("projections", ", ".join(fusion.get("projections") or transport.get("projections") or [])),
        ("neurons fused per projection (k)", fusion.get("k")),
        ("plan entries kept (r)", fusion.get("r")),
        ("coupling", fusion.get("coupling")),
        ("norm", fusion.get("norm")),
        ("epsilon", transport.get("epsilon")),
        ("eta", transport.get("eta")),
        ("source layers per target layer", transport.get("top_layers")),
        ("solver", transport.get("solver")),
    ]
    if recipe.get("method") == OT_FUSION:
        own = [(name, value) for name, value in (recipe.get(OT_FUSION) or {}).items() if name != "epsilon"]
        if dict(own).get("solver") == "sinkhorn":
            own.append(("epsilon", recipe[OT_FUSION].get("epsilon")))
    rows = [
        ("alpha", _alpha(alpha, results.get("strength"))),
        *own,
        ("calibration", corpus.get("repo_id") or (corpus.get("path") and "local text")),
        ("calibration samples", corpus.get("samples")),
        ("pooling", corpus.get("pooling")),
        ("seed", recipe.get("seed")),
        ("transported norm / target norm, median", None if ratio is None else number(ratio)),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _alpha(alpha: float | None, strength: Mapping[str, Any] | None) -> str:
    """The strength, or one for each kind of projection when they were chosen."""
    if strength is None:
        return NONE if alpha is None else f"{alpha:g}"
    return ", ".join(f"{kind} {chosen:g}" for kind, chosen in strength["strengths"].items())


def _name(recipe: Mapping[str, Any], role: str) -> str:
    return str(public((recipe.get(role) or {}).get("model") or "unknown"))


def _shape(results: Mapping[str, Any], role: str) -> str:
    facts = (results.get("models") or {}).get(role) or {}
    parts = [facts.get("architecture")]
    parts += [f"{facts[name]} {name}" for name in ("layers", "hidden") if facts.get(name)]
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
