"""``cert inspect``: what it says about files, pipes and endpoints, and that nothing it is given can break it."""

from __future__ import annotations

import datetime
import json
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from handclasp.cli.describe import describe
from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.errors import allowing
from support.fake_server import DOMAIN, FakeAuthority, FakeServer, key_pem, pem

NOW = 1_767_225_600_000
WEB = f"spiffe://{DOMAIN}/prod/web"
KEY = ec.generate_private_key(ec.SECP256R1())


def make(
    *, names: list[x509.GeneralName] | None = None, key: object = KEY, begin: int = -60, end: int = 2400, cn: str = "", usages: bool = True
) -> x509.Certificate:
    """A certificate around NOW, self-made but not self-signed by name."""
    now = datetime.datetime.fromtimestamp(NOW / 1000, datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else []))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuing")]))
        .public_key(key.public_key())  # type: ignore[attr-defined]
        .serial_number(0x2AF1)
        .not_valid_before(now + datetime.timedelta(seconds=begin))
        .not_valid_after(now + datetime.timedelta(seconds=end))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if usages:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(KEY, hashes.SHA256())


GOOD = [x509.UniformResourceIdentifier(WEB), x509.DNSName("web.example.org")]


@pytest.mark.usefixtures("still", "at_terminal")
def test_a_certificate_for_people(run, tmp_path: Path) -> None:
    (tmp_path / "web.pem").write_text(pem(make(names=GOOD)))
    lines = dict(line.split("  ", 1) for line in run("cert", "inspect", "web.pem").stdout.splitlines())
    told = {name.strip(): value.strip() for name, value in lines.items()}
    assert told["spiffe"] == WEB
    assert told["dns"] == "web.example.org"
    assert told["not after"] == "2026-01-01T00:40:00Z (in 40 minutes)"
    assert told["not before"] == "2025-12-31T23:59:00Z (1 minute ago)"
    assert told["lifetime"] == "41m"
    assert told["usages"] == "client authentication, server authentication"
    assert told["key type"] == "p256"
    assert told["serial"] == "2af1"
    assert "problem" not in told


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [
        (make(names=GOOD, end=-30), "it has expired"),
        (make(names=GOOD, begin=30), "it is not valid yet"),
        (make(cn="web.example.org"), "it carries no name in a subject alternative name: no client accepts the common name any more"),
        (make(names=[*GOOD, x509.UniformResourceIdentifier("spiffe://example.org/b")]), "it carries more than one SPIFFE ID"),
        (make(names=GOOD, cn="issuing"), "it is self-signed: nothing above it can be trusted or revoked"),
        (make(names=GOOD, key=ec.generate_private_key(ec.SECP521R1())), "elliptic curve secp521r1 is not accepted"),
        (make(names=GOOD, key=rsa.generate_private_key(65537, 1024)), "the RSA key is weak: 1024 bits (2048 to 8192 are accepted)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_certificate(certificate: x509.Certificate, problem: str) -> None:
    assert describe(pem(certificate).encode(), "x", NOW)[0]["problems"] == [problem]


def test_a_good_certificate_has_no_problem() -> None:
    assert describe(pem(make(names=GOOD)).encode(), "x", NOW)[0]["problems"] == []


def test_a_chain_in_order_out_of_order_and_with_a_foreign_key(run, tmp_path: Path) -> None:
    authority = FakeAuthority()
    chain, key = authority.credential(spiffe=WEB)
    root = pem(authority.root).encode()
    (tmp_path / "good.pem").write_bytes(chain + root + key)
    result = json.loads(run("cert", "inspect", "good.pem", "--json", "--exit-code").stdout)
    assert [item["type"] for item in result["items"]] == ["certificate", "certificate", "certificate", "private key"]
    assert [item["problems"] for item in result["items"]] == [[], [], [], []]
    (tmp_path / "bad.pem").write_bytes(chain.split(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n" + root + key_pem(KEY))
    result = run("cert", "inspect", "bad.pem", "--json", "--exit-code")
    assert result.exit_code == 1
    items = json.loads(result.stdout)["items"]
    assert items[0]["problems"] == ["the certificate after it is not its issuer"]
    assert items[2]["problems"] == ["it does not belong to the first certificate here"]


def test_a_bundle_of_roots_is_no_broken_chain() -> None:
    roots = "".join(pem(FakeAuthority(name).root) for name in ("a", "b"))
    assert [item["problems"] for item in describe(roots.encode(), "x", NOW * 2)] != []
    now = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    assert [item["problems"] for item in describe(roots.encode(), "x", now)] == [[], []]


def test_the_other_kinds(run, tmp_path: Path) -> None:
    private, csr = new_request("ed25519", identity=WEB, dns=["web.example.org"])
    request = x509.load_pem_x509_csr(csr.encode())
    now = datetime.datetime.fromtimestamp(NOW / 1000, datetime.UTC)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuing")]))
        .last_update(now)
        .next_update(now + datetime.timedelta(days=1))
        .add_extension(x509.CRLNumber(7), critical=False)
        .sign(KEY, hashes.SHA256())
    )
    encrypted = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    public = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "all.pem").write_bytes(csr.encode() + crl.public_bytes(serialization.Encoding.PEM) + private + encrypted + public)
    result = run("cert", "inspect", "all.pem", "--json")
    items = json.loads(result.stdout)["items"]
    assert [item["type"] for item in items] == ["signing request", "revocation list", "private key", "private key", "public key"]
    assert (items[0]["spiffe"], items[0]["dns"], items[0]["key_type"]) == ([WEB], ["web.example.org"], "ed25519")
    assert (items[1]["number"], items[1]["revoked"], items[1]["issuer"]) == (7, 0, "CN=issuing")
    assert [item.get("encrypted") for item in items[2:]] == [False, True, None]
    assert "PRIVATE" not in result.stdout
    for thing in (request, crl, make(names=GOOD)):
        (tmp_path / "x.der").write_bytes(thing.public_bytes(serialization.Encoding.DER))
        assert run("cert", "inspect", "x.der").exit_code == 0


def test_a_pipe(run) -> None:
    assert WEB in run("cert", "inspect", "-", stdin=pem(make(names=GOOD))).stdout


@pytest.mark.parametrize("data", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_cannot_be_read_is_said(data: bytes, run, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    result = run("cert", "inspect", "x", "--exit-code")
    assert result.exit_code == 1
    assert "cannot be read" in result.stdout or "holds nothing that can be decoded (bad_certificate)" in result.stderr


PARTS = [
    pem(make(names=GOOD)).encode(),
    new_request("p256", identity=WEB)[1].encode(),
    make(names=GOOD).public_bytes(serialization.Encoding.DER),
]


@given(st.one_of(st.binary(max_size=400), st.tuples(st.sampled_from(PARTS), st.integers(0, 900), st.binary(min_size=1, max_size=4))))
def test_nothing_that_is_inspected_breaks_it(given_data: bytes | tuple[bytes, int, bytes]) -> None:
    if isinstance(given_data, tuple):
        base, at, patch = given_data
        given_data = base[: at % len(base)] + patch + base[at % len(base) + len(patch) :]
    with allowing(Kind.BAD_CERTIFICATE):
        for item in describe(given_data, "x", NOW):
            assert isinstance(item["type"], str)
            json.dumps(item)


# --- endpoints --------------------------------------------------------------------------------------------------------------------------


def test_an_endpoint_and_what_it_leads_to(run, tmp_path: Path) -> None:
    with FakeServer() as server:
        good = server.ca_file(tmp_path)
        result = run("cert", "inspect", f"127.0.0.1:{server.port}", "--ca", good, "--json")
        answer = json.loads(result.stdout)
        assert (answer["tls_version"], answer["problems"]) == ("TLSv1.3", [])
        assert [item["ca"] for item in answer["items"]] == [False, True]
        assert run("cert", "inspect", f"https://localhost:{server.port}/", "--exit-code").exit_code == 0
        (tmp_path / "other.pem").write_text(pem(FakeAuthority("other").root))
        result = run("cert", "inspect", f"localhost:{server.port}", "--ca", "other.pem", "--servername", "web.example.org", "--exit-code")
        assert result.exit_code == 1
        assert "problem\tthe certificate is not for web.example.org" in result.stdout
        assert "problem\tthe chain does not lead to other.pem: " in result.stdout


def test_an_endpoint_that_is_not_there(run) -> None:
    result = run("cert", "inspect", "127.0.0.1:1")
    assert (result.exit_code, result.stderr) == (1, "error: no TLS handshake with 127.0.0.1:1: Connection refused (unavailable)\n")


def test_openssl_and_we_see_the_same(tmp_path: Path) -> None:
    certificate = make(names=GOOD)
    (tmp_path / "x.pem").write_text(pem(certificate))
    out = subprocess.run(
        ["openssl", "x509", "-in", str(tmp_path / "x.pem"), "-noout", "-fingerprint", "-sha256", "-serial"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    item = describe(pem(certificate).encode(), "x", NOW)[0]
    assert item["sha256"] in out.replace(":", "").lower()
    assert f"serial={item['serial']}".lower() in out.lower()
    assert ssl.PEM_cert_to_DER_cert(pem(certificate))
