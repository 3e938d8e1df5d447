"""Calibration text streamed from data sets on the local Hub. Reference: the rows that were served."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem, constants

from tests.hub.server import TOKEN, Hub
from tmerge_tui.engine.data.corpus import read_corpus
from tmerge_tui.errors import DataError
from tmerge_tui.recipe import Calibration

ROWS = 3000
CONFIGS = b"""---
configs:
- config_name: formal
  data_files: formal/*.parquet
- config_name: slang
  data_files: slang/*.parquet
---
"""


@pytest.fixture(autouse=True)
def library(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The data set library has read its environment too."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    template = hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", template)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    HfFileSystem.clear_instance_cache()


def jsonl(count: int = ROWS) -> bytes:
    return "".join(json.dumps({"text": f"line {i} of many", "n": i}) + "\n" for i in range(count)).encode()


def parquet(path: Path, table: dict[str, list[Any]]) -> bytes:
    pq.write_table(pa.table(table), path, row_group_size=200)
    return path.read_bytes()


def calibration(repo: str = "org/text", samples: int = 50, holdout: int = 10, **more: Any) -> Calibration:
    return Calibration(repo_id=repo, samples=samples, holdout=holdout, **more)


def sent(hub: Hub) -> int:
    return sum(r.sent for r in hub.requests if r.host == "blobs")


def test_text_is_streamed_shuffled_and_pinned(hub: Hub) -> None:
    made = hub.add("org/text", {"train.jsonl": jsonl()}, kind="dataset")
    corpus = read_corpus(calibration(), seed=0)
    assert (len(corpus.calibration), len(corpus.holdout)) == (50, 10)
    assert (corpus.column, corpus.commit, corpus.warnings) == ("text", made.commit, ())
    texts = [sample.text for sample in (*corpus.holdout, *corpus.calibration)]
    served = {f"line {i} of many" for i in range(ROWS)}
    assert len(set(texts)) == 60 and set(texts) <= served
    assert texts != sorted(texts) and max(int(t.split()[1]) for t in texts if t) > 1000  # not the first 60
    assert read_corpus(calibration(), seed=1).sha256 != corpus.sha256


def test_the_same_seed_gives_the_same_texts_and_more_samples_the_same_holdout(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/text", {"train.jsonl": jsonl()}, kind="dataset")
    first = read_corpus(calibration(), seed=3)
    for kept in (tmp_path / "hf" / "tmerge").rglob("*.json*"):
        kept.unlink()
    assert read_corpus(calibration(), seed=3) == first
    more = read_corpus(calibration(samples=90), seed=3)
    assert more.holdout == first.holdout and more.calibration[:50] == first.calibration


def test_a_second_run_reads_what_was_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/text", {"train.jsonl": jsonl()}, kind="dataset")
    first = read_corpus(calibration(), seed=0)
    before = sent(hub)
    assert read_corpus(calibration(), seed=0) == first and sent(hub) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = read_corpus(calibration(), seed=0)
    assert offline.calibration == first.calibration and offline.commit == first.commit
    assert "samples of an earlier run used" in offline.warnings[0] and "offline mode" in offline.warnings[0]
    with pytest.raises(DataError, match=r"org/text: the Hub is not asked, since offline mode is on"):
        read_corpus(calibration(samples=51), seed=0)


def test_a_revision_is_a_commit(hub: Hub) -> None:
    made = hub.add("org/text", {"train.jsonl": jsonl()}, kind="dataset")
    before = made.commit
    first = read_corpus(calibration(), seed=0)
    made.change(train__jsonl=jsonl(2000))
    assert read_corpus(calibration(), seed=0).commit == made.commit != before
    assert read_corpus(calibration(revision=before), seed=0).calibration == first.calibration


def test_a_large_set_costs_little(hub: Hub, tmp_path: Path) -> None:
    shards, chance = {}, random.Random(0)
    for shard in range(6):
        texts = [f"{shard} {i} {chance.randbytes(1500).hex()}" for i in range(6000)]
        shards[f"data/train-{shard:05d}-of-00006.parquet"] = parquet(tmp_path / "x.parquet", {"text": texts})
    hub.add("org/large", shards, kind="dataset")
    assert len(read_corpus(calibration("org/large", samples=200), seed=0).calibration) == 200
    whole = sum(map(len, shards.values()))
    assert sent(hub) < whole / 2, (sent(hub), whole)


def test_chat_messages_of_one_configuration(hub: Hub, tmp_path: Path) -> None:
    said = [[{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}] for i in range(300)]
    data = parquet(tmp_path / "x.parquet", {"conversations": said, "id": [str(i) for i in range(300)]})
    other = parquet(tmp_path / "x.parquet", {"text": [str(i) for i in range(300)]})
    files = {"README.md": CONFIGS, "formal/a.parquet": data, "slang/a.parquet": other}
    hub.add("org/chat", files, kind="dataset")
    corpus = read_corpus(calibration("org/chat", config_name="formal"), seed=0)
    roles = [message["role"] for message in corpus.calibration[0].messages or ()]
    assert corpus.column == "conversations" and roles == ["user", "assistant"]
    with pytest.raises(DataError, match=r"several configurations[\s\S]*one of formal, slang"):
        read_corpus(calibration("org/chat"), seed=0)
    with pytest.raises(DataError, match=r"no configuration casual[\s\S]*one of formal, slang"):
        read_corpus(calibration("org/chat", config_name="casual"), seed=0)


def test_two_columns_make_a_conversation(hub: Hub) -> None:
    rows = "".join(json.dumps({"q": f"why {i}", "a": f"so {i}"}) + "\n" for i in range(100)).encode()
    hub.add("org/pairs", {"train.jsonl": rows}, kind="dataset")
    corpus = read_corpus(calibration("org/pairs", column="q+a"), seed=0)
    messages = corpus.calibration[0].messages
    assert messages is not None and messages[0]["content"].removeprefix("why") == messages[1]["content"][2:]
    with pytest.raises(DataError, match=r"org/pairs: fields q, a[\s\S]*set calibration.column"):
        read_corpus(calibration("org/pairs"), seed=0)
    with pytest.raises(DataError, match=r"org/pairs: no field answer[\s\S]*one of: q, a"):
        read_corpus(calibration("org/pairs", column="answer"), seed=0)


def test_duplicates_and_blanks_do_not_count(hub: Hub) -> None:
    texts = [f"line {i % 30}" for i in range(600)] + ["", " ", None] * 50
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    hub.add("org/text", {"train.jsonl": rows}, kind="dataset")
    corpus = read_corpus(calibration(samples=50, holdout=5), seed=0)
    assert len(corpus.calibration) == 25 and "calibration is 25 samples: 50 were asked for" in corpus.warnings[0]


def test_a_holdout_file_beside_a_stream(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/text", {"train.jsonl": jsonl()}, kind="dataset")
    held = tmp_path / "held.txt"
    held.write_text("\n".join(f"held {i}" for i in range(20)))
    corpus = read_corpus(calibration(holdout_path=str(held)), seed=0)
    assert len(corpus.calibration) == 50 and all((s.text or "").startswith("held") for s in corpus.holdout)


def test_refusals(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"the Hub has no data set org/none"):
        read_corpus(calibration("org/none"), seed=0)
    hub.add("org/text", {"train.jsonl": jsonl(100)}, kind="dataset")
    with pytest.raises(DataError, match=r"no split test[\s\S]*one of train"):
        read_corpus(calibration(split="test"), seed=0)
    with pytest.raises(DataError, match=r"org/text has no revision v9"):
        read_corpus(calibration(revision="v9"), seed=0)
    hub.add("org/gated", {"train.jsonl": jsonl(100)}, kind="dataset", gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(DataError, match=rf"org/gated is gated[\s\S]*{hub.url}/datasets/org/gated"):
        read_corpus(calibration("org/gated"), seed=0)
    hub.add("org/pictures", {"a.xyz": b"x", "README.md": b"x"}, kind="dataset")
    with pytest.raises(DataError, match=r"org/pictures cannot be read[\s\S]*jsonl, csv"):
        read_corpus(calibration("org/pictures"), seed=0)
    hub.add("org/numbers", {"train.jsonl": b'{"text": 1}\n{"text": 2}\n'}, kind="dataset")
    with pytest.raises(DataError, match=r"org/numbers, row 1 of the stream: field text holds"):
        read_corpus(calibration("org/numbers"), seed=0)


def test_nothing_is_printed(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.add("org/text", {"train.jsonl": jsonl(100)}, kind="dataset")
    read_corpus(calibration(), seed=0)
    assert capfd.readouterr() == ("", "")
