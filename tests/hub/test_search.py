"""Search and headers against the local Hub. Reference: what it was given to serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hub.server import Hub
from tests.tiny import make_model
from tmerge_tui.errors import DataError, ModelError
from tmerge_tui.hub.headers import read_headers
from tmerge_tui.hub.listing import list_model
from tmerge_tui.hub.locate import locate
from tmerge_tui.hub.search import cached_models, describe, search_datasets, search_models
from tmerge_tui.models.checkpoint import Checkpoint
from tmerge_tui.recipe import ModelChoice


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "m", dtype=torch.bfloat16, max_shard_size="20KB")


def fill(hub: Hub) -> None:
    for i in range(8):
        hub.add(
            f"org/llama-{i}",
            {},
            pipeline_tag="text-generation",
            downloads=i,
            likes=(i * 3) % 8,
            lastModified=f"2026-01-{9 - i:02d}T00:00:00.000Z",
            tags=["license:mit"],
            safetensors={"parameters": {"BF16": 1000 * i}, "total": 1000 * i},
            config={"model_type": "llama"},
        )
    hub.add("org/llama-picture", {}, pipeline_tag="text-to-image", downloads=99)


def test_search_sorts_and_limits(hub: Hub) -> None:
    fill(hub)
    names = [found.name for found in search_models("llama", limit=5)]
    assert names == [f"org/llama-{i}" for i in (7, 6, 5, 4, 3)]  # more than one page, and no pictures
    assert [found.likes for found in search_models("llama", "likes", 3)] == [7, 6, 5]
    assert search_models("llama", "recent", 1)[0].name == "org/llama-0"
    best = search_models("llama-7")[0]
    assert (best.parameters, best.licence, best.family, best.gated) == (7000, "mit", "llama", False)
    assert (best.downloads, best.modified, best.origin) == (7, "2026-01-02", "hub")
    assert search_models("nothing like it") == []


def test_search_of_data_sets(hub: Hub) -> None:
    for i in range(3):
        hub.add(f"org/text-{i}", {}, kind="dataset", downloads=i, gated=i == 1)
    found = search_datasets("text")
    assert [(one.name, one.gated) for one in found] == [
        ("org/text-2", False),
        ("org/text-1", True),
        ("org/text-0", False),
    ]


def test_search_without_a_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="offline mode is on"):
        search_models("llama")
    with pytest.raises(DataError, match="offline mode is on"):
        search_datasets("text")


def test_describe_also_tells_of_gated_models(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model, gated=True, tags=["license:llama3"])
    found = describe("org/tiny")
    assert found.gated and found.licence == "llama3"
    assert found.bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    with pytest.raises(ModelError, match="org/tiny has no revision v9"):
        describe("org/tiny@v9")


def test_headers_without_weights(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmerge_tui.hub.headers.FIRST", 200)  # shorter than a header: the rest is asked for
    hub.add("org/tiny", model)
    near, far = Checkpoint(model), read_headers(list_model("org/tiny", None, False))
    assert {name: (t.shape, t.file, t.start, t.end) for name, t in far.items()} == {
        name: (info.shape, info.file.name, info.start, info.end) for name in near.names for info in [near.info(name)]
    }
    assert {tensor.dtype for tensor in far.values()} == {"BF16"}
    sent = sum(r.sent for r in hub.asked("/model/org/tiny/*.safetensors"))
    assert sent < near.bytes / 4


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b"not json at all!", b"<html>" * 400])
def test_a_weight_file_that_is_none(hub: Hub, content: bytes) -> None:
    hub.add("org/odd", {"config.json": b"{}", "model.safetensors": content})
    with pytest.raises(ModelError, match=r"org/odd: model\.safetensors has no safetensors header"):
        read_headers(list_model("org/odd", None, False))


def test_the_cache_as_a_source_of_choices(hub: Hub, model: Path) -> None:
    assert cached_models() == []
    hub.add("org/tiny", model)
    folder = locate(ModelChoice(model="org/tiny")).folder
    hub.add("org/other", model)
    (found,) = cached_models("TINY")
    assert (found.name, found.origin, found.folder, found.family) == ("org/tiny", "cache", folder, "llama")
