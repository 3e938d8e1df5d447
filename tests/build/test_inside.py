"""What a binary carries, its licences and its bill of materials. References: an environment written by hand, and the
running Python.

The tool that describes an environment needs an index to be installed; a bill of materials written by hand stands for
what it says.
"""

from __future__ import annotations

import platform
import ssl
import sys
from pathlib import Path

import inside
import licences
import pytest
import sbom
from inside import Component, Environment, ReleaseError

from tests.build.stand_ins import described, install


def test_environment_describes_itself(tmp_path: Path) -> None:
    found = inside.environment(Path(sys.prefix))
    assert (found.system, found.machine) == (sys.platform, platform.machine())
    assert found.versions["CPython"] == platform.python_version()
    assert found.versions["OpenSSL"] in ssl.OPENSSL_VERSION
    assert found.licence is not None and "PYTHON SOFTWARE FOUNDATION" in found.licence.read_text(encoding="utf-8")
    with pytest.raises(ReleaseError, match=r"no environment.*\n.*\n.*make binary"):
        inside.environment(tmp_path)


def test_inside_are_packages_natives_and_the_bootloader(env: Environment, engine: Path) -> None:
    (engine / "_internal" / "linked.so").symlink_to("libssl.so.3")
    found = {c.name: c for c in inside.components(env, engine)}
    assert set(found) == {"alpha", "beta", "gamma", "CPython", "OpenSSL", "libodd.so.1", "PyInstaller bootloader"}
    assert [file for file, _ in found["alpha"].texts] == ["LICENSE", "vendored/COPYING"]
    assert (found["alpha"].licence, found["beta"].licence, found["gamma"].licence) == (
        "MIT",
        "Apache 2.0 License",
        "MIT License",
    )
    assert [file for file, _ in found["OpenSSL"].files] == ["libcrypto.so.3", "libssl.so.3"]
    assert (found["OpenSSL"].version, found["libodd.so.1"].licence) == ("3.0.1", "")
    assert [(c.name, c.purl) for c in found["beta"].compiled_in] == [
        ("ahash", "pkg:cargo/ahash@1.0"),
        ("own", "pkg:cargo/own@2.0"),
    ]


def test_library_of_a_wheel_is_the_wheels(env: Environment, engine: Path) -> None:
    install(env.site, "delta", "1.0", "", {"../delta.libs/libodd.so.1": ""})
    assert "libodd.so.1" not in {c.name for c in inside.components(env, engine)}


def test_library_under_the_gpl_is_refused(env: Environment, engine: Path) -> None:
    (engine / "_internal" / "libreadline.so.8").write_text("")
    with pytest.raises(
        ReleaseError, match=r"GNU Readline.*GPL-3.0-or-later.*libreadline.so.8(.*\n)+.*build/engine.spec"
    ):
        inside.components(env, engine)


def test_package_under_the_gpl_is_refused(env: Environment, engine: Path) -> None:
    install(env.site, "delta", "1.0", "Classifier: License :: OSI Approved :: GNU Affero General Public License v3\n")
    with pytest.raises(ReleaseError, match=r"delta 1\.0 is under GNU Affero"):
        inside.components(env, engine)


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ("GPL-3.0-only", True),
        ("AGPL-3.0-or-later", True),
        ("MIT AND GPL-2.0-only", True),
        ("MIT OR GPL-2.0-only", False),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("LGPL-2.1-or-later", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Apache-2.0", False),
        ("", False),
    ],
)
def test_refused_licences(licence: str, refused: bool) -> None:
    assert inside.is_refused(licence) is refused


def test_no_engine_and_no_licence_of_python(env: Environment, tmp_path: Path, engine: Path) -> None:
    with pytest.raises(ReleaseError, match="no frozen engine"):
        inside.components(env, tmp_path)
    bare = Environment(env.python, env.system, env.machine, env.site, None, env.versions)
    with pytest.raises(ReleaseError, match="no licence text of CPython"):
        inside.components(bare, engine)


def test_every_text_is_printed_once_and_a_missing_one_named(env: Environment, engine: Path) -> None:
    text = licences.document("tmerge-1", inside.components(env, engine))
    for words in ("MIT", "zlib", "CPython", "PyInstaller"):
        assert text.count(f"Words of {words}.") == 1
    assert "altgraph" not in text
    assert "--- LICENSE: the same text as alpha, LICENSE" in text
    missing = text.split("Without a licence text of their own:")[1].split("=" * 20)[0].split("\n")
    assert {line.strip() for line in missing} - {""} == {
        "beta 2.0: Apache 2.0 License", "libodd.so.1: no licence declared", "OpenSSL 3.0.1: Apache-2.0",
    }  # fmt: skip
    assert "ahash 1.0: MIT OR Apache-2.0" in text and "own 2.0: no licence declared" in text


def test_bill_of_materials_is_of_the_binary(env: Environment, engine: Path) -> None:
    made = sbom.completed(
        described("alpha", "altgraph", "beta", "gamma", "PyInstaller"), inside.components(env, engine), "1.2", "ab"
    )
    root = made["metadata"]["component"]
    assert (root["name"], root["version"], root["hashes"]) == ("tmerge", "1.2", [{"alg": "SHA-256", "content": "ab"}])
    entries = {entry["name"]: entry for entry in made["components"]}
    assert set(entries) == {"alpha", "beta", "gamma", "CPython", "OpenSSL", "libodd.so.1", "PyInstaller bootloader"}
    assert entries["beta"]["licenses"] == [{"license": {"name": "Apache 2.0 License"}}]
    assert [crate["name"] for crate in entries["beta"]["components"]] == ["ahash", "own"]
    assert [file["name"] for file in entries["OpenSSL"]["components"]] == ["libcrypto.so.3", "libssl.so.3"]
    refs = {entry["bom-ref"] for entry in made["components"]}
    links = {link["ref"]: link.get("dependsOn", []) for link in made["dependencies"]}
    assert set(links) == {"root-component", *refs} and set(links["root-component"]) == refs


def test_bill_of_materials_has_every_package(env: Environment, engine: Path) -> None:
    with pytest.raises(ReleaseError, match="lacks gamma"):
        sbom.completed(described("alpha", "beta"), inside.components(env, engine), "1.2", "ab")


def test_components_that_are_equal_stand_once() -> None:
    crate = Component("a", "1", "MIT", purl="pkg:cargo/a@1")
    made = sbom.completed(described("alpha"), [Component("alpha", "1", compiled_in=(crate, crate))], "1.2", "ab")
    assert len(made["components"][0]["components"]) == 1
