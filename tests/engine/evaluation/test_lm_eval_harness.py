"""lm-evaluation-harness on local task files: answers that are known because log-likelihoods are taken by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_model
from tmerge_tui.engine.evaluation import benchmarks, lm_eval_harness
from tmerge_tui.errors import DataError
from tmerge_tui.recipe.evaluation import Evaluation

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval")
# the harness and what it imports are not ours to keep free of warnings
pytestmark = pytest.mark.filterwarnings("default")

ROWS = [
    {"asked": "Two rivers meet where the", "choices": ["old road bends.", "grey cat must wait."], "label": 0},
    {"asked": "Nobody asked the miller why the", "choices": ["wheel had stopped.", "lamps."], "label": 1},
    {"asked": "A small boat can", "choices": ["cross", "read the word"], "label": 0},
    {"asked": "Bread, salt,", "choices": ["doors and one grey cat", "water"], "label": 1},
    {"asked": "She counted seven lamps,", "choices": ["nine doors.", "two rivers meet."], "label": 1},
]
TASK = """
task: miller
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{asked}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
num_fewshot: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "miller.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    path = folder / "miller.yaml"
    path.write_text(TASK.replace("DATA", str(data)))
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = make_model(tmp_path_factory.mktemp("harness") / "model")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def by_hand(model: Any, tokenizer: Any) -> list[float]:
    """1 where the choice of the largest summed log-likelihood is the right one: the harness's `acc`."""
    right = []
    for row in ROWS:
        told = []
        for choice in row["choices"]:
            before = tokenizer(row["asked"], add_special_tokens=False)["input_ids"]
            ids = tokenizer(f"{row['asked']} {choice}", add_special_tokens=False)["input_ids"]
            assert ids[: len(before)] == before
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double()
            gone = F.cross_entropy(logits[len(before) - 1 : -1], torch.tensor(ids[len(before) :]), reduction="sum")
            told.append(-float(gone))
        right.append(float(told.index(max(told)) == row["label"]))
    return right


@needs_harness
@pytest.mark.parametrize("by_name", [False, True])
def test_a_local_task_gives_the_known_answers(loaded: tuple[Any, Any], task: Path, by_name: bool) -> None:
    settings = {"tasks": ["miller"], "include_path": str(task.parent)} if by_name else {"tasks": [str(task)]}
    evaluation = Evaluation.model_validate({"batch_size": 2, **settings})
    assert lm_eval_harness.problems(evaluation) == []
    rows = lm_eval_harness.run_task(*loaded, evaluation.tasks[0], evaluation, 0)
    expected = by_hand(*loaded)
    assert [(row["task"], row["metric"], row["questions"]) for row in rows] == [("miller", "acc", 5)]
    assert rows[0]["documents"] == expected
    assert rows[0]["value"] == pytest.approx(sum(expected) / 5)
    spread = torch.tensor(expected).std() / 5**0.5
    assert rows[0]["stderr"] == pytest.approx(float(spread), rel=1e-5)
    assert rows[0]["higher_is_better"] is True


@needs_harness
def test_a_limit_asks_the_first_questions_only(loaded: tuple[Any, Any], task: Path) -> None:
    evaluation = Evaluation.model_validate({"tasks": [str(task)], "limit": 3})
    rows = lm_eval_harness.run_task(*loaded, str(task), evaluation, 0)
    assert rows[0]["documents"] == by_hand(*loaded)[:3] and rows[0]["questions"] == 3


@needs_harness
def test_data_that_is_not_there(loaded: tuple[Any, Any], task: Path) -> None:
    task.write_text(TASK.replace("DATA", str(task.parent / "none.jsonl")))
    evaluation = Evaluation.model_validate({"tasks": [str(task)]})
    with pytest.raises(DataError, match="cannot run") as failure:
        lm_eval_harness.run_task(*loaded, str(task), evaluation, 0)
    assert "worker.log" in failure.value.hint


def test_identity_changes_with_all_that_changes_the_outcome(task: Path) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("needs the extra eval")

    def named(**settings: Any) -> list[Any]:
        return lm_eval_harness.identity(str(task), Evaluation.model_validate({"tasks": [str(task)], **settings}))

    before = named()
    assert named() == named(batch_size=3) == before
    assert named(limit=3) != before != named(num_fewshot=1)
    (task.parent / "miller.jsonl").write_text("{}")
    assert named() != before


@needs_harness
def test_problems_come_before_any_work(task: Path, tmp_path: Path) -> None:
    def found(**settings: Any) -> list[str]:
        return benchmarks.problems(Evaluation.model_validate(settings))

    assert found(tasks=[str(tmp_path / "none.yaml")]) == [f"evaluation.tasks: found no file {tmp_path / 'none.yaml'}"]
    assert "no folder" in found(tasks=["miller"], include_path=str(tmp_path / "none"))[0]
    assert found(tasks=["miller"], include_path=str(task.parent)) == []
    assert "evaluation.choices" in found(choices=[str(tmp_path / "none.jsonl")])[0]


@needs_harness
def test_a_name_that_is_no_task(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the harness's own tasks, whose index takes long to read."""
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager

    def small(include_defaults: bool = True, **options: Any) -> Any:
        return real(include_defaults=False, **options)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", small)
    evaluation = Evaluation.model_validate({"tasks": ["miler"], "include_path": str(task.parent)})
    assert lm_eval_harness.problems(evaluation) == [
        f"evaluation.tasks: miler is no task of lm-evaluation-harness {lm_eval_harness.version()}"
    ]
