"""The recipe: the paper's defaults, YAML as people write it, and every problem in one pass and in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tmerge_tui.errors import RecipeError
from tmerge_tui.recipe import (
    PROJECTIONS,
    Recipe,
    dump_recipe,
    load_recipe,
    make_recipe,
    options,
    parse_bytes,
    parse_recipe,
)
from tmerge_tui.recipe.problems import section_of
from tmerge_tui.recipe.section import PIECES

BASE: dict[str, Any] = {"source": "a/b", "target": "c/d", "calibration": {"path": "/x.txt"}, "output": "/out"}


def problems(**changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        make_recipe({**BASE, **changes})
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def test_the_defaults_are_the_papers() -> None:
    """arXiv 2602.05495: eqs. 8, 11, 14, 22 and appendix A.1-A.3, A.5."""
    recipe = make_recipe(BASE)
    assert recipe.transport.projections == ("q", "k", "v", "o")
    assert (recipe.transport.epsilon, recipe.transport.eta) == (0.1, 0.1)
    assert (recipe.transport.max_iterations, recipe.transport.tolerance) == (200, 1e-6)
    assert (recipe.transport.layer_max_iterations, recipe.transport.layer_tolerance) == (1000, 1e-9)
    assert recipe.transport.top_layers == 3 and recipe.transport.layer_cost == "raw"
    assert (recipe.fusion.k, recipe.fusion.r) == (128, 128)
    assert recipe.fusion.coupling == "plan" and recipe.fusion.norm == "free"
    assert recipe.calibration.pooling == "sample" and recipe.calibration.samples == 2000
    assert recipe.fused_projections == recipe.transport.projections


def test_every_leaf_option_says_what_it_means() -> None:
    leaves = dict(options())
    assert len(leaves) > 40 and "transport.epsilon" in leaves and "source.model" in leaves
    for name, field in leaves.items():
        assert field.description and len(field.description) > 5, name
        assert set(field.json_schema_extra) == {"unit", "equation", "expert", "affects"}, name
    assert leaves["transport.epsilon"].json_schema_extra["equation"] == "eq. 8"


def sections(section: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    """The recipe and every section in it, also those in lists."""
    yield section
    for field in section.model_fields.values():
        for inner in (field.annotation, *every_type_in(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


def every_type_in(annotation: Any) -> Iterator[Any]:
    for inner in get_args(annotation):
        yield inner
        yield from every_type_in(inner)


def test_every_option_says_what_it_invalidates() -> None:
    found = {section.__name__: section for section in sections()}
    assert {"ModelChoice", "Calibration", "Transport", "FusionOptions", "Adaptation", "Hints", "ChoiceSet"} <= set(
        found
    )
    for section in found.values():
        for name, field in section.model_fields.items():
            where, affects = f"{section.__name__}.{name}", field.json_schema_extra["affects"]
            assert set(affects) <= set(PIECES), where
            if section_of(field.annotation) is None and name != "choices":  # a list of sections
                assert affects, f"{where}: say which pieces it affects, or nothing"
            assert affects == ("nothing",) or "nothing" not in affects, where


def test_options_by_what_they_affect() -> None:
    transport = make_recipe({**BASE, "transport": {"epsilon": 0.2}}).transport
    assert transport.affecting("plans") == ("structure", "epsilon", "max_iterations", "tolerance", "stop", "solver")
    assert transport.that_affect("activations") == {"projections": ("q", "k", "v", "o")}
    assert transport.that_affect("plans")["epsilon"] == 0.2
    everything = {name for piece in PIECES for name in transport.affecting(piece)}  # type: ignore[arg-type]
    assert everything == set(type(transport).model_fields)


fractions = st.floats(0, 1)
positive = st.floats(1e-12, 10)
RECIPES = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["org/name", "org/name@v1", {"model": "org/name", "trust_remote_code": True}]),
        "target": st.just("/models/target"),
        "calibration": st.fixed_dictionaries(
            {"samples": st.integers(2, 10**6), "pooling": st.sampled_from(["sample", "span"])}
        ).flatmap(lambda d: st.sampled_from([{"path": "/x"}, {"repo_id": "a/b", "column": "täxt"}]).map(d.__or__)),
        "output": st.just("/out"),
    },
    optional={
        "transport": st.fixed_dictionaries(
            {"epsilon": positive, "tolerance": positive, "projections": st.just(list(PROJECTIONS))}
        ),
        "fusion": st.fixed_dictionaries(
            {
                "alpha": fractions | st.lists(fractions, min_size=1, max_size=4, unique=True),
                "k": st.integers(1, 999) | st.just("all"),
                "r": st.none() | st.integers(1, 99),
                "layers": st.none() | st.lists(st.integers(0, 40), max_size=3),
            }
        ),
        "memory": st.none() | st.sampled_from(["8GB", "512 MiB", 10**9]),
        "seed": st.integers(0, 2**40),
        "resolved": st.none() | st.just({"target": {"commit": "abc"}, "text": "sha:1e5"}),
    },
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(data=RECIPES)
def test_dump_and_parse_are_inverse(data: dict[str, Any]) -> None:
    recipe = make_recipe(data)
    text = dump_recipe(recipe)
    assert parse_recipe(text) == recipe
    assert dump_recipe(parse_recipe(text)) == text


@given(data=st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.text() | st.lists(st.integers())))
def test_no_mapping_is_answered_with_a_bug(data: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):  # source is missing at least
        make_recipe(data)


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "+1e-6", "0.000001", ".1e-5", "10_0e-8"])
def test_numbers_in_any_form(text: str) -> None:
    yaml = f"source: a/b\ntarget: c/d\ncalibration: {{path: x}}\noutput: o\ntransport: {{tolerance: {text}}}"
    assert parse_recipe(yaml).transport.tolerance == pytest.approx(1e-6)


@pytest.mark.parametrize("text", ["1e", "e5", "v1e5", "1e5x"])
def test_words_that_look_like_numbers_stay_words(text: str) -> None:
    assert parse_recipe(f"source: {text}\ntarget: c/d\ncalibration: {{path: x}}\noutput: o").source.model == text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fusion": {"alpha": 1.5}}, "fusion.alpha: expected 1 or less, or 'auto' (found 1.5)"),
        ({"fusion": {"alpha": [0.1, -1]}}, "fusion.alpha.1: expected 0 or more, or 'auto' (found -1)"),
        ({"fusion": {"alpha": []}}, "fusion.alpha: expected at least 1 item (found [])"),
        ({"fusion": {"alpha": [0.1, 0.1]}}, "fusion: alpha: each value once"),
        ({"fusion": {"alpha": float("nan")}}, "fusion.alpha: expected a number, or 'auto' (found nan)"),
        ({"fusion": {"alpha": [0.1, "auto"]}}, "fusion: alpha: auto stands alone, or give numbers"),
        ({"fusion": {"k": 0}}, "fusion.k: expected 1 or more, or 'all' (found 0)"),
        ({"fusion": {"k": "al"}}, "fusion.k: expected a whole number, or 'all' (found 'al'); did you mean all?"),
        ({"fusion": {"k": 1.5}}, "fusion.k: expected a whole number, or 'all' (found 1.5)"),
        (
            {"fusion": {"units": "raw"}},
            "fusion: units: raw needs coupling: barycentric (a plan's entries have no units)",
        ),
        (
            {"ot_fusion": {"cost": "weights", "depth": "plan"}},
            "ot_fusion: depth: plan compares layers by their activations; set cost: activations or depth: nearest",
        ),
        ({"ot_fusion": {"solver": "emd"}}, "ot_fusion.solver: expected 'exact', 'sinkhorn' or 'hard' (found 'emd')"),
        ({"transport": {"epsilon": 0}}, "transport.epsilon: expected more than 0 (found 0)"),
        ({"transport": {"epsilon": float("inf")}}, "transport.epsilon: expected a number (found inf)"),
        ({"transport": {"projections": "q"}}, "transport.projections: expected a list (found 'q')"),
        (
            {"transport": {"solver": "fats"}},
            "transport.solver: expected 'fast', 'plain' or 'pot' (found 'fats'); did you mean fast?",
        ),
        ({"transport": {"epsilom": 1}}, "transport.epsilom: unknown key; did you mean epsilon?"),
        ({"calibraton": {}}, "calibraton: unknown key; did you mean calibration?"),
        ({"alpha": 0.1}, "alpha: unknown key; it belongs to fusion.alpha or adaptation.alpha"),
        ({"source": {"model": "a/b", "revison": "x"}}, "source.revison: unknown key; did you mean revision?"),
        ({"source": 3}, "source: expected a section with keys (found 3)"),
        ({"source": None}, "source: missing"),
        ({"calibration": {}}, "calibration: give exactly one of path (a local file) and repo_id (a Hub data set)"),
        (
            {"calibration": {"path": "x", "repo_id": "a/b"}},
            "calibration: give exactly one of path (a local file) and repo_id (a Hub data set)",
        ),
        ({"device": "gpu"}, "device: expected auto, cpu, mps, cuda or cuda:N (found 'gpu')"),
        (
            {"transport": {"executor": "ray", "ray_address": "ray://head:10001"}},
            "transport.ray_address: expected host:port of a running Ray cluster, or auto for the one this machine is "
            "part of; empty starts one here (found 'ray://head:10001')",
        ),
        (
            {"transport": {"ray_address": "head:6379"}},
            "transport: ray_address: found head:6379 with executor: local, expected executor: ray; set that, or leave "
            "ray_address empty",
        ),
        (
            {"transport": {"executor": "ray"}, "device": "cuda:1"},
            "device: found cuda:1, one GPU of this machine, with transport.executor: ray, which takes all of its "
            "cluster; expected auto, cuda or cpu",
        ),
        ({"memory": "8X"}, "memory: '8X' is not a size; expected something like 8GB or 512MiB"),
        ({"output": ""}, "output: expected text that is not empty (found '')"),
        ({"seed": True}, "seed: expected a number (found True)"),
        ({"fusion": {"alpha": True}}, "fusion.alpha: expected a number (found True)"),
        ({"adaptation": {"epochs": 0}}, "adaptation.epochs: expected more than 0, or 'auto' (found 0)"),
        ({"adaptation": {"epoch": 1}}, "adaptation.epoch: unknown key; did you mean epochs?"),
        ({"adaptation": {"seeds": [1, 1]}}, "adaptation: seeds: each seed once"),
        (
            {"adaptation": {"hints": {"with_distill": True}}},
            "adaptation: hints.with_distill needs compare: [distill]",
        ),
        ({"adaptation": {"hints": {"wieght": 1}}}, "adaptation.hints.wieght: unknown key; did you mean weight?"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_plain_line(changes: dict[str, Any], expected: str) -> None:
    assert problems(**changes) == [expected]


def test_fusing_what_is_not_aligned() -> None:
    (line,) = problems(fusion={"projections": ["q", "gate"]})
    assert line.startswith("fusion.projections names gate, which transport.projections does not align")


def test_all_problems_at_once() -> None:
    found = problems(
        source={"modle": "x"}, seed=-1, fusion={"alpha": 2, "k": 0}, transport={"projections": ["q", "z"]}, extra=1,
        adaptation={"method": "none"}, evaluation={"controls": ["shrnk"]},
    )  # fmt: skip
    assert {line.split(":")[0] for line in found} == {
        "adaptation.method", "source.model", "source.modle", "seed", "fusion.alpha", "fusion.k",
        "transport.projections.1", "extra", "evaluation.controls.0",
    }  # fmt: skip
    assert len(found) == 9


def test_an_empty_section_is_the_default() -> None:
    assert parse_recipe("source: a/b\ntarget: c/d\ncalibration: {path: /x}\noutput: /o\nfusion:\n  # alpha: 0.2\n") == (
        make_recipe({"source": "a/b", "target": "c/d", "calibration": {"path": "/x"}, "output": "/o"})
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"), ("- a\n- b", "found a list"), ("just words", "found a str"), ("a: [", "not valid YAML"),
        ("seed: 1\nseed: 2", "the key seed is given twice"), ("a: &x [*y]", "not valid YAML"),
        ("? [a, b]\n: 1", "a key must be a word"), ("output: 2026-99-99", "not valid YAML"),
        ("a: !!python/object:os.system 1", "not valid YAML"),
    ],
)  # fmt: skip
def test_files_that_are_no_recipe(text: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert expected in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output: caf\xe9")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_paths_become_absolute_and_hub_ids_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    recipe = make_recipe(
        {**BASE, "source": "local", "target": "org/name@v2", "calibration": {"path": "t.txt"}, "output": "o"}
    )
    assert recipe.source.model == str(tmp_path / "local")
    assert (recipe.target.model, recipe.target.revision) == ("org/name", "v2")
    assert recipe.calibration.path == str(tmp_path / "t.txt") and recipe.output == str(tmp_path / "o")
    assert make_recipe({**BASE, "source": "./no@where"}).source.model == str(tmp_path / "no@where")


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("512 MiB", 2**29), ("1.5kb", 1500), (" 7 ", 7), (10, 10), ("2TiB", 2**41)]
)
def test_sizes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "1e9", "8GB2"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_recipe(BASE).seed = 3  # type: ignore[misc]
    assert isinstance(make_recipe(BASE), Recipe)


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("adaptation", "seeds", [2**33]),
        ("calibration", "samples", 99999999999999999999),
        ("calibration", "holdout", 10**12),
        ("adaptation", "samples", 10**12),
    ],
)
def test_numbers_have_an_upper_end(section: str, option: str, value: Any) -> None:
    data: dict[str, Any] = {"source": "a/b", "target": "a/c", "calibration": {"path": "t.txt"}, "output": "run"}
    data[section] = {**data.get(section, {}), option: value}
    with pytest.raises(RecipeError, match=option):
        make_recipe(data)
