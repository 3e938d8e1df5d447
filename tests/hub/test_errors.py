"""Every refusal a user can meet, read as the user reads it. Reference: what the server was told to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, LocalTokenNotFoundError

from tests.hub.server import TOKEN, Hub
from tests.tiny import make_model
from tmerge_tui.errors import DataError, ModelError, StorageError
from tmerge_tui.hub.errors import explain, scrub
from tmerge_tui.hub.locate import find, locate
from tmerge_tui.recipe import ModelChoice


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def refusal(name: str = "org/tiny", **more: Any) -> str:
    with pytest.raises(ModelError) as caught:
        find(ModelChoice.model_validate({"model": name, **more}))
    assert caught.value.__cause__ is None and caught.value.__suppress_context__  # its text may hold a signed link
    text = str(caught.value)
    assert "next: " in text and TOKEN not in text
    return text


@pytest.mark.parametrize("token", [False, True])
def test_gated(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, token: bool) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/tiny", model, gated=True)
    text = refusal()
    assert "org/tiny is gated" in text and f"accept them at {hub.url}/org/tiny" in text and "`hf auth login`" in text
    assert ("account that is logged in" if token else "someone who is not logged in") in text


def test_no_such_repository_or_private(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the Hub has no model org/none" in refusal("org/none")
    hub.add("org/mine", model, private=True)
    assert "not for someone who is not logged in" in refusal("org/mine")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find(ModelChoice(model="org/mine")).commit
    assert "not for the account that is logged in here" in refusal("org/none")


def test_no_such_revision(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    text = refusal("org/tiny@v9")
    assert "org/tiny has no revision v9" in text and f"{hub.url}/org/tiny/tree/main" in text


@pytest.mark.parametrize("name", ["no spaces please", "a/b/c", "org/..", "-x/y"])
def test_not_an_id(hub: Hub, name: str) -> None:
    assert "neither a folder here nor a Hub id" in refusal(name)
    assert not hub.requests


def test_a_token_that_is_not_accepted(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_OldTokenThatHasExpired")
    hub.add("org/tiny", model)
    text = refusal()
    assert "does not accept the token" in text and "`hf auth login`" in text and "OldToken" not in text


def test_disabled_and_forbidden(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail("/api/models/*", status=403, headers={"X-Error-Message": "Access to this resource is disabled."})
    assert "org/tiny has been disabled" in refusal()
    hub.fail("/api/models/*", status=403, headers={"X-Error-Message": f"token {TOKEN} lacks read rights"})
    assert "not allowed for someone who is not logged in: token hf_*** lacks read rights" in refusal()


def test_too_many_requests(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail("/api/models/*", status=429, headers={"Retry-After": "300"})
    text = refusal()
    assert "too many requests: the Hub asks to wait for 300 seconds" in text and "run the same command" in text


def test_a_hub_in_trouble(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail("/api/models/*", status=503, times=-1)
    assert "the Hub is in trouble (error 503)" in refusal()


def test_other_answers(hub: Hub) -> None:
    hub.fail("/api/models/*", status=418, headers={"X-Error-Message": "I am a teapot"})
    assert "the Hub said 418: I am a teapot" in refusal()


def test_a_file_that_is_gone(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    hub.fail("*/resolve/*/config.json", status=404, headers={"X-Error-Code": "EntryNotFound"}, times=-1)
    assert "org/tiny: a file is not there" in refusal()


def test_a_slow_hub(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmerge_tui.hub.listing.ANSWER", 0.1)
    hub.add("org/tiny", model)
    hub.fail("/api/models/*", silent=True, times=-1)
    assert "did not answer in time" in refusal()


def test_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    text = refusal()
    assert "the Hub cannot be reached: " in text and "HF_ENDPOINT" in text


def test_a_folder_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(ModelError, match="no model folder nowhere"):
        find(ModelChoice(model="./nowhere"))


# -- what no server can be made to say ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (httpx2.ProxyError("407 from http://me:secret@proxy:3128"), ModelError, "the proxy does not let this through"),
        (LocalTokenNotFoundError("token required"), ModelError, "no token on this machine"),
        (LocalEntryNotFoundError("not here"), ModelError, "a file is not there: not here"),
        (PermissionError(13, "denied", "/cache/blobs"), StorageError, "cannot write /cache/blobs"),
        (OSError(28, "No space left on device"), StorageError, "disk full while fetching org/name"),
        (OSError(122, "Disk quota exceeded"), StorageError, "disk full while fetching org/name"),
        (OSError(5, "Input/output error"), ModelError, "org/name: Input/output error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_other_failures(error: Exception, kind: type[Exception], message: str) -> None:
    found = explain(error, "org/name", ModelError, "model")
    assert type(found) is kind and message in str(found) and found.hint and "secret" not in str(found)


def test_a_data_set_is_called_one(hub: Hub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with pytest.raises(RepositoryNotFoundError) as caught:
        HfApi().dataset_info("org/none")
    found = explain(caught.value, "org/none", DataError, "data set")
    assert isinstance(found, DataError) and "the Hub has no data set org/none" in str(found)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (f"token {TOKEN} here", "token hf_*** here"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("http://me:pass@proxy:1/", "http://***@proxy:1/"),
        ("GET https://cdn/x?X-Amz-Signature=abc failed", "GET https://cdn/x failed"),
        ("nothing to hide: a?b", "nothing to hide: a?b"),
    ],
)
def test_secrets_are_scrubbed(text: str, plain: str) -> None:
    assert scrub(text) == plain


def test_the_token_in_use_is_scrubbed_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token")
    assert scrub("failed with an-odd-token") == "failed with ***"


def test_all_is_well_afterwards(hub: Hub, model: Path) -> None:
    hub.add("org/tiny", model)
    assert locate(ModelChoice(model="org/tiny")).pending is None
