"""Authorities: made, imported, found, retired; and their certificates in the eyes of OpenSSL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select

from handclasp.authority import facts
from handclasp.authority.keyfile import load_key_file
from handclasp.authority.offline import RootFiles, request_pem, root_create, root_crl, sign_issuing
from handclasp.authority.signer import Signer
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import ca, chains, keys
from handclasp.pki.names import Names
from handclasp.pki.plan import assemble, encode_tbs
from handclasp.pki.profiles import BUILT_IN
from handclasp.store import tables
from support.authorities import YEAR, key_of
from support.installation import BASE, BY, PASSPHRASE, Installation, Ticker, installation, openssl_verify
from support.needs import needs

WEB = Names(spiffe="spiffe://example.org/web")


def run(directory: Path, work: Callable[[Installation], Awaitable[None]], url: str = "", **options: Any) -> None:
    async def main() -> None:
        async with installation(directory, url, **options) as here:
            await work(here)

    asyncio.run(main())


async def standard(here: Installation, **options: Any) -> None:
    await here.authorities.create_root("root", "example.org", by=BY, base_url=BASE)
    await here.authorities.create_issuing("issuing-1", "root", by=BY, base_url=BASE, **options)


def refused(kind: Kind) -> Any:
    return pytest.raises(HandclaspError, check=lambda error: error.kind is kind)


async def log_types(here: Installation) -> list[str]:
    rows = await here.store.rows(select(tables.log_entry).order_by(tables.log_entry.c.index))
    return [json.loads(row.entry)["type"] for row in rows]


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048"])
def test_a_chain_verifies_with_openssl_and_with_our_own_walk(tmp_path: Path, key_type: str) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        await here.authorities.create_root("root", "example.org", by=BY, key_type=key_type, base_url=BASE)
        await here.authorities.create_issuing("issuing-1", "root", by=BY, key_type=key_type, base_url=BASE)
        leaf = await here.issue(WEB)
        issuing, root = here.authorities.get().chain
        assert openssl_verify(tmp_path, leaf.der, [issuing], [root], at=here.clock()) == "ok"
        chains.verify_chain(leaf.der, [issuing], here.authorities.anchors("example.org"), here.clock())
        assert here.authorities.get().chain_pem == chains.to_pem(issuing)

    run(tmp_path, work)


def test_what_was_made_is_there_after_a_restart_on_either_database(tmp_path: Path, database_url: str) -> None:
    async def make(here: Installation) -> None:
        await standard(here, dns_zones=["Example.org"])
        assert await log_types(here) == ["authority.created", "authority.created"]

    async def look(here: Installation) -> None:
        root, issuing = here.authorities.all()
        assert (root.name, root.kind, root.chain, root.crl_shards) == ("root", "root", (), 1)
        assert (issuing.name, issuing.kind, issuing.chain, issuing.crl_shards) == ("issuing-1", "issuing", (root.der,), 16)
        assert (issuing.dns_zones, issuing.crl_base) == (("example.org",), f"{BASE}/crl/issuing-1")
        assert issuing.aia_url == f"{BASE}/ca/issuing-1.cer"
        assert root.certificate.subject != issuing.certificate.subject
        await here.issue(WEB)
        assert here.authorities.trust_domains == ["example.org"]

    run(tmp_path, make, database_url)
    run(tmp_path, look, database_url)


def test_the_issuing_authority_has_path_length_0_and_openssl_enforces_it(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        await standard(here)
        signer = here.authorities.get()
        basic = facts.extension(signer.authority.certificate, x509.BasicConstraints)
        assert basic is not None
        assert (basic.ca, basic.path_length) == (True, 0)
        thief = here.authorities.crl_key(signer.authority)  # what somebody who got at the issuing key would do
        assert thief is not None
        below_key = key_of("p256", 8)
        common = {"now": here.clock(), "lifetime": 3600.0, "serial": 5, "backdate": 0.0}
        upper = ca.self_signed_root(below_key, common_name="below", **common)  # only for its subject and its key
        below = _reissued(signer.authority.certificate, chains.load(upper), thief)
        leaf = _reissued(chains.load(below), chains.load((await here.issue(WEB)).der), below_key)
        said = openssl_verify(tmp_path, leaf, [below, *signer.chain[:1]], signer.chain[1:], at=here.clock())
        assert "path length constraint exceeded" in said

    run(tmp_path, work)


def _reissued(above: x509.Certificate, like: x509.Certificate, key: Any) -> bytes:
    """Return ``like`` once more, but issued by ``above`` with its key."""
    builder = x509.CertificateBuilder(
        above.subject, like.subject, like.public_key(), 6, like.not_valid_before_utc, like.not_valid_after_utc
    )  # fmt: skip
    for one in like.extensions:
        if not isinstance(one.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(one.value, one.critical)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(chains.key_id(above), None, None), False)
    return builder.sign(key, keys.signing_hash(key)).public_bytes(Encoding.DER)


def test_dns_zones_become_name_constraints_that_openssl_enforces(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        await standard(here, dns_zones=["prod.example.org"])
        signer = here.authorities.get()
        constraints = signer.authority.certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert constraints.critical
        assert constraints.value.permitted_subtrees == [x509.DNSName("prod.example.org")]
        inside = await here.issue(Names(dns=("web.prod.example.org",)), profile="server")
        assert openssl_verify(tmp_path, inside.der, signer.chain[:1], signer.chain[1:], at=here.clock()) == "ok"
        with refused(Kind.NAME_NOT_ALLOWED):
            here.plan(Names(dns=("web.test.example.org",)), profile="server")
        outside = forged(here, signer, Names(dns=("web.test.example.org",)))
        assert "permitted subtree violation" in openssl_verify(tmp_path, outside, signer.chain[:1], signer.chain[1:], at=here.clock())

    run(tmp_path, work)


def forged(here: Installation, signer: Signer, names: Names) -> bytes:
    """Sign names that the authority may not certify, as if our own check were missing."""
    now = here.clock()
    tbs = encode_tbs(
        serial=99, names=names, profile=BUILT_IN["server"], issuer=signer.issuer, not_before=now - 60_000, not_after=now + 60_000,
        spki=keys.spki_der(key_of("p256", 7).public_key()), crl_shard=0,
    )  # fmt: skip
    key = here.authorities.crl_key(signer.authority)
    assert key is not None
    return assemble(tbs, signer.issuer.signature_algorithm, keys.sign(key, tbs))


def test_a_uri_constraint_is_there_only_when_asked_for(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        await here.authorities.create_issuing("strict", "root", by=BY, uri_constraint=True)
        plain, strict = (here.authorities.find(name).certificate for name in ("issuing-1", "strict"))
        assert facts.extension(plain, x509.NameConstraints) is None
        found = facts.extension(strict, x509.NameConstraints)
        assert found is not None
        assert found.permitted_subtrees == [x509.UniformResourceIdentifier("example.org")]
        assert facts.dns_zones(strict) == ()

    run(tmp_path, work)


def test_several_trust_domains_and_issuing_authorities_each_find_their_signer(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        make = here.authorities
        await standard(here)
        await make.create_root("other-root", "example.net", by=BY)
        await make.create_issuing("other-1", "other-root", by=BY, base_url=BASE)
        await make.create_issuing("issuing-2", "root", by=BY, key_type="rsa2048", base_url=BASE)
        assert make.trust_domains == ["example.org", "example.net"]
        assert make.get().authority.name == "issuing-1"
        assert make.get("", "example.net").authority.name == "other-1"
        assert make.get("issuing-2").authority.key_type == "rsa2048"
        assert make.anchors("example.org") == [make.find("root").der]
        assert make.anchors("example.net") == [make.find("other-root").der]
        assert [one.name for one in make.issuing()] == ["issuing-1", "other-1", "issuing-2"]
        with refused(Kind.NOT_FOUND):
            make.anchors("example.com")
        for missing in ("nobody", "root"):
            with refused(Kind.UNKNOWN_AUTHORITY):
                make.get(missing)
        with refused(Kind.UNKNOWN_AUTHORITY):
            make.get("", "example.com")
        with refused(Kind.NAME_NOT_ALLOWED):
            here.plan(WEB, authority="other-1")
        await make.retire("issuing-1", by=BY)
        assert make.get().authority.name == "issuing-2"

    run(tmp_path, work)


def test_subjects_and_key_ids_are_unique_even_for_equal_settings(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        await here.authorities.create_issuing("issuing-2", "root", by=BY)
        await here.authorities.create_root("root-2", "example.org", by=BY)
        certificates = [one.certificate for one in here.authorities.all()]
        assert len({one.subject.public_bytes() for one in certificates}) == 4
        assert len({chains.key_id(one) for one in certificates}) == 4
        assert len({one.serial_number for one in certificates}) == 4

    run(tmp_path, work)


def test_a_name_or_key_that_is_taken_is_refused(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        with refused(Kind.CONFLICT):
            await here.authorities.create_root("root", "example.org", by=BY)
        taken = here.authorities.find("root").key_uri
        assert taken is not None
        with refused(Kind.CONFLICT):
            await here.authorities.create_root("root-2", "example.org", by=BY, key_uri=taken)
        for name in ("", "../x", "a/b", "a" * 65, "a b"):
            with refused(Kind.BAD_SETTING):
                await here.authorities.create_root(name, "example.org", by=BY)
        with refused(Kind.BAD_NAME):
            await here.authorities.create_root("root-2", "Not A Domain", by=BY)
        for address in ("https://ca.example.org", "ca.example.org", "http://ca.example.org/?q", "http://a b"):
            with refused(Kind.BAD_SETTING):
                await here.authorities.create_root("root-2", "example.org", by=BY, base_url=address)
        assert len(await log_types(here)) == 2

    run(tmp_path, work)


def test_two_processes_that_make_the_same_authority_end_with_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with installation(tmp_path) as one, installation(tmp_path, clock=one.clock) as two:
            tries = (here.authorities.create_root("root", "example.org", by=BY) for here in (one, two))
            results = await asyncio.gather(*tries, return_exceptions=True)
            failed = [result for result in results if isinstance(result, HandclaspError)]
            assert [error.kind for error in failed] == [Kind.CONFLICT]
            await asyncio.gather(one.authorities.load(), two.authorities.load())
            assert one.authorities.anchors("example.org") == two.authorities.anchors("example.org")

    asyncio.run(main())


def test_refresh_sees_what_another_process_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with installation(tmp_path) as one, installation(tmp_path, clock=one.clock) as two:
            await standard(one)
            async with asyncio.timeout(5):
                while "issuing-1" not in [authority.name for authority in two.authorities.all()]:
                    await two.authorities.refresh()
                    await asyncio.sleep(0.05)
            assert two.authorities.get().chain == one.authorities.get().chain

    asyncio.run(main())


def test_a_retired_root_leaves_the_bundles_only_when_nobody_needs_it(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        await here.issue(WEB, ttl=3600)
        with refused(Kind.CONFLICT):
            await here.authorities.retire("root", by=BY)
        await here.authorities.retire("issuing-1", by=BY)
        with refused(Kind.CONFLICT):
            await here.authorities.retire("issuing-1", by=BY)
        with refused(Kind.UNKNOWN_AUTHORITY):
            here.authorities.get("issuing-1")
        assert [one.name for one in here.authorities.issuing("example.org")] == ["issuing-1"]  # its certificates still verify
        with refused(Kind.CONFLICT):  # a certificate is alive
            await here.authorities.retire("root", by=BY)
        here.clock.pass_(3700)
        await here.authorities.retire("root", by=BY)
        assert here.authorities.anchors("example.org") == []
        assert (await log_types(here)).count("authority.retired") == 2

    run(tmp_path, work)


def test_an_authority_that_ends_soon_is_logged_once_a_day(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await here.authorities.create_root("root", "example.org", by=BY)
        await here.authorities.create_issuing("short", "root", by=BY, lifetime=100 * 86400.0)
        warn = here.authorities.warn_expiring
        assert await warn(86400.0) == []
        assert await warn(34 * 86400.0) == ["short"]  # three times the longest lifetime is more than is left
        assert await warn(34 * 86400.0) == []
        here.clock.pass_(81 * 86400)
        assert await warn(86400.0) == ["short"]  # a fifth of its life is left
        assert await warn(86400.0) == []
        here.clock.pass_(86400)
        assert await warn(86400.0) == ["short"]
        assert (await log_types(here)).count("authority.expiring") == 3

    run(tmp_path, work)


# --- the signer -------------------------------------------------------------------------------------------------------------------------


def test_a_plan_is_signed_once_and_only_by_its_own_authority(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        await here.authorities.create_issuing("issuing-2", "root", by=BY)
        one, two = here.authorities.get("issuing-1"), here.authorities.get("issuing-2")
        plan = here.plan(WEB)
        with refused(Kind.INTERNAL):
            two.sign(plan)
        der = one.sign(plan)
        assert x509.load_der_x509_certificate(der).tbs_certificate_bytes == plan.tbs
        with refused(Kind.INTERNAL):
            one.sign(plan)

    run(tmp_path, work)


def test_a_bad_signature_never_gets_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        monkeypatch.setattr(keys, "sign", lambda key, data: real(key, data[:-1]))
        with refused(Kind.VERIFY_FAILED):
            here.authorities.get().sign(here.plan(WEB))

    real = keys.sign
    run(tmp_path, work)


def test_a_key_that_is_not_the_certificates_is_refused(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await standard(here)
        with refused(Kind.BAD_KEY):
            Signer(here.authorities.find("issuing-1"), keys.generate("p256"))

    run(tmp_path, work)


def test_an_authority_on_a_token_issues_and_publishes(tmp_path: Path, softhsm: Any) -> None:
    async def work(here: Installation) -> None:
        await here.authorities.create_root("root", "example.org", by=BY, key_uri=softhsm.uri("root-key", pin=False), base_url=BASE)
        uri = softhsm.uri("issuing-key", pin=False)
        await here.authorities.create_issuing("issuing-1", "root", by=BY, key_uri=uri, crl_shards=2, base_url=BASE)
        assert here.authorities.get().remote
        leaf = await here.issue(WEB)
        await here.publisher.publish_dirty()
        crls, _ = await here.publisher.get_bundle_pem("example.org")
        signer = here.authorities.get()
        assert openssl_verify(tmp_path, leaf.der, signer.chain[:1], signer.chain[1:], at=here.clock(), crls=crls) == "ok"

    needs("openssl")
    run(tmp_path, work, environ=softhsm.environ)


# --- with the root on another machine ---------------------------------------------------------------------------------------------------


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

    run(tmp_path, ask, clock=clock)
    sign_issuing(files, request, signed, passphrase=PASSPHRASE, now=clock(), dns_zones=["example.org"], base_url=BASE)
    subject = x509.load_pem_x509_certificate(signed.read_bytes())
    points = subject.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for point in points for name in point.full_name or []] == [f"{BASE}/crl/root/0.crl"]
    run(tmp_path, take, clock=clock)
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

    run(tmp_path, work, clock=clock)


def test_a_root_without_room_below_it_takes_no_issuing_authority(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        key, now = key_of("p256", 9), here.clock()
        root = ca.self_signed_root(key, common_name="tight", now=now, lifetime=YEAR, serial=3, pathlen=0)
        await here.authorities.import_root("root", "example.org", root, by=BY)
        here.authorities.request("issuing-1", "example.org")
        public = here.keystore.load("file:issuing-1.key")
        like = chains.load(ca.self_signed_root(public, common_name="issuing", now=now, lifetime=3600, serial=4, pathlen=0))
        with refused(Kind.BAD_CERTIFICATE):
            await here.authorities.import_issuing("issuing-1", "root", _reissued(chains.load(root), like, key), by=BY)

    run(tmp_path, work)


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
        await standard(here)
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

    run(tmp_path, work, clock=clock)
