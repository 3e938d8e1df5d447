"""Checks of what the binary finds around it: certificates, a locale or none, names that are not ASCII."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from pathlib import Path

import smoke_texts
from smoke_box import NotChecked, expect
from smoke_merge import DEMO, World, copy, same_merge
from smoke_wizard import TERM, opened

NAME = "modèle ọ̀rúnmìlà 語"
MISSING = "xx_XX.ISO-8859-1"  # a locale that no machine has


def certificates(world: World) -> str:
    """TLS: a Hub that signs its own certificate is trusted through SSL_CERT_FILE and refused without it."""
    smoke_texts.quiet()
    from tests.hub.server import Hub
    from tests.tiny import make_model

    box = world.box
    key, certificate = sign(box.folder)
    model = make_model(box.models / "secure", "qwen2")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    hub = Hub()
    for server in hub._servers:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    hub.url, hub.blobs = (url.replace("http://127.0.0.1", "https://localhost") for url in (hub.url, hub.blobs))
    with hub:
        hub.add("org/secure", model, pipeline_tag="text-generation")
        blind = box.environment(HF_ENDPOINT=hub.url, TERM=TERM)
        trusting = {**blind, "SSL_CERT_FILE": str(certificate)}
        box.run("check", "org/secure", env=trusting).expect(0, "q_proj")
        refused = box.run("check", "org/secure", env=blind)
        expect(refused.code != 0 and "certificate" in refused.err.lower(), f"not refused: {refused}")
        heard = {finding["what"]: finding for finding in doctor(world, trusting)}
        expect(heard["hub"]["level"] == "ok", f"the doctor of a Hub whose certificate is trusted: {heard['hub']}")
        heard = {finding["what"]: finding for finding in doctor(world, blind)}
        expect("SSL_CERT_FILE" in str(heard["hub"]), f"the doctor of a Hub that nobody vouches for: {heard['hub']}")
        with opened(world, 100, 30, trusting) as screen:
            screen.shows("This machine")
            screen.keys("n")
            screen.shows("Source · is only read")
            screen.keys("secu")
            screen.shows("org/secure")
            screen.leaves()
    return f"of the system: {heard['certificates']['found']}"


def doctor(world: World, env: dict[str, str]) -> list[dict[str, str]]:
    return json.loads(world.box.run("doctor", "--json", env=env).out)["findings"]


def sign(folder: Path) -> tuple[Path, Path]:
    """A key and its own certificate for this machine, good for two days."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NotChecked("no openssl to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    asked = [
        *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
    ]
    subprocess.run(asked, check=True, capture_output=True)
    return key, certificate


def locale(world: World) -> str:
    """Names that are not ASCII with LC_ALL=C, with a locale that is not there, and with none."""
    box = world.box
    models = copy(DEMO, box.models / NAME, {"source-llama": "source", "target-qwen2": "target"})
    plain = world.pair_recipe()
    recipe = {**plain, "source": str(models / "source"), "target": str(models / "target")}
    recipe["calibration"] = {**plain["calibration"], "path": str(models / "calibration.txt")}
    path = world.write(f"locale {NAME}", **recipe)
    done = box.run("--batch", path, "--quiet", env=box.environment(LC_ALL="C")).expect(0, str(path.with_suffix("")))
    expect(done.err == "", f"--quiet says {done.err}")
    same = same_merge(path.with_suffix(""), world.short)
    for env in (box.environment(), box.environment(LC_ALL=MISSING, LANG=MISSING)):
        box.run("watch", path.with_suffix(""), env=env).expect(0, NAME)
    box.run("check", models / "target", env=box.environment(LANG=MISSING)).expect(0, "q_proj")
    return same


CHECKS = {"tls": certificates, "locale": locale}
