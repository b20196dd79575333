"""Authorities made with files only, from the offline root to what the server imports."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from handclasp.errors import Kind


@pytest.fixture
def passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple\n")
    path.chmod(0o600)
    monkeypatch.setenv("HANDCLASP_PASSPHRASE_FILE", str(path))


@pytest.mark.usefixtures("passphrase")
def test_an_offline_root_signs_an_issuing_authority_that_openssl_accepts(run, tmp_path: Path) -> None:
    made = json.loads(run("ca", "root", "create", "root", "--trust-domain", "example.org", "--json").stdout)
    assert set(made) == {"key", "certificate", "crl", "sha256"}
    assert b"ENCRYPTED" in (tmp_path / "root/root.key").read_bytes()
    result = run("ca", "request", "--trust-domain", "example.org", "--key", "issuing.key", "--out", "issuing.csr")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    result = run("ca", "sign-issuing", "issuing.csr", "--root", "root", "--out", "issuing.crt", "--dns-zone", "example.org")
    assert result.exit_code == 0, result.stderr
    checked = subprocess.run(
        ["openssl", "verify", "-CAfile", "root/root.crt", "issuing.crt"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.stdout == "issuing.crt: OK\n"
    item = json.loads(run("cert", "inspect", "issuing.crt", "--json").stdout)["items"][0]
    assert (item["ca"], item["problems"]) == (True, [])
    result = run("ca", "root", "crl", "root", "--revoke", "issuing.crt", "--reason", "key-compromise")
    assert result.exit_code == 0, result.stderr
    crl = json.loads(run("cert", "inspect", "root/root.crl", "--json").stdout)["items"][0]
    assert crl["revoked"] == 1


@pytest.mark.usefixtures("passphrase")
def test_nothing_that_is_there_is_overwritten(run) -> None:
    assert run("ca", "root", "create", "root", "--trust-domain", "example.org").exit_code == 0
    result = run("ca", "root", "create", "root", "--trust-domain", "example.org")
    assert (result.exit_code, "(conflict)" in result.stderr) == (1, True)
    assert run("ca", "request", "--trust-domain", "example.org", "--key", "i.key", "--out", "i.csr").exit_code == 0
    result = run("ca", "request", "--trust-domain", "example.org", "--key", "i.key", "--out", "i.csr")
    assert (result.exit_code, "(conflict)" in result.stderr) == (1, True)


def test_without_a_passphrase_nothing_is_made(run, tmp_path: Path) -> None:
    result = run("ca", "root", "create", "root", "--trust-domain", "example.org")
    assert result.exit_code == 1
    assert f"({Kind.BAD_SETTING.value})" in result.stderr
    assert "hint: give --passphrase-file FILE" in result.stderr
    assert not (tmp_path / "root/root.key").exists()


@pytest.mark.usefixtures("passphrase")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("ca", "root", "create", "r", "--trust-domain", "Example Org"), 1),
        (("ca", "root", "create", "r", "--trust-domain", "example.org", "--lifetime", "ten years"), 1),
        (("ca", "root", "crl", "r", "--reason", "boredom"), 2),
        (("ca", "sign-issuing", "x.csr", "--root", "r", "--out", "x.crt"), 1),
    ],
)
def test_refusals(args: tuple[str, ...], code: int, run) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")


def test_what_needs_the_store_is_handed_to_the_server(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    module = types.ModuleType("handclasp.server.local")

    async def import_issuing(settings, cert_file, key_file, **rest):
        calls.append(("import", settings.data, cert_file, key_file, rest))

    def create_issuing(settings, name, trust_domain):
        calls.append(("create", settings.data, name, trust_domain, settings.dns_zone))

    module.import_issuing = import_issuing  # type: ignore[attr-defined]
    module.create_issuing = create_issuing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handclasp.server.local", module)
    data = tmp_path / "data"
    result = run("ca", "import", "issuing.crt", "--key", "issuing.key", "--root", "root.crt", "--as", "issuing-2", "--data", str(data))
    assert result.exit_code == 0, result.stderr
    assert "start the server again" in result.stderr, "with SQLite it had to be stopped"
    result = run(
        "ca", "issuing", "create", "issuing-3", "--trust-domain", "example.org", "--dns-zone", "example.org", "--data", str(data), "--json"
    )
    assert json.loads(result.stdout) == {"name": "issuing-3"}
    assert calls == [
        ("import", data, Path("issuing.crt"), Path("issuing.key"), {"name": "issuing-2", "root_file": Path("root.crt")}),
        ("create", data, "issuing-3", "example.org", ("example.org",)),
    ]


def test_more_than_one_trust_domain_must_be_named(api, run) -> None:
    api.on("GET", "/v1/bundles", {"items": [{"trust_domain": name, "pem": ""} for name in ("a.example", "b.example")]})
    result = run("ca", "bundle")
    assert result.exit_code == 1
    assert result.stderr == "error: the server has 2 trust domains: a.example, b.example (bad_request)\nhint: name one of them\n"
