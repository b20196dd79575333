"""Roots that are kept elsewhere: signing with files only, and taking what comes of it, or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.authority import facts
from handclasp.authority.keyfile import load_key_file
from handclasp.authority.offline import RootFiles, request_pem, root_create, root_crl, sign_issuing
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import ca, chains, keys
from handclasp.pki.names import Names
from support.authorities import YEAR, key_of, reissued
from support.errors import refused
from support.installation import (
    BASE,
    BY,
    PASSPHRASE,
    Installation,
    Ticker,
    in_installation,
    make_standard,
    openssl_verify,
)
from support.needs import needs

WEB = Names(spiffe="spiffe://example.org/web")


def test_an_offline_root_signs_with_files_only_and_the_result_is_imported(tmp_path: Path) -> None:
    needs("openssl")
    clock = Ticker()
    far = tmp_path / "far"
    files = root_create(far, trust_domain="example.org", passphrase=PASSPHRASE, now=clock())
    request, signed = tmp_path / "issuing.csr", tmp_path / "issuing.crt"

    async def ask(here: Installation) -> None:
        request.write_bytes(here.authorities.request("issuing-1", "example.org"))
        assert here.authorities.request("issuing-1", "example.org") != b""  # again: the same key
        assert [path.name for path in (tmp_path / "keys").iterdir()] == ["issuing-1.key"]

    async def take(here: Installation) -> None:
        root = await here.authorities.import_root("root", "example.org", files.certificate.read_bytes(), by=BY, base_url=BASE)
        assert root.key_uri is None
        with refused(Kind.CONFLICT):
            await here.authorities.create_issuing("another", "root", by=BY)
        await here.authorities.import_issuing("issuing-1", "root", signed.read_bytes(), by=BY, base_url=BASE, crl_shards=4)
        assert here.authorities.find("issuing-1").dns_zones == ("example.org",)
        assert "root 'root' has no CRL here" in (await here.publisher.problems())[0]
        await here.publisher.import_crl("root", files.crl.read_bytes(), by=BY)
        assert len(await here.publisher.publish_dirty()) == 4
        assert await here.publisher.problems() == []
        leaf = await here.issue(Names(spiffe="spiffe://example.org/web", dns=("web.example.org",)))
        crls, _ = await here.publisher.get_bundle_pem("example.org")
        signer = here.authorities.get()
        roots = here.authorities.anchors("example.org")
        assert openssl_verify(tmp_path, leaf.der, signer.chain[:1], roots, at=clock(), crls=crls) == "ok"
        root_crl(files, passphrase=PASSPHRASE, now=clock() + 5000, revoke={signed: 2})
        await here.publisher.import_crl("root", files.crl.read_bytes(), by=BY)
        crls, _ = await here.publisher.get_bundle_pem("example.org")
        assert "certificate revoked" in openssl_verify(tmp_path, leaf.der, signer.chain[:1], roots, at=clock() + 6000, crls=crls)

    in_installation(tmp_path, ask, clock=clock)
    sign_issuing(files, request, signed, passphrase=PASSPHRASE, now=clock(), dns_zones=["example.org"], base_url=BASE)
    subject = x509.load_pem_x509_certificate(signed.read_bytes())
    points = subject.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for point in points for name in point.full_name or []] == [f"{BASE}/crl/root/0.crl"]
    in_installation(tmp_path, take, clock=clock)
    private = [path for path in tmp_path.rglob("*") if path.is_file() and b"BEGIN PRIVATE" in path.read_bytes()]
    assert private == []
    assert sorted(path.name for path in far.iterdir()) == ["root.crl", "root.crt", "root.key"]


def test_an_offline_root_is_not_made_twice_and_a_half_made_one_is_completed(tmp_path: Path) -> None:
    clock = Ticker()
    files = root_create(tmp_path / "r", trust_domain="example.org", passphrase=PASSPHRASE, now=clock())
    with refused(Kind.CONFLICT):
        root_create(tmp_path / "r", trust_domain="example.org", passphrase=PASSPHRASE, now=clock())
    key = files.key.read_bytes()
    files.certificate.unlink()
    files.crl.unlink()
    root_create(tmp_path / "r", trust_domain="example.org", passphrase=PASSPHRASE, now=clock())
    assert files.key.read_bytes() == key


@pytest.mark.parametrize("case", ["passphrase", "request", "taken", "revoke"])
def test_offline_mistakes_are_refused(tmp_path: Path, case: str) -> None:
    now = Ticker()()
    files = root_create(tmp_path / "r", trust_domain="example.org", passphrase=PASSPHRASE, now=now)
    stranger = root_create(tmp_path / "s", trust_domain="example.net", passphrase=PASSPHRASE, now=now)
    bad, taken, out = tmp_path / "bad.csr", tmp_path / "taken", tmp_path / "out"
    bad.write_bytes(b"not a request")
    taken.write_bytes(b"")
    mistakes: dict[str, Callable[[], None]] = {
        "passphrase": lambda: root_crl(files, passphrase=b"another passphrase", now=now),
        "request": lambda: sign_issuing(files, bad, out, passphrase=PASSPHRASE, now=now),
        "taken": lambda: sign_issuing(files, _request(tmp_path), taken, passphrase=PASSPHRASE, now=now),
        "revoke": lambda: root_crl(files, passphrase=PASSPHRASE, now=now, revoke={stranger.certificate: 1}),
    }
    with pytest.raises(HandclaspError) as caught:
        mistakes[case]()
    kinds = {"passphrase": Kind.BAD_KEY, "request": Kind.BAD_CSR, "taken": Kind.CONFLICT, "revoke": Kind.BAD_CERTIFICATE}
    assert caught.value.kind is kinds[case]
    assert not (tmp_path / "out").exists()


def _request(directory: Path) -> Path:
    path = directory / "good.csr"
    path.write_bytes(request_pem(key_of("p256", 9), "example.org"))
    return path


@pytest.mark.parametrize("case", ["another key", "path length", "another root", "not a certificate", "two certificates", "ended", "a leaf"])
def test_an_issuing_certificate_that_does_not_fit_is_not_imported(tmp_path: Path, case: str) -> None:
    clock = Ticker()
    files = root_create(tmp_path / "r", trust_domain="example.org", passphrase=PASSPHRASE, now=clock())
    other = root_create(tmp_path / "o", trust_domain="example.org", passphrase=PASSPHRASE, now=clock())

    async def work(here: Installation) -> None:
        request, out = tmp_path / "csr", tmp_path / "crt"
        request.write_bytes(here.authorities.request("issuing-1", "example.org"))
        chosen = _request(tmp_path) if case == "another key" else request
        sign_issuing(other if case == "another root" else files, chosen, out, passphrase=PASSPHRASE, now=clock(), lifetime=YEAR)
        data = out.read_bytes()
        await here.authorities.import_root("root", "example.org", files.certificate.read_bytes(), by=BY)
        if case == "not a certificate":
            data = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        if case == "two certificates":
            data += data
        if case == "ended":
            clock.pass_(2 * YEAR)
        if case == "path length":
            data = long_path(files, here)
        if case == "a leaf":
            data = files.certificate.read_bytes()
        with pytest.raises(HandclaspError) as caught:
            await here.authorities.import_issuing("issuing-1", "root", data, by=BY)
        assert caught.value.kind in (Kind.BAD_KEY, Kind.BAD_CERTIFICATE, Kind.VERIFY_FAILED)
        assert [one.name for one in here.authorities.all()] == ["root"]

    in_installation(tmp_path, work, clock=clock)


def test_a_root_without_room_below_it_takes_no_issuing_authority(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        key, now = key_of("p256", 9), here.clock()
        root = ca.self_signed_root(key, common_name="tight", now=now, lifetime=YEAR, serial=3, pathlen=0)
        await here.authorities.import_root("root", "example.org", root, by=BY)
        here.authorities.request("issuing-1", "example.org")
        public = here.keystore.load("file:issuing-1.key")
        like = chains.load(ca.self_signed_root(public, common_name="issuing", now=now, lifetime=3600, serial=4, pathlen=0))
        with refused(Kind.BAD_CERTIFICATE):
            await here.authorities.import_issuing("issuing-1", "root", reissued(chains.load(root), like, key), by=BY)

    in_installation(tmp_path, work)


def long_path(files: RootFiles, here: Installation) -> bytes:
    """Sign an issuing authority that may make further ones, which our own code never does."""
    key, root = load_key_file(files.key, PASSPHRASE), facts.load_certificate(files.certificate.read_bytes())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "long")])
    public = here.keystore.load("file:issuing-1.key").public_key()
    above = chains.load(root)
    builder = x509.CertificateBuilder(above.subject, subject, public, 77, above.not_valid_before_utc, above.not_valid_after_utc)
    usage = above.extensions.get_extension_for_class(x509.KeyUsage).value
    builder = builder.add_extension(x509.BasicConstraints(True, 1), True).add_extension(usage, True)
    return builder.sign(key, keys.signing_hash(key)).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("case", ["not self-signed", "not an authority", "ended", "garbage"])
def test_a_root_that_is_none_is_not_imported(tmp_path: Path, case: str) -> None:
    clock = Ticker()

    async def work(here: Installation) -> None:
        await make_standard(here)
        data = {
            "not self-signed": here.authorities.find("issuing-1").der,
            "not an authority": (await here.issue(WEB)).der,
            "ended": here.authorities.find("root").der,
            "garbage": b"\x30\x03\x02\x01\x05",
        }[case]
        if case == "ended":
            clock.pass_(11 * YEAR)
        with refused(Kind.BAD_CERTIFICATE):
            await here.authorities.import_root("imported", "example.org", data, by=BY)

    in_installation(tmp_path, work, clock=clock)
