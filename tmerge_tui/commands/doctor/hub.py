"""The Hub: where it is, whether it answers, the proxy and certificates on the way, and whether there is a token."""

from __future__ import annotations

import os
import platform
import re
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tmerge_tui.commands.doctor.finding import Finding, Level, checked
from tmerge_tui.hub.errors import PROXY, scrub

PATIENCE = 4.0  # seconds the Hub may take to answer
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
LOGIN = "`hf auth login` stores one"
OWN_CERTIFICATE = "where a proxy of your organisation signs connections, set SSL_CERT_FILE to its certificate"


class Asking:
    """A question to the Hub that is on its way, in a thread that nothing waits for: names can take long to resolve."""

    def __init__(self, whoami: bool) -> None:
        self.whoami = whoami
        self.found: list[Finding] = []
        self._until = time.monotonic() + PATIENCE * (1 + whoami) + 0.5
        self._thread = threading.Thread(target=self._ask, name="hub", daemon=True)
        if not offline():
            self._thread.start()

    def answer(self) -> list[Finding]:
        """Its findings; that it has not answered is one too."""
        if offline():
            return []
        self._thread.join(max(0.1, self._until - time.monotonic()))
        found = list(self.found) or [_unreachable(f"no answer within {PATIENCE:g} s", _elsewhere())]
        if self.whoami and len(found) == 1:
            found.append(checked("account", "not known", "the Hub has to answer first"))
        return found

    def _ask(self) -> None:
        self.found.append(reach())
        if self.whoami and not self.found[0].advice:
            self.found.append(owner())


def findings(asked: Asking) -> Iterator[Finding]:
    yield from asked.answer()
    if names := offline():
        advice = f"to use the Hub, unset {' and '.join(names)}"
        yield Finding("hub", f"{endpoint()}, not asked: offline ({', '.join(names)})", advice, Level.NOTE)
    yield from proxies()
    yield certificates()
    yield token()


def endpoint() -> str:
    from huggingface_hub import constants

    return without_secrets(constants.ENDPOINT)


def offline() -> list[str]:
    """The variables that keep the Hub from being asked; the client has read them when it was imported."""
    from huggingface_hub import constants

    return [name for name in OFFLINE if os.environ.get(name, "").upper() in constants.ENV_VARS_TRUE_VALUES]


def reach() -> Finding:
    """A sign of life of the Hub."""
    import httpx2
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are warnings on stderr
    began = time.monotonic()
    try:
        code = get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code
    except httpx2.TimeoutException:
        return _unreachable(f"no answer within {PATIENCE:g} s", _elsewhere())
    except httpx2.ProxyError as error:
        return _unreachable(f"the proxy does not let this through: {_said(error)}", PROXY)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, ssl.SSLError)
        return _unreachable(_said(error), OWN_CERTIFICATE if untrusted else _elsewhere())
    seconds = time.monotonic() - began
    facts = {"endpoint": endpoint(), "status": code, "seconds": round(seconds, 3)}
    if code >= 500 or code == 407:
        advice = PROXY if code == 407 else "try again later; what is in the cache works meanwhile (--offline)"
        return Finding("hub", f"{endpoint()} answers with error {code}", advice, Level.PROBLEM, facts)
    return Finding("hub", f"{endpoint()} answers in {seconds:.1f} s", facts=facts)


def owner() -> Finding:
    """Whose token it is. Asks the Hub."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        name = str(HfApi().whoami()["name"])
    except LocalTokenNotFoundError:
        return Finding("account", f"no token; {LOGIN}")
    except HfHubHTTPError as error:
        refused = error.response.status_code == 401
        advice = "`hf auth login` with a new one, from hf.co/settings/tokens" if refused else "try again later"
        return checked("account", "the Hub does not accept the token" if refused else _said(error), advice)
    except (httpx2.HTTPError, OSError, ValueError) as error:
        return checked("account", _said(error), "try again later")
    return Finding("account", name)


def proxies() -> Iterator[Finding]:
    """Those that are set, in either case of letters, without user and password."""
    known = {name: os.environ.get(name.lower()) or os.environ.get(name) for name in PROXIES}
    shown = {name: without_secrets(value) for name, value in known.items() if value}
    if shown:
        yield Finding("proxy", ", ".join(f"{name}={value}" for name, value in shown.items()), facts=shown)


def certificates() -> Finding:
    """What connections are checked against, as the Hub's client chooses it."""
    import httpx2

    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        path = os.environ.get(name)
        if path and not Path(path).exists():
            return checked("certificates", f"{name}={path}, which is not there", f"correct or unset {name}")
    try:
        loaded = httpx2.create_ssl_context().cert_store_stats()["x509_ca"]
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        return checked("certificates", f"cannot be read: {_said(error)}", "check SSL_CERT_FILE and SSL_CERT_DIR")
    chosen = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    facts = {"loaded": loaded, "chosen": chosen}
    if platform.system() in ("Darwin", "Windows") and not chosen:
        return Finding("certificates", "those of the system", facts=facts)
    if not loaded and not _folder_of_certificates():
        advice = "install the package ca-certificates, or set SSL_CERT_FILE"
        return checked("certificates", "none found", advice, **facts)
    others = [name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name) and not chosen]
    if others:
        found = f"{loaded} of the system; {others[0]} is set, which the Hub's client does not read"
        return Finding("certificates", found, "set SSL_CERT_FILE too if that one is needed", Level.NOTE, facts)
    found = f"{chosen or 'those of the system'}" + (f", {loaded} loaded" if loaded else "")
    return Finding("certificates", found, facts=facts)


def token() -> Finding:
    """Whether there is one, and from where; never what it is."""
    from huggingface_hub import constants

    where = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name, "").strip()), "")
    if os.environ.get("HF_OIDC_RESOURCE"):
        where = "HF_OIDC_RESOURCE"
    elif not where and _filled(Path(constants.HF_TOKEN_PATH)):
        where = "a file"
    if not where:
        return Finding("token", f"none: gated models cannot be read; {LOGIN}", facts={"from": None})
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        advice = "unset HF_HUB_DISABLE_IMPLICIT_TOKEN to read gated models"
        return Finding("token", f"present (from {where}), but not sent", advice, Level.NOTE, {"from": where})
    return Finding("token", f"present (from {where})", facts={"from": where})


def without_secrets(url: str) -> str:
    """Without user, password and query."""
    scheme, _, rest = url.rpartition("://")
    rest = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    return (f"{scheme}://" if scheme else "") + ("***@" if "@" in url else "") + rest


def _unreachable(found: str, advice: str) -> Finding:
    return checked("hub", f"{endpoint()}: {found}", advice, endpoint=endpoint())


def _elsewhere() -> str:
    named = "check HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else "set HF_ENDPOINT to a mirror"
    return f"check the connection, {named}, or work from the cache (--offline)"


def _folder_of_certificates() -> bool:
    folder = Path(os.environ.get("SSL_CERT_DIR") or ssl.get_default_verify_paths().openssl_capath)
    return folder.is_dir() and any(re.fullmatch(r"[0-9a-f]{8}\.\d", path.name) for path in folder.iterdir())


def _filled(file: Path) -> bool:
    try:
        return bool(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False


def _said(error: Exception) -> str:
    """The first line of what a library says, without error numbers, tokens and passwords."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return scrub(re.sub(r"^\[Errno -?\d+\] ", "", lines[0]))
