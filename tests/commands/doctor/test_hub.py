"""The Hub: reachable, broken, behind a proxy, without certificates; and that no secret is shown.

The Hub is the local server of tests/hub; the client is the real one.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import close_session, constants

from tests.hub.conftest import hub as hub  # a fixture
from tests.hub.server import TOKEN, Fault, Hub
from tmerge_tui.commands import doctor
from tmerge_tui.commands.doctor import hub as probe
from tmerge_tui.commands.doctor.finding import Finding, Level

VARIABLES = (
    *probe.OFFLINE, *probe.PROXIES, *(name.lower() for name in probe.PROXIES),
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_ENDPOINT",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    yield
    close_session()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
    return address


def named(what: str, found: Iterator[Finding]) -> Finding:
    return next(one for one in found if one.what == what)


def test_a_hub_that_answers(hub: Hub) -> None:
    told = probe.reach()
    assert told.level is Level.OK and told.found.startswith(f"{hub.url} answers in ")
    assert told.facts["endpoint"] == hub.url
    assert not any("authorization" in {k.lower() for k in one.headers} for one in hub.requests), "no token is needed"


def test_a_hub_in_trouble(hub: Hub) -> None:
    hub.faults.append(Fault("*", status=503, times=-1))
    told = probe.reach()
    assert told.level is Level.PROBLEM and "error 503" in told.found and "--offline" in told.advice


def test_a_hub_that_takes_too_long(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0.2)
    hub.faults.append(Fault("*", silent=True, times=-1))
    told = probe.reach()
    assert told.found == f"{hub.url}: no answer within 0.2 s" and "check the connection" in told.advice


def test_a_name_that_takes_for_ever_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own timeouts do not cover it."""
    import threading

    end = threading.Event()
    monkeypatch.setattr(probe, "PATIENCE", 0.2)
    monkeypatch.setattr(probe, "reach", lambda: Finding("hub", f"too late: {end.wait(30)}", "no matter"))
    told, account = probe.Asking(whoami=True).answer()
    end.set()
    assert "no answer within 0.2 s" in told.found and account.found == "not known"


def test_nobody_listens(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = probe.reach()
    assert told.level is Level.PROBLEM and f"http://{nobody}: " in told.found
    assert "set HF_ENDPOINT to a mirror" in told.advice
    monkeypatch.setenv("HF_ENDPOINT", f"http://{nobody}")
    assert "check HF_ENDPOINT" in probe.reach().advice


def test_a_proxy_that_is_not_there(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@{nobody}")
    close_session()
    told = list(probe.findings(probe.Asking(whoami=False)))
    assert named("hub", iter(told)).level is Level.PROBLEM
    assert named("proxy", iter(told)).found == f"HTTP_PROXY=http://***@{nobody}"
    assert "hunter2" not in str(told)


def test_a_certificate_that_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, *args: object, **more: object) -> None:
            raise httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    told = probe.reach()
    assert "self-signed" in told.found and "SSL_CERT_FILE" in told.advice


def test_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "yes")
    told = named("hub", probe.findings(probe.Asking(whoami=True)))
    assert told.found == f"{hub.url}, not asked: offline (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)"
    assert told.level is Level.NOTE and "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE" in told.advice
    assert hub.requests == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://me:secret@proxy:3128", "http://***@proxy:3128"),
        ("http://me:sec@ret/x@proxy:3128", "http://***@proxy:3128"),
        ("me:secret@proxy:3128", "***@proxy:3128"),
        ("https://mirror/hub?key=secret#secret", "https://mirror/hub"),
        ("localhost,.example.org", "localhost,.example.org"),
    ],
)
def test_addresses_without_secrets(url: str, shown: str) -> None:
    assert probe.without_secrets(url) == shown


def test_proxies_in_either_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(probe.proxies()) == []
    monkeypatch.setenv("https_proxy", "http://me:secret@low:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    (told,) = probe.proxies()
    assert told.found == "HTTPS_PROXY=http://***@low:1, NO_PROXY=localhost"


def test_certificates_of_this_machine() -> None:
    told = probe.certificates()
    assert told.level is Level.OK and "loaded" in told.facts


def test_a_certificate_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would fail on every request."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(OSError):
        httpx2.create_ssl_context()
    told = probe.certificates()
    assert told.level is Level.PROBLEM and "which is not there" in told.found and "SSL_CERT_FILE" in told.advice


def test_a_certificate_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bad.pem"))
    told = probe.certificates()
    assert told.level is Level.PROBLEM and told.found.startswith("cannot be read")


def test_a_machine_without_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx2, "create_ssl_context", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    monkeypatch.setattr(probe, "_folder_of_certificates", lambda: False)
    monkeypatch.setattr(probe.platform, "system", lambda: "Linux")
    told = probe.certificates()
    assert (told.found, told.level) == ("none found", Level.PROBLEM) and "ca-certificates" in told.advice
    monkeypatch.setattr(probe.platform, "system", lambda: "Darwin")
    assert probe.certificates().found == "those of the system"


def test_a_variable_that_the_client_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/own.pem")
    told = probe.certificates()
    assert told.level is Level.NOTE and "REQUESTS_CA_BUNDLE is set" in told.found and "SSL_CERT_FILE" in told.advice


def test_tokens_are_present_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.token().found.startswith("none: gated models cannot be read")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert probe.token().found == "present (from a file)"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told = probe.token()
    assert told.found == "present (from HF_TOKEN)" and TOKEN not in str(told)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert "not sent" in probe.token().found and probe.token().level is Level.NOTE


def test_whose_token_it_is_only_when_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert [one.what for one in probe.Asking(whoami=False).answer()] == ["hub"]
    assert not [one for one in hub.requests if "whoami" in one.path]
    asked = probe.Asking(whoami=True).answer()
    assert [one.what for one in asked] == ["hub", "account"]
    assert [one for one in hub.requests if "whoami" in one.path]
    assert TOKEN not in str(asked)


def test_a_token_that_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(Fault("*whoami*", status=401, times=-1))
    told = probe.owner()
    assert told.found == "the Hub does not accept the token" and "hf auth login" in told.advice
    monkeypatch.delenv("HF_TOKEN")
    assert probe.owner().found.startswith("no token")


def test_nothing_secret_in_a_bug_report(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2@{nobody}")
    monkeypatch.setattr(constants, "ENDPOINT", f"https://me:hunter2@{nobody}/hub?token=hunter2")
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 5000 192.0.2.8 22")
    close_session()
    doctor.doctor(as_json=True, whoami=True)
    doctor.doctor()
    said = capsys.readouterr()
    text = said.out + said.err
    assert json.loads(said.out[: said.out.index("\n}\n") + 2])["problems"] > 0
    for secret in (TOKEN, "hunter2", "192.0.2", str(Path.home()) + "/"):
        assert secret not in text
