"""The check reads the text as the models will: what a run would stumble over is known before anything is downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.engine.pair import make_pair, recipe_of
from tests.models.test_tokenizer import metaspace
from tests.tiny import LINES, make_model, make_tokenizer
from tmerge_tui.engine import pipeline
from tmerge_tui.engine.data.corpus import render
from tmerge_tui.engine.preflight.check import check, prepare
from tmerge_tui.engine.preflight.reading import unread
from tmerge_tui.run_folder import RunDir

Mapping = dict[str, Any]


@pytest.fixture
def pair(tmp_path: Path) -> Mapping:
    return {**make_pair(tmp_path), "transport": {"projections": ["q"]}}


def texts(pair: Mapping, values: list[Any], **calibration: Any) -> Mapping:
    """The recipe with these texts, or conversations, in place of its own."""
    path = Path(pair["calibration"]["path"]).with_name("own.jsonl")
    name = "text" if isinstance(values[0], str) else "messages"
    path.write_text("".join(json.dumps({name: value}) + "\n" for value in values))
    given = {"samples": 50, "holdout": 10, **calibration, "path": str(path)}
    return {**pair, "calibration": {**pair["calibration"], **given}}


def lines(count: int = 80) -> list[str]:
    return [f"{i} {LINES[i % 6]}" for i in range(count)]


def letters(first: int, last: int, count: int = 80, length: int = 40) -> list[str]:
    """Lines of one script, without spaces."""
    draw = random.Random(0)
    return ["".join(chr(draw.randrange(first, last)) for _ in range(length)) for _ in range(count)]


def talks(count: int = 80) -> list[list[dict[str, str]]]:
    roles = ("system", "user", "assistant")
    return [[{"role": role, "content": f"{role[0]} {line}"} for role in roles] for line in lines(count)]


def set_template(folder: str, template: str) -> None:
    (Path(folder) / "chat_template.jinja").write_text(template)


SHOWN = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
LATE = "{% if 's 70 ' in messages[0].content %}{{ raise_exception('no 70') }}{% endif %}"


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize(
    ("template", "pooling", "says"),
    [
        (REFUSES + SHOWN, "sample", "no system"),
        (LATE + SHOWN, "sample", "no 70"),
        (SHOWN.replace("m.content", "m.content | replace('e', 'E')"), "span", "rewrites what messages say"),
        ("{{ messages[0].content }}", "span", "rewrites what messages say"),
        ("{% for m in %}", "sample", "refuses a conversation"),
        ("{{ messages[9].content }}", "sample", "refuses a conversation"),
    ],
)
def test_templates(pair: Mapping, role: str, template: str, pooling: str, says: str) -> None:
    set_template(pair[role], template)
    (problem,) = check(recipe_of(texts(pair, talks(), pooling=pooling, samples=70)))
    assert problem.startswith(f"{role}: ") and says in problem and "chat_template: off" in problem
    if says != "no 70":
        assert "and 69 more of 70" in problem


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize(
    ("template", "silent"),
    [
        ("{% for m in messages if m.role != 'system' %}<{{ m.role }}> {{ m.content }}\n{% endfor %}", ["system"]),
        ("{{ messages[-1].content }}", ["system", "user"]),
        (SHOWN.replace("m.content", "m.content | upper"), ["assistant", "system", "user"]),
        (SHOWN.replace("m.content", "m.content | trim"), []),
        (SHOWN, []),
    ],
)
def test_what_a_template_does_not_show_is_said(pair: Mapping, role: str, template: str, silent: list[str]) -> None:
    for each in ("source", "target"):
        set_template(pair[each], template if each == role else SHOWN)
    told = prepare(recipe_of(texts(pair, talks()))).warnings
    assert [note for note in told if "chat template" in note] == [
        f"{role}: the chat template of {role} does not show what {who} says, or not as it stands, in 50 of the first "
        f"50 conversations"
        for who in silent
    ]


def test_templates_on_one_side_only(pair: Mapping) -> None:
    recipe = recipe_of(texts(pair, talks()))
    both = [note for note in prepare(recipe).warnings if "no chat template" in note]
    assert [note.split(":")[0] for note in both] == ["target", "source"] and "other model" not in "".join(both)
    set_template(pair["target"], SHOWN)
    (note,) = [note for note in prepare(recipe).warnings if "no chat template" in note]
    assert note.startswith("source: source has no chat template") and "the other model reads conversations" in note
    assert not any(
        "template" in note for note in prepare(recipe_of(texts(pair, talks(), chat_template="off"))).warnings
    )


@pytest.mark.parametrize("pooling", ["sample", "span"])
def test_a_template_that_knows_content_in_parts_alone(pair: Mapping, pooling: str) -> None:
    """As models that also see have it."""
    inner = "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}"
    set_template(pair["target"], SHOWN.replace("{{ m.content }}", inner))
    set_template(pair["source"], SHOWN.replace("{{ m.content }}", "{{ m.content[0]['text'] + '' }}"))
    prepared = prepare(recipe_of(texts(pair, talks(), pooling=pooling)))
    assert not any("chat template" in note for note in prepared.warnings)
    (sample, *_), tokenizer = prepared.corpus.calibration, prepared.target.tokenizer
    assert render(sample, tokenizer, "auto") == "".join(f"<{m['role']}> {m['content']}" for m in sample.messages or ())


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("where", ["the calibration text", "the held-out text", "special tokens", "evaluation.prompts"])
def test_ids_beyond_the_embedding(pair: Mapping, role: str, where: str) -> None:
    rows = json.loads((Path(pair[role]) / "config.json").read_text())["vocab_size"]
    tokenizer = make_tokenizer(rows)
    tokenizer.add_tokens(["zebra"])
    if where == "special tokens":
        tokenizer.add_special_tokens({"bos_token": "<|mine|>"})
    tokenizer.save_pretrained(pair[role])
    assert not check(recipe_of(pair)) or where == "special tokens"  # tokens that never occur do no harm
    if where == "evaluation.prompts":
        pair = {**pair, "evaluation": {"prompts": ["a zebra"]}}
    elif where == "the calibration text":
        pair = texts(pair, [f"{line} zebra" for line in lines()])
    elif where == "the held-out text":
        pair = texts(pair, lines())
        held = Path(pair["output"]).with_name("held.txt")
        held.write_text("zebra one\nzebra two\n")
        pair = {**pair, "calibration": {**pair["calibration"], "holdout_path": str(held)}}
    (problem,) = check(recipe_of(pair))
    assert problem.startswith(f"{role}: {where} holds the token") and f"embeddings for {rows} tokens" in problem


GPT2 = {"family": "gpt2", "kv_heads": 4, "n_inner": 40, "max_position_embeddings": 32}


def test_a_table_of_positions_cuts_what_is_longer(pair: Mapping, tmp_path: Path) -> None:
    make_model(Path(pair["target"]), **GPT2)
    training = {"max_steps": 1, "accumulation": 1, "learning_rate": 1e-3}
    long = [" ".join(lines(6)) + f" {i}" for i in range(80)]
    recipe = recipe_of(texts(pair, long, max_length=64), adaptation=training)
    prepared = prepare(recipe)
    assert prepared.recipe.adaptation is not None and prepared.recipe.adaptation.block_length == 32
    assert prepared.recipe.calibration.max_length == 32
    told = [warning for warning in prepared.warnings if "positions of" in warning]
    assert len(told) == 2 and "max_length: 64 is more than the 32 positions of" in told[0]
    pipeline.run(recipe, RunDir.create(recipe.output), lambda event: None)
    report = json.loads((Path(recipe.output) / "report.json").read_text())
    assert report["recipe"]["calibration"]["max_length"] == 32


def test_penalties_by_distance_have_an_end_too(pair: Mapping) -> None:
    mpt = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 24, "attn_config": {"alibi": True}}
    make_model(Path(pair["target"]), "mpt", kv_heads=4, **mpt)
    prepared = prepare(recipe_of(texts(pair, [" ".join(lines(6)) + f" {i}" for i in range(80)], max_length=64)))
    assert prepared.recipe.calibration.max_length == 24 and prepared.target.facts.position_table


@pytest.mark.parametrize(("asked", "used"), [({}, 48), ({"block_length": 64}, 64), ({"block_length": 40}, 40)])
def test_rotary_positions_go_on_when_asked_to(pair: Mapping, asked: Mapping, used: int) -> None:
    make_model(Path(pair["target"]), "qwen2", max_position_embeddings=48)
    prepared = prepare(recipe_of(pair, adaptation={"max_steps": 1, **asked}))
    assert prepared.recipe.adaptation is not None and prepared.recipe.adaptation.block_length == used
    assert any("48" in warning for warning in prepared.warnings) == (used != 40)


def words_only(text: list[str], **more: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.normalizer = more.get("normalizer", normalizers.Lowercase())
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=320, special_tokens=["<unk>", "<s>"], show_progress=False)
    made.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def test_a_source_that_cannot_read_the_text_is_not_measured(pair: Mapping) -> None:
    assert prepare(recipe_of(pair)).recipe.evaluation.source
    words_only(LINES).save_pretrained(pair["source"])
    recipe = recipe_of(texts(pair, letters(0x4E00, 0x4E80)))
    prepared = prepare(recipe)
    assert not prepared.recipe.evaluation.source
    assert any("cannot read 100.0% of the held-out text: its bits per byte" in told for told in prepared.warnings)
    pipeline.run(recipe, RunDir.create(recipe.output), lambda event: None)
    scores = json.loads((Path(recipe.output) / "report.json").read_text())["scores"]
    assert "source" not in {score["model"] for score in scores}


@pytest.mark.parametrize(
    ("make", "text", "share"),
    [
        (make_tokenizer, "Straße 你好 é e\u0301 ﬁ 😀", 0.0),
        (make_tokenizer, "<|end|>user\nwhy<|end|>", 0.0),  # texts that went through a template before
        (metaspace, "  two  rivers 你好\n", 0.0),
        (metaspace, "<s>[INST] why [/INST] because</s>", 0.0),
        (lambda: words_only(LINES), "two rivers", 0.0),
        (lambda: words_only(LINES), "two xylophones", 10 / 13),
        (lambda: words_only(LINES), "two 你", 1 / 4),
        (lambda: words_only(LINES), "Two Rivers", 2 / 9),  # a capital is a character of its own
        (lambda: words_only(["ete"], normalizer=normalizers.BertNormalizer(strip_accents=True)), "été", 2 / 3),
        (lambda: words_only(LINES), "", 0.0),
    ],
)
def test_the_share_that_a_tokenizer_cannot_read(make: Callable[[], Any], text: str, share: float) -> None:
    assert unread(make(), [text]) == pytest.approx(share)


@pytest.mark.parametrize(("first", "last"), [(0x0E01, 0x0E2F), (0x4E00, 0x4F00), (0x1780, 0x17A0), (0x3041, 0x3090)])
def test_text_without_spaces_gives_rows_and_its_true_size(pair: Mapping, first: int, last: int) -> None:
    recipe = recipe_of(texts(pair, letters(first, last), pooling="span", max_length=64))
    prepared = prepare(recipe)
    assert any("50 of the first 50 calibration samples are written without spaces" in w for w in prepared.warnings)
    rows, tokens = (int(n.replace(",", "")) for n in prepared.estimate.notes[0].split() if n[0].isdigit())
    read = [len(AutoTokenizer.from_pretrained(pair[r])(s.plain).input_ids) for s in prepared.corpus.calibration
            for r in ("source", "target")]  # fmt: skip
    assert rows >= 50 * 10 and tokens == 50 * 64 <= sum(read)
    seen: list[Any] = []
    pipeline.run(recipe, RunDir.create(recipe.output), seen.append)
    assert json.loads((Path(recipe.output) / "report.json").read_text())["calibration"]["rows"] == rows


def test_samples_that_give_no_row_are_counted(pair: Mapping) -> None:
    long = ["x" * 2000 + str(i) for i in range(30)]  # one word, longer than max_length
    prepared = prepare(recipe_of(texts(pair, [*lines(50), *long], pooling="span", max_length=16, samples=70)))
    (told,) = [warning for warning in prepared.warnings if "give no row" in warning]
    assert "of the first 70 calibration samples" in told and "end behind max_length 16" in told
    (problem,) = check(recipe_of(texts(pair, ["y" * 2000 + str(i) for i in range(80)], pooling="span", max_length=16)))
    assert "none of 50 samples gives a row" in problem and "pooling: sample" in problem


def test_halves_of_characters(pair: Mapping, tmp_path: Path) -> None:
    broken = lines()
    broken[3], broken[5] = "8 a broken pair \ud83d river", "an emoji in two halves \ud83d\ude00"
    recipe = recipe_of(texts(pair, broken, samples=60, holdout=20))
    prepared = prepare(recipe)
    (told,) = [warning for warning in prepared.warnings if "surrogate" in warning]
    assert "1 samples hold half a character" in told
    everything = [s.plain for s in (*prepared.corpus.calibration, *prepared.corpus.holdout)]
    assert "8 a broken pair � river" in everything and "an emoji in two halves 😀" in everything
    pipeline.run(recipe, RunDir.create(recipe.output), lambda event: None)
    (problem,) = check(recipe_of(pair, evaluation={"prompts": ["half \ud83d"]}))
    assert problem.startswith("evaluation.prompts: 'half \\\\ud83d' holds half a character")


@pytest.mark.parametrize("place", ["target/run", "source/deep/er", "target", "."])
def test_an_output_that_overlaps_a_model(pair: Mapping, place: str) -> None:
    root = Path(pair["target"]).parent
    problems = check(recipe_of(pair, output=str(root / place)))
    assert len(problems) == 1 and problems[0].startswith("output: ") and "lie in one another" in problems[0]


def test_outputs_that_cannot_be_written(pair: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (problem,) = check(recipe_of(pair, output=str(tmp_path / "mine")))
    assert "exists and is not a run of tmerge" in problem
    (problem,) = check(recipe_of(pair, output=str(tmp_path / "mine" / "thesis.txt")))
    assert "thesis.txt is a file" in problem
    (problem,) = check(recipe_of(pair, output=str(tmp_path / ("x" * 300))))
    assert problem.startswith("output: File name too long")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (problem,) = check(recipe_of(pair))
    assert "read-only" in problem and "another output" in problem


def test_choices_that_leave_nothing_to_score(pair: Mapping, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"context": "", "choices": ["a", "two rivers"], "label": 0}] * 3
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode() + b"\r\n\r\n")
    assert not check(recipe_of(pair, evaluation={"choices": [str(path)]}))
    made = make_tokenizer()
    made.bos_token = None
    made.save_pretrained(pair["target"])
    (problem,) = check(recipe_of(pair, evaluation={"choices": [str(path)]}))
    assert problem.startswith("evaluation.choices, q: choice 'a' leaves no token")


def test_questions_that_a_model_cannot_read(pair: Mapping, tmp_path: Path) -> None:
    """`tmerge eval` asks a run's recipe with benchmarks added: the same check."""
    path = tmp_path / "q.jsonl"
    chinese = letters(0x4E00, 0x4E80, 6, 12)
    path.write_text("\n".join(json.dumps({"context": c, "choices": [c[:4], c[4:]], "label": 0}) for c in chinese))
    asked = recipe_of(pair, evaluation={"choices": [str(path)], "benchmark_source": True})
    prepared = prepare(asked)
    assert prepared.recipe.evaluation.benchmark_source and not any("cannot read" in w for w in prepared.warnings)
    known = Path(pair["calibration"]["path"]).read_text().splitlines()
    for role in ("source", "target"):
        words_only(known, normalizer=normalizers.NFC()).save_pretrained(pair[role])
    prepared = prepare(asked)
    assert not prepared.recipe.evaluation.benchmark_source and prepared.recipe.evaluation.source
    told = [warning for warning in prepared.warnings if warning.startswith("evaluation.choices, q: ")]
    assert [note.rpartition(": ")[2] for note in told] == ["it is not asked", "its answers say little"]
    alone = prepare(recipe_of(pair, evaluation={"choices": [str(path)]}))
    assert len([warning for warning in alone.warnings if warning.startswith("evaluation.choices")]) == 1


def test_a_rebuilt_tokenizer_is_said(pair: Mapping) -> None:
    make_model(Path(pair["target"]), "qwen2", vocab=400)
    metaspace().save_pretrained(pair["target"])
    path = Path(pair["target"]) / "tokenizer_config.json"
    data = {k: v for k, v in json.loads(path.read_text()).items() if k != "backend"}
    path.write_text(json.dumps({**data, "tokenizer_class": "PreTrainedTokenizerFast"}))
    prepared = prepare(recipe_of(pair))
    assert [
        told for told in prepared.warnings if told.startswith("target: the tokenizer of target: transformers would")
    ]
