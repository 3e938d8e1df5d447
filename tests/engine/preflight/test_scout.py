"""Scout. References: models that are made to know the text or not, and the scores that the house measures anyway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM

from tests.engine.pair import make_pair, recipe_of
from tests.tiny import make_tokenizer
from tmerge_tui import shipped
from tmerge_tui.engine.evaluation.bits_per_byte import score
from tmerge_tui.engine.preflight import rehearsal
from tmerge_tui.engine.preflight.check import open_recipe, prepare, with_time
from tmerge_tui.engine.preflight.scout import TEXTS, scout
from tmerge_tui.engine.report.scouting import NOTHING
from tmerge_tui.events import Event, StageFinished, StageStarted, Warned
from tmerge_tui.models.tokenizer import load_tokenizer
from tmerge_tui.recipe import Recipe, make_recipe
from tmerge_tui.recipe.demo import demo_mapping


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scout"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The source has learnt the text, the target is random."""
    made = make_pair(tmp_path_factory.mktemp("pair"))
    folder = Path(made["source"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    texts = Path(made["calibration"]["path"]).read_text().splitlines()
    for step in range(60):
        ids = torch.tensor([tokenizer(" ".join(texts[step % 20 : step % 20 + 4])).input_ids[:96]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    return made


def ignore(event: Event) -> None:
    pass


def recipe(pair: dict[str, Any], **changes: Any) -> Recipe:
    calibration = {"samples": 40, "validation": 12, **changes.pop("calibration", {})}
    return recipe_of(pair, calibration=calibration, **changes)


def test_a_source_that_knows_the_text_has_headroom(pair: dict[str, Any]) -> None:
    found = scout(recipe(pair), ignore)
    assert found["outcome"] == "headroom" and "there is something to carry over" in found["verdict"]
    assert found["headroom"]["both_tuned"]["high"] < 0 and any("early estimate" in said for said in found["sentences"])
    target = found["models"]["target"]
    assert target["after"] < target["before"], "it has learnt"
    assert found["headroom"]["against_tuned_target"]["difference"] > found["headroom"]["untouched"]["difference"]
    assert found["texts"] == {"measured": 12, "wanted": TEXTS, "tuned": 40}
    assert any("Only 12 validation texts" in said for said in found["sentences"])


def test_what_is_measured_is_bits_per_byte_of_the_validation_text(pair: dict[str, Any]) -> None:
    asked = recipe(pair)
    held = open_recipe(asked).corpus.validation
    model = AutoModelForCausalLM.from_pretrained(pair["target"])
    said = score(model.eval(), load_tokenizer(Path(pair["target"])), held, 4, 32)
    assert scout(asked, ignore)["models"]["target"]["before"] == pytest.approx(said.bits_per_byte, rel=1e-5)


def test_a_source_that_is_worse_has_nothing(pair: dict[str, Any]) -> None:
    found = scout(recipe({**pair, "source": pair["target"], "target": pair["source"]}), ignore)
    assert (found["outcome"], found["verdict"]) == ("none", NOTHING)
    assert found["headroom"]["both_tuned"]["low"] > 0


def test_a_source_that_is_the_target_has_nothing(pair: dict[str, Any]) -> None:
    found = scout(recipe({**pair, "source": pair["target"]}), ignore)
    assert (found["outcome"], found["verdict"]) == ("none", NOTHING)
    assert set(found["headroom"]["untouched"].values()) == {0.0}
    assert found["tokenizers"]["shared_vocabulary"] == found["tokenizers"]["positions_with_teacher"] == 1.0


def test_tokenizers(pair: dict[str, Any]) -> None:
    """The source's merges are the target's and 80 more, so that all of the target's tokens are its own."""
    said = scout(recipe(pair), ignore)["tokenizers"]
    assert said["shared_vocabulary"] == 1.0 and 0 < said["positions_with_teacher"] < 1
    assert said["comparable"] and said["refused"] == ""


def test_a_tokenizer_that_normalises_is_said(pair: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "lower"
    AutoModelForCausalLM.from_pretrained(pair["source"]).save_pretrained(folder)
    tokenizer = make_tokenizer(400)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text(Path(pair["calibration"]["path"]).read_text().title())
    found = scout(recipe({**pair, "source": str(folder)}, calibration={"path": str(text)}), ignore)
    assert found["outcome"] == "unknown" and "cannot read this text" in found["verdict"]
    assert found["tokenizers"]["positions_with_teacher"] is None and "Lowercase" in found["tokenizers"]["refused"]
    assert any("tokenizer of the source normalises" in said for said in found["sentences"])


def test_what_was_found_is_kept_and_plan_takes_its_seconds(pair: dict[str, Any], cache: Path) -> None:
    asked, seen = recipe(pair), list[Event]()
    first = scout(asked, ignore)
    assert not with_time(prepare(recipe(pair, dtype="bfloat16"))).scouted, "another type of passes"
    assert json.loads(json.dumps(first)) == first
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    needs = with_time(prepare(recipe(pair, calibration={"samples": 30}))), scout(asked, seen.append)
    assert needs[0].scouted and needs[1] == first
    assert [e.outcome for e in seen if isinstance(e, StageFinished)] == ["cached"] * 3
    scout(recipe(pair, calibration={"samples": 30}), ignore)
    assert len(list(cache.iterdir())) == 2, "other texts are another piece"
    for path in cache.iterdir():
        path.write_text("{")
    assert not with_time(prepare(asked)).scouted
    assert scout(asked, ignore)["models"]["target"]["before"] == first["models"]["target"]["before"]


@pytest.mark.parametrize("where", ["scout_text", "scout_target", "scout_source"])
def test_stopped_it_leaves_nothing(pair: dict[str, Any], cache: Path, where: str) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == where:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scout(recipe(pair), stop)
    assert not cache.exists()


def test_a_model_whose_training_does_not_fit_is_only_read(pair: dict[str, Any]) -> None:
    facts = open_recipe(recipe(pair)).models.each(lambda party: party.facts)
    room = 5 * facts.source.parameters  # its weights in float32, and no more
    assert 4 * facts.target.parameters < room < 16 * facts.target.parameters
    seen = list[Event]()
    found = scout(recipe(pair, memory=room), seen.append)
    assert found["outcome"] == "headroom" and "than the untouched target" in found["verdict"]
    assert found["headroom"]["both_tuned"] is None and found["models"]["source"]["training"] is None
    assert any("what fine-tuning alone would reach is not known" in said for said in found["sentences"])
    assert [e for e in seen if isinstance(e, Warned) and "was not tuned: tuning takes" in e.message]


def test_a_slow_machine_takes_fewer_steps(pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "BUDGET", 0.0)
    found = scout(recipe(pair), ignore)
    assert found["models"]["target"]["steps"] == rehearsal.LEAST
    assert any(f"after at most {rehearsal.LEAST} steps" in said for said in found["sentences"])


def test_every_arm_of_the_recipe_has_its_time(pair: dict[str, Any]) -> None:
    training = {"teacher": {"tune": "full"}, "compare": ["sft", "distill"], "learning_rate": "auto", "packing": "pad"}
    found = scout(recipe(pair, adaptation=training), ignore)
    names = ["merge", "tune", "teacher", "search", "adapted", "adapted_distilled", "sft", "distilled"]
    assert [arm["name"] for arm in found["arms"]] == names
    assert all(arm["seconds"] > 0 for arm in found["arms"])
    thrice = scout(recipe(pair, adaptation={**training, "seeds": [0, 1, 2]}), ignore)["arms"]
    assert thrice[4]["seconds"] == pytest.approx(3 * found["arms"][4]["seconds"]) and thrice[4]["seeds"] == 3
    assert [arm["name"] for arm in scout(recipe(pair), ignore)["arms"]] == ["merge"]


def test_the_demo_has_headroom() -> None:
    found = scout(make_recipe(demo_mapping(shipped.folder() / "demo")), ignore)
    assert found["outcome"] == "headroom" and found["texts"]["measured"] == TEXTS
    assert found["headroom"]["both_tuned"]["high"] < -0.3
