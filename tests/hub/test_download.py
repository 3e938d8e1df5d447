"""Downloads against a server that cuts, damages, stalls and refuses. Reference: the bytes the server serves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, snapshot_download

from tests.hub.conftest import environment
from tests.hub.server import TOKEN, Hub
from tests.tiny import make_model
from tests.waiting import until
from tmerge_tui.engine.preflight.remote_checkpoint import outline
from tmerge_tui.errors import ModelError, StorageError
from tmerge_tui.hub import download as downloading
from tmerge_tui.hub.listing import list_model
from tmerge_tui.hub.locate import find, locate
from tmerge_tui.models.facts import read_facts
from tmerge_tui.recipe import ModelChoice

WEIGHTS = "/model/org/tiny/*.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "sharded", max_shard_size="40KB", layers=3)


def choice(name: str = "org/tiny", **more: object) -> ModelChoice:
    return ModelChoice.model_validate({"model": name, **more})


def same(folder: Path, served: Path) -> bool:
    names = [path.name for path in served.iterdir()]
    return all((folder / name).read_bytes() == (served / name).read_bytes() for name in names)


def test_a_model_arrives_in_the_standard_cache(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    commit = hub.add("org/tiny", sharded).commit
    found = locate(choice())
    assert (found.name, found.commit, found.pending, found.note) == ("org/tiny", commit, None, "")
    assert found.folder == tmp_path / "hf" / "hub" / "models--org--tiny" / "snapshots" / commit
    assert same(found.folder, sharded)
    asked = len(hub.asked("*/resolve/*", "GET"))
    assert snapshot_download("org/tiny") == str(found.folder)  # the client finds everything where it would put it
    assert len(hub.asked("*/resolve/*", "GET")) == asked
    assert not list((tmp_path / "hf").rglob("*.part"))


def test_finding_a_model_downloads_no_weights(hub: Hub, sharded: Path) -> None:
    hub.add("org/tiny", sharded)
    found = find(choice())
    assert found.pending is not None and not hub.asked(WEIGHTS)
    assert {file.path for file in found.pending.missing} == {p.name for p in sharded.glob("*.safetensors")}
    assert sum(file.size for file in found.pending.missing) == sum(
        p.stat().st_size for p in sharded.glob("*.safetensors")
    )
    assert (found.folder / "tokenizer.json").read_bytes() == (sharded / "tokenizer.json").read_bytes()


def test_only_what_a_merge_needs(hub: Hub, model: Path) -> None:
    extra = {
        "pytorch_model.bin": b"x" * 5000, "consolidated.safetensors": b"x" * 5000, "model.gguf": b"x" * 5000,
        "onnx/model.onnx": b"x" * 5000, "original/params.json": b"{}", "training_args.bin": b"x", "photo.png": b"x",
        "LICENSE": b"free", "README.md": b"---\nlicense: mit\n---\n", "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tool.jinja": b"{{ tools }}", "modeling_x.py": b"print('hello')",
        "pytorch_model.bin.index.json": b"{}",
    }  # fmt: skip
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.add("org/tiny", {**files, **extra})
    kept = {"LICENSE", "README.md", "chat_template.jinja", "additional_chat_templates/tool.jinja"}
    assert {file.path for file in list_model("org/tiny").files} == {*files, *kept}
    assert {file.path for file in list_model("org/tiny", code=True).files} == {*files, *kept, "modeling_x.py"}


def test_pytorch_files_only_where_there_are_no_safetensors(hub: Hub, model: Path) -> None:
    texts = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix == ".json"}
    single = {"pytorch_model.bin": b"x" * 2000, "pytorch_model.bin.index.json": b"{}"}
    shards = {f"pytorch_model-0000{i}-of-00002.bin": b"x" * 2000 for i in (1, 2)}
    hub.add("org/single", {**texts, **single, **shards, "optimizer.bin": b"x"})
    index = json.dumps({"weight_map": {str(i): name for i, name in enumerate(shards)}}).encode()
    hub.add("org/shards", {**texts, **shards, "pytorch_model.bin.index.json": index})
    named = {repo: {file.path for file in list_model(f"org/{repo}").weights} for repo in ("single", "shards")}
    assert named == {"single": {"pytorch_model.bin"}, "shards": set(shards)}
    assert "pytorch_model.bin.index.json" in {file.path for file in list_model("org/shards").files}


def renamed(folder: Path, name: Callable[[int, int], str], index: str) -> dict[str, bytes]:
    """The files of a sharded model with its shards called otherwise; their order in the index as it was."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    shards = sorted(file for file in files if file.endswith(".safetensors"))
    names = {shard: name(i, len(shards)) for i, shard in enumerate(shards, 1)}
    entries = json.loads(files.pop("model.safetensors.index.json"))["weight_map"]
    files[index] = json.dumps({"metadata": {}, "weight_map": {t: names[f] for t, f in entries.items()}}).encode()
    return {names.get(file, file): data for file, data in files.items()}


@pytest.mark.parametrize(
    "name",
    [
        lambda i, n: f"model.safetensors-{i:05d}-of-{n:05d}.safetensors",  # Qwen 3.5
        lambda i, n: f"weights_{'abcdefgh'[i]}.safetensors",
        lambda i, n: f"model-{i}.safetensors",
    ],
)
def test_shards_are_those_that_the_index_names(
    hub: Hub, sharded: Path, monkeypatch: pytest.MonkeyPatch, name: Callable[[int, int], str]
) -> None:
    files = renamed(sharded, name, "model.safetensors.index.json")
    other = {"model-00001-of-00009.safetensors": b"x" * 2000, "adapter_model.safetensors": b"x" * 2000}
    hub.add("org/tiny", {**files, **other})
    found = find(choice())
    shards = {file for file in files if file.endswith(".safetensors")}
    assert found.pending is not None and {file.path for file in found.pending.missing} == shards
    facts = read_facts(found.folder, "tiny", weights=outline(found.pending, False))
    folder = locate(choice()).folder
    assert {path.name for path in folder.iterdir()} == set(files)
    assert read_facts(folder, "tiny").parameters == facts.parameters
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(choice()).folder == folder
    os.unlink(folder / min(shards))
    with pytest.raises(ModelError, match=rf"missing: {re.escape(min(shards))} "):
        locate(choice())
    os.unlink(folder / "model.safetensors.index.json")
    with pytest.raises(ModelError, match=r"missing: model\.safetensors\.index\.json"):
        locate(choice())


def test_an_index_that_names_what_is_not_there(hub: Hub, sharded: Path) -> None:
    files = renamed(sharded, lambda i, n: f"part{i}.safetensors", "model.safetensors.index.json")
    del files["part2.safetensors"]
    hub.add("org/tiny", files)
    with pytest.raises(ModelError, match=r"lacks part2\.safetensors, which model\.safetensors\.index\.json names; 1"):
        find(choice())
    hub.add("org/tiny", {**files, "model.safetensors.index.json": b"[]"})
    with pytest.raises(ModelError, match=r"org/tiny: model\.safetensors\.index\.json cannot be read"):
        find(choice())


def test_whatever_a_tokenizer_is_made_of_comes_too(hub: Hub, model: Path) -> None:
    own = {
        "vocab.bpe": b"a",
        "spm.codes": b"b",
        "tokenizer_vocab": b"c",
        "tekken.v3": b"d",
        "NOTICE": b"e",
        "x.jinja2": b"",
    }
    never = {".gitattributes": b"x", "photo.PNG": b"x", "rust_model.ot": b"x", "clip.mp4": b"x", "onnx/vocab.bpe": b"x"}
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.add("org/tiny", {**files, **own, **never})
    assert {file.path for file in list_model("org/tiny").files} == {*files, *own}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "model-00001-of-00002.safetensors": b"x" * 2000}, "holds no weights"),
        ({"config.json": b"{}", "consolidated.00.pth": b"x" * 2000}, "only other PyTorch weights"),
        ({"config.json": b"{}", "x.gguf": b"x" * 2000}, "only GGUF weights"),
        ({"config.json": b"{}"}, "holds no weights"),
    ],
)
def test_other_formats_are_refused_before_anything_is_downloaded(
    hub: Hub, files: dict[str, bytes], message: str
) -> None:
    hub.add("org/tiny", files)
    with pytest.raises(ModelError, match=message):
        find(choice())
    assert not hub.asked("*/resolve/*")


def test_cut_at_a_random_byte_twenty_times_in_a_row(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    served = (model / "model.safetensors").read_bytes()
    chance = random.Random(0)
    for _ in range(20):
        hub.fail(WEIGHTS, cut_at=chance.randrange(len(served) // 25))
    counted: list[int] = []
    listing = list_model("org/tiny")
    folder = downloading.download(listing, lambda count, fresh: counted.append(count))
    arrived = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(arrived).hexdigest() == hashlib.sha256(served).hexdigest()
    tries = [r for r in hub.asked(WEIGHTS)]
    assert len(tries) == 21 and sum(r.sent for r in tries) == len(served)  # no byte was sent twice
    assert sum(counted) == sum(file.size for file in listing.files)


def test_a_killed_process_goes_on_where_it_was(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", model)
    served = (model / "model.safetensors").read_bytes()
    code = "from tmerge_tui.hub.locate import *; print(locate(ModelChoice(model='org/tiny')).folder)"
    env = environment(hub, tmp_path / "home")
    hub.fail("/model/org/tiny/model.safetensors", cut_at=30_000)
    hub.fail("/model/org/tiny/model.safetensors", silent=True)  # the second try hangs: killed there
    with subprocess.Popen([sys.executable, "-c", code], env=env) as worker:
        until(lambda: any(path.stat().st_size == 30_000 for path in (tmp_path / "home").rglob("*.part")))
        worker.send_signal(signal.SIGKILL)
    hub.faults.clear()
    again = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (Path(again.stdout.strip()) / "model.safetensors").read_bytes() == served
    assert hub.asked(WEIGHTS)[-1].headers["range"] == "bytes=30000-" and again.stderr == ""


def test_a_server_without_ranges_starts_over(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail(WEIGHTS, cut_at=1000)
    hub.fail(WEIGHTS, no_ranges=True, times=-1)
    counted: list[int] = []
    listing = list_model("org/tiny")
    assert same(downloading.download(listing, lambda count, fresh: counted.append(count)), model)
    assert sum(counted) == sum(file.size for file in listing.files) and -1000 in counted


def test_a_damaged_file_is_fetched_again_and_then_refused(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail(WEIGHTS, damage=True)
    assert same(locate(choice()).folder, model)
    shutil.rmtree(tmp_path / "hf")
    hub.fail(WEIGHTS, damage=True, times=2)
    with pytest.raises(ModelError, match=r"model\.safetensors arrived damaged twice"):
        locate(choice())
    assert not list((tmp_path / "hf").rglob("*.part"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, model: Path, status: int) -> None:
    hub.add("org/tiny", model)
    for path in ("/api/models/org/tiny", "/org/tiny/resolve/*/model.safetensors", WEIGHTS):
        hub.fail(path, status=status, headers={"Retry-After": "0"}, method="GET")
    assert same(locate(choice()).folder, model)


def test_retry_after_is_followed(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", model)
    find(choice())
    hub.fail(WEIGHTS, status=429, headers={"Retry-After": "7"})
    waited: list[float] = []
    monkeypatch.setattr("tmerge_tui.hub.fetch.time", SimpleNamespace(sleep=waited.append))
    locate(choice())
    assert waited == [7.0]


def test_a_cut_that_never_ends_is_told(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail(WEIGHTS, cut_at=0, times=-1)
    with pytest.raises(ModelError, match=r"org/tiny: the Hub cannot be reached[\s\S]*next:"):
        locate(choice())
    hub.faults.clear()
    assert same(locate(choice()).folder, model)


def test_the_token_stays_with_the_hub(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not sent to the host that large files are redirected to."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/tiny", model, gated=True)
    hub.allowed.add("org/tiny")
    assert same(locate(choice()).folder, model)
    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in hub.asked("*/resolve/*"))
    assert not [r for r in hub.requests if r.host == "blobs" and "authorization" in r.headers]


def test_a_full_disk(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", model)
    find(choice())

    def full(self: object, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    class Full:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...

        write = full

    monkeypatch.setattr("tmerge_tui.hub.fetch.open", Full, raising=False)
    with pytest.raises(StorageError, match=r"disk full while fetching org/tiny[\s\S]*what has arrived is kept"):
        locate(choice())


def test_room_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    assert downloading.lacking_room(1000) is None
    problem = downloading.lacking_room(10**18)
    assert problem is not None and "1,000,000 TB have to be downloaded" in problem and str(tmp_path) in problem


def test_a_revision_is_pinned_to_its_commit(hub: Hub, model: Path) -> None:
    first = hub.add("org/tiny", model, branches=("dev",)).commit
    assert locate(choice("org/tiny@dev")).commit == first
    asked = len(hub.requests)
    assert locate(choice(revision=first)).folder.name == first
    assert len(hub.requests) == asked  # a commit that is there is not asked for
    hub.add("org/tiny", {**{p.name: p.read_bytes() for p in model.iterdir()}, "README.md": b"new"})
    assert locate(choice()).commit != first


# -- without the Hub ---------------------------------------------------------------------------------------------------


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_offline_from_the_cache(hub: Hub, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", sharded)
    online = locate(choice())
    asked = len(hub.requests)
    offline(monkeypatch)
    found = locate(choice())
    assert (found.folder, found.commit) == (online.folder, online.commit)
    assert "cached copy used (offline mode)" in found.note and len(hub.requests) == asked


def test_offline_and_not_cached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    with pytest.raises(ModelError, match=r"org/tiny@dev is not in the cache .* offline mode[\s\S]*without --offline"):
        locate(choice("org/tiny@dev"))


def test_offline_and_partly_cached_names_what_is_missing(
    hub: Hub, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", sharded)
    folder = locate(choice()).folder
    os.unlink(folder / "model-00002-of-00005.safetensors")
    offline(monkeypatch)
    with pytest.raises(ModelError, match=r"only partly in the cache; missing: model-00002-of-00005\.safetensors"):
        locate(choice())


@pytest.mark.parametrize("status", [401, 503])
def test_a_hub_that_does_not_answer_is_replaced_by_the_cache(hub: Hub, model: Path, status: int) -> None:
    hub.add("org/tiny", model)
    online = locate(choice())
    hub.fail("/api/models/org/tiny*", status=status, times=-1)
    found = locate(choice())
    assert found.folder == online.folder and "cached copy used" in found.note


def test_without_symbolic_links_nothing_is_stored_twice(
    hub: Hub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows without developer mode."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.add("org/tiny", sharded)
    found = locate(choice())
    assert same(found.folder, sharded) and not any(path.is_symlink() for path in found.folder.iterdir())
    assert not list((tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs").iterdir())
    asked = len(hub.asked("*/resolve/*", "GET"))
    assert snapshot_download("org/tiny") == str(found.folder)
    locate(choice())
    assert len(hub.asked("*/resolve/*", "GET")) == asked
