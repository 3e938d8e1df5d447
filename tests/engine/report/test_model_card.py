"""The model card: read back by huggingface_hub, free of local paths and secrets, honest about its own alpha."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.engine.report.sample_results import HOSTILE, make_attribution, make_general, make_results, make_safety
from tmerge_tui.engine.report.model_card import hub_id, public_recipe, write_card
from tmerge_tui.engine.report.redact import public
from tmerge_tui.models.config import front_matter


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run" / "model-alpha-0.1"
    made.mkdir(parents=True)
    return made


def make_readme(folder, text):
    folder.mkdir(exist_ok=True)
    path = folder / "README.md"
    path.write_bytes(text.encode())
    return path


def test_front_matter_and_body(folder):
    notes = write_card(make_results(), folder, None)
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == ["org/big-llama"]  # the target is a folder: never named
    assert data["base_model_relation"] == "merge" and data["library_name"] == "transformers"
    assert data["tags"] == ["merge", "tmerge"] and data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0" and "datasets" not in data
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "bits_per_byte", "value": 2.1702, "name": "bits per byte"}]
    assert notes == ("the source's licence (llama3.1) differs from the target's (apache-2.0); both may apply",)
    assert notes[0] in card.text and "https://arxiv.org/abs/2602.05495" in card.text


def test_the_card_says_how_the_method_works(folder):
    results = make_results()
    results["method"] |= {
        "about": "Norms are turned up ([here](https://example.org)).", "settings": [["volume", 3], ["by", None]]
    }  # fmt: skip
    write_card(results, folder, None)
    text = (folder / "README.md").read_text("utf-8")
    assert "turned up ([here](https://example.org))." in text and "| volume | 3 |" in text and "| by |" not in text
    assert "arXiv:2602.05495" not in text and "| coupling |" not in text


def test_the_card_speaks_of_its_own_alpha(folder):
    results = make_results()
    assert results["verdict"]["alpha"] == 0.05
    write_card(results, folder, None)
    text = (folder / "README.md").read_text("utf-8")
    assert "2.1702 bits per byte against the target's 2.1706" in text and "| fused | 0.05 |" not in text


def test_what_else_changed_is_in_the_card(folder):
    results = make_results()
    write_card(results, folder, None)
    assert "What else changed" not in (folder / "README.md").read_text("utf-8")
    write_card(results | {"general": make_general(), "attribution": make_attribution()}, folder, None)
    text = (folder / "README.md").read_text("utf-8")
    assert "- Lost 0.0123 bits per byte on general English text (95 % interval +0.0103 to +0.0143)." in text
    section = text.partition("## What else changed")[2].partition("## Recipe")[0]
    assert "| fused, not trained | 0.1 | 2.1829 | +0.0123 |" in section and "placebo" not in section
    assert "of the gap to it was closed" in section and HOSTILE not in section


def test_held_out_text_does_not_leave(folder):
    left = public({"attribution": make_attribution()})["attribution"]
    assert left["excerpts"] == [] and left["rows"] == make_attribution()["rows"]


def test_nothing_local_and_nothing_secret_leaves(folder):
    results = make_results()
    token = "hf_" + "aB3" * 11
    results["recipe"]["resolved"] |= {
        "hf_token": "anything",
        "note": f"read with {token}",
        "cache": "C:\\Users\\ann\\hub",
    }
    results["recipe"]["evaluation"]["prompts"] = ["/think about it"]
    write_card(results, folder, None)
    for name in ("README.md", "tmerge_recipe.yaml"):
        text = (folder / name).read_text("utf-8")
        assert "/home" not in text and "Users" not in text
        assert token not in text and "anything" not in text
    recipe = yaml.safe_load((folder / "tmerge_recipe.yaml").read_text("utf-8"))
    assert recipe["target"]["model"] == "small-qwen2" and recipe["source"]["model"] == "org/big-llama"
    assert recipe["output"] == "first-merge" and recipe["resolved"]["cache"] == "hub"
    assert recipe["evaluation"]["prompts"] == ["/think about it"]  # text, not a path


def test_the_targets_card_is_kept_and_inherited(folder, tmp_path):
    text = "---\nlicense: other\nlicense_name: own\nlanguage: [sw, en]\ndatasets: [a/b]\n---\r\n# Target\r\n"
    readme = make_readme(tmp_path / "target", text)
    results = make_results()
    results["recipe"]["calibration"] |= {"path": None, "repo_id": "c/d"}
    write_card(results, folder, readme)
    assert (folder / "README.target.md").read_bytes() == readme.read_bytes()
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "own")
    assert data["language"] == ["sw", "en"] and data["datasets"] == ["a/b", "c/d"]


def test_a_target_that_was_itself_merged_loses_nothing(folder, tmp_path):
    readme = make_readme(tmp_path / "target", "# second\n")
    readme.with_name("README.target.md").write_text("# first\n")
    readme.with_name("tmerge_recipe.yaml").write_text("seed: 7\n")
    for name in ("README.target.md", "tmerge_recipe.yaml"):
        (folder / name).write_bytes(readme.with_name(name).read_bytes())  # as the fold copies them
    for _ in range(2):  # a resumed run writes again
        write_card(make_results(), folder, readme)
    assert (folder / "README.target.md").read_text() == "# first\n"
    assert (folder / "README.target2.md").read_text() == "# second\n"
    assert (folder / "tmerge_recipe.target.yaml").read_text() == "seed: 7\n"
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("text", ["---\nlicense: [unclosed\n---\n", "---\n- a list\n---\n"])
def test_an_unreadable_header_is_said(folder, tmp_path, text):
    readme = make_readme(tmp_path / "target", text)
    notes = write_card(make_results(), folder, readme)
    assert "cannot be read" in notes[0] and (folder / "README.target.md").read_text() == text


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("\ufeff---\nlicense: mit\n---\n# Target\n", "mit"),  # as Windows' editors write it
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("\n--- \nlicense: mit\n--- \n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", ["mit", "apache-2.0"]),
        ("# Target\n---\nlicense: see below\n---\n", None),  # a rule in the text is no head
        ("---\n---\n", None),
    ],
)
def test_heads_of_cards(folder, tmp_path, text, licence):
    readme = make_readme(tmp_path / "target", text)
    results = make_results()
    results["models"]["target"]["licence"] = None
    assert not any("cannot be read" in note for note in write_card(results, folder, readme))
    assert ModelCard.load(folder / "README.md").data.to_dict().get("license") == licence
    assert front_matter(readme.parent).get("license") == licence


def test_missing_licences_are_flagged(folder):
    results = make_results()
    for role in ("source", "target"):
        results["models"][role]["licence"] = None
    notes = write_card(results, folder, None)
    assert len(notes) == 2 and "license" not in ModelCard.load(folder / "README.md").data.to_dict()


def test_nothing_measured(folder):
    results = make_results() | {"scores": [], "contrasts": [], "projections": [], "models": {}}
    write_card(results, folder, None)
    card = ModelCard.load(folder / "README.md")
    assert "model-index" not in card.data.to_dict() and "Nothing was measured." in card.text


def test_hostile_names_stay_inside_their_cell(folder):
    results = make_results()
    results["recipe"]["target"]["model"] = f"/models/{HOSTILE.replace('/', '')}"
    write_card(results, folder, None)
    outside = (folder / "README.md").read_text("utf-8").split("## Recipe")[0]
    assert "<script" not in outside


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("org/name", True),
        ("gpt2", True),
        *((n, False) for n in ("/a/b", "./a", "~/a", "C:\\a", "a/b/c", "", None, "a b/c")),
    ],
)
def test_hub_ids(name, known):
    assert hub_id(name) == (name if known else None)


def test_public_recipe_is_yaml():
    assert yaml.safe_load(public_recipe({"a": (1, "é"), "path": "/x/y.txt", "n": None})) == {
        "a": [1, "é"],
        "path": "y.txt",
        "n": None,
    }


def test_cells_of_a_heat_map_are_no_path_and_no_token():
    cells = "/w/abc/def+hf" + "Ab12" * 8  # whole base64
    assert public({"heatmaps": [{"data": cells, "title": "q.in 0"}]})["heatmaps"][0]["data"] == cells
    assert public({"note": cells})["note"] != cells  # it would be cut anywhere else


def test_importing_reaches_no_network():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import tmerge_tui.engine.report.model_card, sys\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("field", "written", "kept"),
    [
        ("language", "[en, no]", ["en", "no"]),
        ("language", "no", ["no"]),
        ("language", "[en, 7, {a: b}, null]", ["en"]),
        ("language", "2024-01-01", []),
        ("datasets", "[org/a, 12, yes]", ["org/a"]),
        ("license", "[mit, apache-2.0]", ["mit", "apache-2.0"]),
        ("license", "true", []),
        ("license_link", "{a: b}", []),
    ],
)
def test_fields_of_the_targets_card_keep_their_type(folder, tmp_path, field, written, kept):
    results = make_results()
    results["models"]["target"]["licence"] = results["models"]["source"]["licence"] = None
    results["recipe"]["calibration"]["repo_id"] = None
    write_card(results, folder, make_readme(tmp_path / "target", f"---\n{field}: {written}\n---\n# x\n"))
    found = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1]).get(field) or []
    assert (found if isinstance(found, list) else [found]) == kept


def test_the_same_licences_in_another_order_do_not_differ(folder):
    results = make_results()
    results["models"]["target"]["licence"], results["models"]["source"]["licence"] = (
        "mit, apache-2.0",
        "apache-2.0, MIT",
    )
    assert not any("differs" in note for note in write_card(results, folder, None))


def test_the_safety_screen_is_told_of_this_model_alone(folder):
    screened = make_safety()
    write_card(make_results() | {"safety": screened}, folder, None)
    card = (folder / "README.md").read_text()
    assert "- Safety screen, no certificate: Fused at alpha 0.1 declines 12 points less than the target" in card
    chosen = {"model": "target", "alpha": None}
    write_card(make_results() | {"safety": screened, "selection": chosen}, folder, None)
    assert "certificate: The target declines 80 % of 40 prompts" in (folder / "README.md").read_text()
