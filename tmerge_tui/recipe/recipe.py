"""The recipe: everything a run depends on, as one YAML file.

Every field carries its default, unit, equation of the paper (arXiv 2602.05495) and whether it belongs to the expert
view; the wizard, `tmerge plan` and the documentation read them from here. Unknown keys are errors with a did-you-mean,
and all problems of a file are listed at once. Relative paths are taken from the current directory and made absolute.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError, model_validator

from tmerge_tui.errors import RecipeError
from tmerge_tui.recipe.adaptation import Adaptation
from tmerge_tui.recipe.evaluation import Evaluation
from tmerge_tui.recipe.fusion import ATTENTION, FusionOptions, ProjectionKind
from tmerge_tui.recipe.ls_merge import LsMerge
from tmerge_tui.recipe.ot_fusion import OtFusion
from tmerge_tui.recipe.paths import is_folder, with_absolute_paths
from tmerge_tui.recipe.presets import read_recipe_mapping, with_preset
from tmerge_tui.recipe.problems import booleans_for_numbers, fields, problems_of, section_of
from tmerge_tui.recipe.section import Section, option
from tmerge_tui.recipe.yamlfile import parse_mapping

MethodName = Literal["transport_merge", "ot_fusion", "ls_merge"]


def _model_choice(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class ModelChoice(Section):
    """A Hub id (`org/name`, `org/name@revision`, `org/name:file.gguf`), a folder, or a GGUF file."""

    model: str = option(
        ..., "Hub id (org/name, org/name@revision, org/name:file.gguf), folder or GGUF file", "models", min_length=1
    )
    revision: str | None = option(None, "branch, tag or commit on the Hub", "models", expert=True)
    trust_remote_code: bool = option(False, "run Python code that comes with the model", "models", expert=True)

    @model_validator(mode="before")
    @classmethod
    def _split_revision(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("model"), str):
            name = data["model"]
            if "@" in name and not is_folder(name) and not data.get("revision"):
                name, revision = name.rsplit("@", 1)
                revision, colon, file = revision.partition(":")  # org/name@revision:file.gguf
                name += colon + file
                return {**data, "model": name, "revision": revision}
        return data

    @property
    def is_folder(self) -> bool:
        return is_folder(self.model)


Choice = Annotated[ModelChoice, BeforeValidator(_model_choice)]


class Calibration(Section):
    """The text both models read, and the text held out from every alignment."""

    path: str | None = option(None, "local .txt (one sample a line), .jsonl, .csv or .parquet file", "text")
    repo_id: str | None = option(None, "Hub data set, instead of a file", "text")
    revision: str | None = option(None, "branch, tag or commit of the data set", "text", expert=True)
    config_name: str | None = option(None, "configuration of the data set", "text", expert=True)
    split: str = option("train", "split of the data set", "text", expert=True)
    column: str | None = option(
        None, "field that holds text or chat messages; found by itself when it is clear", "text"
    )
    samples: int = option(2000, "calibration samples T", "text", unit="samples", equation="eq. 6", ge=2, le=10**9)
    holdout: int = option(
        400, "samples held out for measuring, never aligned on", "text", unit="samples", ge=2, le=10**9
    )
    validation: int = option(
        200, "samples for choices such as alpha: auto, in neither of the two; drawn only when needed", "text",
        unit="samples", expert=True, ge=2,
    )  # fmt: skip
    holdout_path: str | None = option(
        None, "measure on this file instead of a share of the calibration file", "text", expert=True
    )
    max_length: int = option(512, "longest sample; the rest is cut", ("activations", "scores"), unit="tokens", ge=8)
    pooling: Literal["sample", "span"] = option(
        "sample", "one row per sample (the paper), or one per whitespace word", "activations", equation="eq. 6"
    )
    chat_template: Literal["auto", "off"] = option(
        "auto",
        "each model's own chat template for chat messages; off joins their text",
        ("activations", "scores", "hints", "training text"),
        expert=True,
    )
    batch_size: int = option(
        16, "samples in one forward pass; halved when memory runs out", "nothing", expert=True, ge=1
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Calibration:
        if (self.path is None) == (self.repo_id is None):
            raise ValueError("give exactly one of path (a local file) and repo_id (a Hub data set)")
        return self


class Transport(Section):
    """Feature plans Q per side and layer pair, layer plans P (section 2 and 3 of the method)."""

    projections: tuple[ProjectionKind, ...] = option(
        ATTENTION, "projections to align", "activations", equation="eq. 6", min_length=1
    )
    structure: tuple[Literal["neurons", "heads", "rotary", "residual"], ...] = option(
        (),
        "what plans keep together; neurons: gate, up and down share one plan; heads: whole heads are matched, rotary: "
        "and pairs that positions turn stay pairs; residual: what a layer reads and adds shares one plan",
        ("plans", "layers"),
        expert=True,
    )
    epsilon: float = option(0.1, "entropic regularisation of feature plans", "plans", equation="eq. 8", gt=0, le=10)
    max_iterations: int = option(200, "Sinkhorn iterations at most", "plans", equation="A.3", expert=True, ge=1)
    tolerance: float = option(1e-6, "marginal violation at which to stop", "plans", equation="A.3", expert=True, gt=0)
    stop: Literal["relative", "absolute"] = option(
        "relative",
        "measure the violation against the marginal (sum of |Q1 - a|), or as the paper does (max |Q1 - a|)",
        ("plans", "layers"),
        equation="A.3",
        expert=True,
    )
    solver: Literal["fast", "plain", "pot"] = option(
        "fast",
        "batched Sinkhorn with Anderson acceleration; the paper's plain loop; or the POT library",
        "plans",
        equation="A.3",
        expert=True,
    )
    eta: float = option(0.1, "entropic regularisation of layer plans", "layers", equation="eq. 11", gt=0, le=100)
    layer_cost: Literal["raw", "median"] = option(
        "raw",
        "layer costs as in the paper, or shifted by their minimum and divided by their median",
        "layers",
        equation="eq. 10",
        expert=True,
    )
    layer_max_iterations: int = option(
        1000, "iterations of the layer solve", "layers", equation="A.2", expert=True, ge=1
    )
    layer_tolerance: float = option(1e-9, "tolerance of the layer solve", "layers", equation="A.2", expert=True, gt=0)
    top_layers: int = option(3, "source layers kept for each target layer", "layers", equation="A.1", ge=1)
    executor: Literal["local", "ray"] = option(
        "local", "solve feature plans in this process, or as tasks of a Ray cluster (extra ray)", "nothing", expert=True
    )
    ray_address: str = option(
        "",
        "host:port of a running Ray cluster, or auto for the one this machine is part of; empty starts one here",
        "nothing",
        expert=True,
        pattern=r"^(auto|(\[[\da-fA-F:.]+\]|[^\s:/\[\]]+):\d{1,5})?$",
    )

    @model_validator(mode="before")
    @classmethod
    def _structure_list(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("structure"), str):
            return {**data, "structure": [] if data["structure"] == "none" else [data["structure"]]}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Transport:
        if "rotary" in self.structure and "heads" not in self.structure:
            raise ValueError("structure: rotary keeps pairs of channels within matched heads; add heads")
        if self.ray_address and self.executor != "ray":
            raise ValueError(
                f"ray_address: found {self.ray_address} with executor: {self.executor}, expected executor: ray; "
                "set that, or leave ray_address empty"
            )
        return self


class Recipe(Section):
    source: Choice = option(..., "the model knowledge comes from; only read", equation="B")
    target: Choice = option(..., "the model that is changed and kept", equation="A")
    calibration: Calibration = option(..., "calibration and hold-out text")
    method: MethodName = option("transport_merge", "how the two models are merged", "outputs", expert=True)
    compare_methods: tuple[MethodName, ...] = option(
        (),
        "try several methods, each at its best strength on validation text beside its placebos, on one page "
        "(compare.html); model/ is then the best one's",
        "nothing",
        expert=True,
    )
    transport: Transport = option(Transport(), "feature and layer plans")
    fusion: FusionOptions = option(FusionOptions(), "weights from plans")
    ot_fusion: OtFusion = option(OtFusion(), "maps of method: ot_fusion")
    ls_merge: LsMerge = option(LsMerge(), "the autoencoder of method: ls_merge")
    adaptation: Adaptation | None = option(None, "training after the merge; off when empty", equation="eq. 15-18")
    evaluation: Evaluation = option(Evaluation(), "what is measured on the hold-out")
    select: Literal["recipe", "validation"] = option(
        "recipe",
        "what becomes model/: the result that the recipe names, or whatever is best on validation text, the target "
        "itself included",
        "outputs",
    )
    output: str = option(..., "run folder; the merged model is in its model/", "nothing", min_length=1)
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N", "nothing", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "type of the forward passes: bfloat16 on a GPU, float32 on a CPU when it fits",
        ("activations", "hints", "training", "scores"),
        expert=True,
    )
    memory: str | int | None = option(
        None,
        "memory the weights may take, such as 8GB; what does not fit is streamed layer by layer",
        "nothing",
        unit="bytes",
        expert=True,
    )
    seed: int = option(0, "of sampling, bootstrap and placebos", ("text", "scores"), ge=0)
    resolved: dict[str, Any] | None = option(
        None, "written by the run: model commits, data hashes, versions", ("models", "text"), expert=True
    )

    @model_validator(mode="before")
    @classmethod
    def _first_method(cls, data: Any) -> Any:
        compared = data.get("compare_methods") if isinstance(data, dict) else None
        if isinstance(compared, (list, tuple)) and compared and data.get("method") is None:
            return {**data, "method": compared[0]}
        return data

    @model_validator(mode="after")
    def _compares(self) -> Recipe:
        compared = self.compare_methods
        if compared and (len(set(compared)) < len(compared) or len(compared) < 2):
            raise ValueError(f"compare_methods: found {', '.join(compared)}, expected two or more, each once")
        if compared and self.method not in compared:
            raise ValueError(
                f"method: found {self.method} beside compare_methods: {', '.join(compared)}, expected one of them; "
                "leave it out"
            )
        if compared and self.adaptation is not None:
            raise ValueError(
                "adaptation: found together with compare_methods, which compares merges that are not trained; compare "
                "first, then train with the best method"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        aligned = set(self.transport.projections)
        missing = [p for p in self.fusion.projections or () if p not in aligned]
        if missing:
            raise ValueError(
                f"fusion.projections names {', '.join(missing)}, which transport.projections does not align; "
                f"add them there or drop them here"
            )
        general = self.evaluation.general
        if general is not None and general.bound is not None and self.select != "validation":
            raise ValueError(
                f"evaluation.general.bound: found {general.bound:g} with select: {self.select}, expected select: "
                "validation, which is what it binds; set that, or leave the bound out"
            )
        if self.transport.executor == "ray" and ":" in self.device:
            raise ValueError(
                f"device: found {self.device}, one GPU of this machine, with transport.executor: ray, which takes all "
                "of its cluster; expected auto, cuda or cpu"
            )
        if self.memory is not None:
            try:
                parse_bytes(self.memory)
            except ValueError as error:
                raise ValueError(f"memory: {error}") from error
        return self

    @property
    def fused_projections(self) -> tuple[str, ...]:
        return self.fusion.projections or self.transport.projections

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_bytes(self.memory)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: str | int) -> int:
    """`8GB`, `512 MiB` or a plain number, in bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise ValueError(f"{value!r} is not a size; expected something like 8GB or 512MiB")
    return int(float(match.group(1)) * _UNITS[unit])


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe file, or `preset:NAME`.

    Raises RecipeError listing every problem: unreadable file, YAML syntax, unknown keys, wrong values.
    """
    return make_recipe(read_recipe_mapping(path))


def parse_recipe(text: str, name: str = "recipe") -> Recipe:
    """Reads a recipe from YAML text; see `load_recipe`."""
    return make_recipe(parse_mapping(text, name))


def make_recipe(data: Mapping[str, Any]) -> Recipe:
    """Validates a mapping, on top of the preset it may name. Raises RecipeError listing every problem."""
    data = with_preset(data)
    # a section whose lines are all commented out is there, but empty
    given = {k: v for k, v in data.items() if v is not None or k not in Recipe.model_fields}
    problems = list(booleans_for_numbers(given, Recipe))
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        raise RecipeError(problems + problems_of(error, Recipe, given)) from error
    if problems:
        raise RecipeError(problems)
    return with_absolute_paths(recipe)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field present; reading it back gives an equal recipe."""
    data = recipe.model_dump(mode="json")
    if data["resolved"] is None:
        del data["resolved"]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def options(section: type[BaseModel] = Recipe) -> Iterator[tuple[str, Any]]:
    """(dotted name, pydantic FieldInfo) of every leaf field, in order: what a form or a manual needs."""
    return ((name, field) for name, field in fields(section) if section_of(field.annotation) is None)
