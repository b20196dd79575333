"""Authorities: made, imported, found, retired; and their certificates in the eyes of OpenSSL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from handclasp.authority import facts
from handclasp.authority.expiring import warn_expiring
from handclasp.authority.signer import Signer
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import ca, chains, keys
from handclasp.pki.names import Names
from handclasp.pki.plan import assemble, encode_tbs
from handclasp.pki.profiles import BUILT_IN
from support.authorities import key_of, reissued
from support.errors import refused
from support.installation import (
    BASE,
    BY,
    Installation,
    in_installation,
    installation,
    log_types,
    make_standard,
    openssl_verify,
)
from support.needs import needs

WEB = Names(spiffe="spiffe://example.org/web")


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

    in_installation(tmp_path, work)


def test_what_was_made_is_there_after_a_restart_on_either_database(tmp_path: Path, database_url: str) -> None:
    async def make(here: Installation) -> None:
        await make_standard(here, dns_zones=["Example.org"])
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

    in_installation(tmp_path, make, database_url)
    in_installation(tmp_path, look, database_url)


def test_the_issuing_authority_has_path_length_0_and_openssl_enforces_it(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        await make_standard(here)
        signer = here.authorities.get()
        basic = facts.extension(signer.authority.certificate, x509.BasicConstraints)
        assert basic is not None
        assert (basic.ca, basic.path_length) == (True, 0)
        thief = here.authorities.crl_key(signer.authority)  # what somebody who got at the issuing key would do
        assert thief is not None
        below_key = key_of("p256", 8)
        common = {"now": here.clock(), "lifetime": 3600.0, "serial": 5, "backdate": 0.0}
        upper = ca.self_signed_root(below_key, common_name="below", **common)  # only for its subject and its key
        below = reissued(signer.authority.certificate, chains.load(upper), thief)
        leaf = reissued(chains.load(below), chains.load((await here.issue(WEB)).der), below_key)
        said = openssl_verify(tmp_path, leaf, [below, *signer.chain[:1]], signer.chain[1:], at=here.clock())
        assert "path length constraint exceeded" in said

    in_installation(tmp_path, work)


def test_dns_zones_become_name_constraints_that_openssl_enforces(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        await make_standard(here, dns_zones=["prod.example.org"])
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

    in_installation(tmp_path, work)


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
        await make_standard(here)
        await here.authorities.create_issuing("strict", "root", by=BY, uri_constraint=True)
        plain, strict = (here.authorities.find(name).certificate for name in ("issuing-1", "strict"))
        assert facts.extension(plain, x509.NameConstraints) is None
        found = facts.extension(strict, x509.NameConstraints)
        assert found is not None
        assert found.permitted_subtrees == [x509.UniformResourceIdentifier("example.org")]
        assert facts.dns_zones(strict) == ()

    in_installation(tmp_path, work)


def test_several_trust_domains_and_issuing_authorities_each_find_their_signer(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        make = here.authorities
        await make_standard(here)
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

    in_installation(tmp_path, work)


def test_subjects_and_key_ids_are_unique_even_for_equal_settings(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await make_standard(here)
        await here.authorities.create_issuing("issuing-2", "root", by=BY)
        await here.authorities.create_root("root-2", "example.org", by=BY)
        certificates = [one.certificate for one in here.authorities.all()]
        assert len({one.subject.public_bytes() for one in certificates}) == 4
        assert len({chains.key_id(one) for one in certificates}) == 4
        assert len({one.serial_number for one in certificates}) == 4

    in_installation(tmp_path, work)


def test_a_name_or_key_that_is_taken_is_refused(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await make_standard(here)
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

    in_installation(tmp_path, work)


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
            await make_standard(one)
            async with asyncio.timeout(5):
                while "issuing-1" not in [authority.name for authority in two.authorities.all()]:
                    await two.authorities.refresh()
                    await asyncio.sleep(0.05)
            assert two.authorities.get().chain == one.authorities.get().chain

    asyncio.run(main())


def test_a_retired_root_leaves_the_bundles_only_when_nobody_needs_it(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await make_standard(here)
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

    in_installation(tmp_path, work)


def test_an_authority_that_ends_soon_is_logged_once_a_day(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await here.authorities.create_root("root", "example.org", by=BY)
        await here.authorities.create_issuing("short", "root", by=BY, lifetime=100 * 86400.0)

        async def warn(longest: float) -> list[str]:
            return await warn_expiring(here.store, here.authorities, here.clock(), longest)

        assert await warn(86400.0) == []
        assert await warn(34 * 86400.0) == ["short"]  # three times the longest lifetime is more than is left
        assert await warn(34 * 86400.0) == []
        here.clock.pass_(81 * 86400)
        assert await warn(86400.0) == ["short"]  # a fifth of its life is left
        assert await warn(86400.0) == []
        here.clock.pass_(86400)
        assert await warn(86400.0) == ["short"]
        assert (await log_types(here)).count("authority.expiring") == 3

    in_installation(tmp_path, work)


# --- the signer -------------------------------------------------------------------------------------------------------------------------


def test_a_plan_is_signed_once_and_only_by_its_own_authority(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await make_standard(here)
        await here.authorities.create_issuing("issuing-2", "root", by=BY)
        one, two = here.authorities.get("issuing-1"), here.authorities.get("issuing-2")
        plan = here.plan(WEB)
        with refused(Kind.INTERNAL):
            two.sign(plan)
        der = one.sign(plan)
        assert x509.load_der_x509_certificate(der).tbs_certificate_bytes == plan.tbs
        with refused(Kind.INTERNAL):
            one.sign(plan)

    in_installation(tmp_path, work)


def test_a_bad_signature_never_gets_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(here: Installation) -> None:
        await make_standard(here)
        monkeypatch.setattr(keys, "sign", lambda key, data: real(key, data[:-1]))
        with refused(Kind.VERIFY_FAILED):
            here.authorities.get().sign(here.plan(WEB))

    real = keys.sign
    in_installation(tmp_path, work)


def test_a_key_that_is_not_the_certificates_is_refused(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await make_standard(here)
        with refused(Kind.BAD_KEY):
            Signer(here.authorities.find("issuing-1"), keys.generate("p256"))

    in_installation(tmp_path, work)


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
    in_installation(tmp_path, work, environ=softhsm.environ)
