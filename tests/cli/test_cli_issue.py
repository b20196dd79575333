"""``cert issue`` and ``cert sign`` against a server with real TLS and real certificates: which files there are, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from handclasp import wire
from handclasp.client.csr import new_request
from support.credential_files import belong_together, mode
from support.fake_server import DOMAIN, FakeServer

WEB = f"spiffe://{DOMAIN}/prod/web"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer() as running:
        monkeypatch.setenv("HANDCLASP_URL", running.url)
        monkeypatch.setenv("HANDCLASP_CA", running.ca_file(tmp_path))
        monkeypatch.setenv("HANDCLASP_TOKEN", running.token(uses=5))
        yield running
        running.assert_content()


def test_a_key_a_certificate_with_its_chain_and_a_bundle(server: FakeServer, run, tmp_path: Path) -> None:
    result = run("cert", "issue", WEB, "--dns", "web.example.org", "--out-dir", "tls/web")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert result.stderr.startswith(f"{WEB}, until ")
    out = tmp_path / "tls/web"
    assert sorted(path.name for path in out.iterdir()) == ["bundle.pem", "cert.pem", "key.pem"]
    assert (mode(out / "key.pem"), mode(out / "cert.pem"), mode(out / "bundle.pem")) == (0o600, 0o644, 0o644)
    assert belong_together(out / "key.pem", out / "cert.pem")
    assert [c.subject for c in x509.load_pem_x509_certificates((out / "cert.pem").read_bytes())][1] == server.authority.issuing.subject
    assert (out / "bundle.pem").read_text() == server.bundle


def test_files_where_they_are_named_and_the_answer_as_json(server: FakeServer, run, tmp_path: Path) -> None:
    result = run("cert", "issue", WEB, "--key", "a.key", "--cert", "b.pem", "--json", "--key-type", "ed25519", "--ttl", "2h")
    issued = msgspec.json.decode(result.stdout, type=wire.Issued)
    assert issued.identity == WEB
    assert "PRIVATE" not in result.stdout
    assert belong_together(tmp_path / "a.key", tmp_path / "b.pem")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.key", "b.pem", "ca.pem"]


def test_everything_to_stdout_and_no_file(server: FakeServer, run, tmp_path: Path) -> None:
    result = run("cert", "issue", WEB, "--stdout")
    assert [label for label, _ in labels(result.stdout)] == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]


def labels(text: str) -> list[tuple[str, bytes]]:
    from handclasp.cli.pem import blocks

    return blocks(text.encode())


def test_what_is_there_is_not_replaced_without_force_and_no_token_is_spent(server: FakeServer, run, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("mine")
    result = run("cert", "issue", WEB, "--out-dir", ".")
    assert (result.exit_code, result.stderr) == (1, "error: key.pem exists (conflict)\nhint: --force replaces it\n")
    assert server.count("/v1/certificates") == 0
    assert (tmp_path / "key.pem").read_text() == "mine"


def test_force_replaces_the_pair_together(server: FakeServer, run, tmp_path: Path) -> None:
    assert run("cert", "issue", WEB, "--out-dir", ".").exit_code == 0
    before = (tmp_path / "key.pem").read_bytes()
    assert run("cert", "issue", WEB, "--out-dir", ".", "--force").exit_code == 0
    assert (tmp_path / "key.pem").read_bytes() != before
    assert belong_together(tmp_path / "key.pem", tmp_path / "cert.pem")
    assert mode((tmp_path / "key.pem").resolve()) == 0o600


def test_a_refusal_leaves_no_file(server: FakeServer, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDCLASP_TOKEN", "hct_unknown_secret")
    result = run("cert", "issue", WEB, "--out-dir", "tls", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "token_unknown"
    assert list((tmp_path / "tls").iterdir()) == []
    assert "hct_unknown_secret" not in result.output


def test_a_certificate_for_another_key_is_not_written(api, run, tmp_path: Path) -> None:
    from support.fake_server import FakeAuthority, pem

    authority = FakeAuthority()
    certificate, _ = authority.credential(spiffe=WEB)
    leaf = certificate.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    times = dict.fromkeys(("not_before", "not_after", "renew_after", "renew_before"), "2026-01-01T00:00:00Z")
    issued = wire.Issued(
        certificate=leaf, chain=pem(authority.issuing), bundle="", sha256="", serial="", identity=WEB, authority="", log_entry=1, **times
    )
    api.on("POST", "/v1/certificates", issued)
    result = run("cert", "issue", WEB, "--out-dir", "tls")
    assert (result.exit_code, result.stderr) == (1, "error: the certificate that the server sent is not for this key (verify_failed)\n")
    assert list((tmp_path / "tls").iterdir()) == []


def test_names_and_wishes_reach_the_server_as_they_were_given(api, run) -> None:
    seen = []

    def refuse(body: wire.IssueRequest, _params: object) -> Exception:
        from handclasp.errors import HandclaspError, Kind

        seen.append(body)
        return HandclaspError(Kind.NOT_ALLOWED, "no")

    api.on("POST", "/v1/certificates", refuse)
    run("cert", "issue", WEB, "--dns", "a.example", "--dns", "b.example", "--ip", "10.0.0.1", "--email", "a@b.example", "--ttl", "2h",
        "--profile", "workload", "--stdout")  # fmt: skip
    run("cert", "issue", "--stdout")
    full, bare = seen
    assert (full.identity, full.dns, full.ip, full.email) == (WEB, ["a.example", "b.example"], ["10.0.0.1"], ["a@b.example"])
    assert (full.ttl, full.profile) == ("2h", "workload")
    assert (bare.identity, bare.dns, bare.profile, bare.ttl) == (None, [], None, None)


@pytest.mark.parametrize("form", ["pem", "der"])
def test_a_request_made_elsewhere_is_signed(form: str, server: FakeServer, run, tmp_path: Path) -> None:
    _, csr = new_request("p256", identity=WEB)
    data = csr.encode() if form == "pem" else x509.load_pem_x509_csr(csr.encode()).public_bytes(serialization.Encoding.DER)
    (tmp_path / "web.csr").write_bytes(data)
    result = run("cert", "sign", "web.csr", "--identity", WEB)
    assert [label for label, _ in labels(result.stdout)] == ["CERTIFICATE", "CERTIFICATE"]
    result = run(
        "cert", "sign", "-", "--identity", WEB, "--cert", "web.pem", "--bundle", "ca-new.pem", stdin=new_request("p256", identity=WEB)[1]
    )
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert (tmp_path / "ca-new.pem").read_text() == server.bundle


def test_what_is_no_request_is_said_before_anything_is_sent(server: FakeServer, run, tmp_path: Path) -> None:
    result = run("cert", "sign", "ca.pem")
    assert (result.exit_code, server.seen) == (1, [])
    assert "ca.pem holds no signing request that can be read (bad_csr)" in result.stderr
