"""The way of an issuance: what is asked for, and what comes out of it; every refusal in the log, and no secret anywhere."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from handclasp.access.principals import OidcPrincipal, ServerPrincipal
from handclasp.clock import from_datetime, to_datetime
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.window import EARLIEST, LENGTH, SPREAD, renewal_window
from handclasp.pki import chains, keys
from handclasp.pki.keys import spki_sha256
from handclasp.store import tables
from support import needs
from support.authorities import make_csr
from support.installation import openssl_verify
from support.issuing import HERE, WEB, House, fresh_csr, house, outcome, sha256, types

Request = Callable[[House], Awaitable[tuple[Any, bytes | str, dict[str, Any]]]]


def run(directory: Path, work: Callable[[House], Awaitable[None]], url: str = "", **issuing: Any) -> None:
    async def main() -> None:
        async with house(directory, url, **issuing) as here:
            await work(here)

    asyncio.run(main())


def rsa_csr(bits: int, exponent: int = 65537) -> bytes:
    key = rsa.generate_private_key(exponent, bits)
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def broken_signature() -> bytes:
    data = bytearray(fresh_csr(WEB))
    data[-1] ^= 1
    return bytes(data)


def tampered_names() -> bytes:
    return fresh_csr(WEB).replace(b"prod/web", b"prod/db1")


POLICY = f"""
version: 1
grants:
- name: jobs
  principals: [{{token: jobs}}]
  identities: ['spiffe://example.org/jobs/*']
  profiles: [workload]
  max_ttl: 30m
- name: many
  principals: [{{certificate: '{WEB}'}}]
  identities: ['{WEB}']
  dns: ['*.web.example.org']
  profiles: [workload]
deny:
- name: never
  identities: ['spiffe://example.org/jobs/root']
  reason: root jobs run elsewhere
"""
PROFILES = """
version: 1
profiles:
  same: {extend: workload, renew_same_key: true}
  elsewhere: {extend: workload, authority: other}
"""
OIDC = OidcPrincipal("https://oidc.example.org", "job", {"sub": "job"}, "id-1", 2**50)

#        what is asked for, how the token differs, the CSR, the request, and what comes out: the kind of refusal, or None
Case = tuple[str, dict[str, Any], Callable[[], bytes | str], dict[str, Any], Kind | None]
CASES: list[Case] = [
    ("only a CSR, with a token that leaves no choice", {}, fresh_csr, {}, None),
    ("a CSR that names the identity", {}, lambda: fresh_csr(WEB), {}, None),
    ("a request that names the identity", {}, fresh_csr, {"identity": WEB}, None),
    ("both, and they agree", {}, lambda: fresh_csr(WEB), {"identity": WEB}, None),
    ("PEM", {}, lambda: make_csr(keys.generate("p256"), encoding=Encoding.PEM).decode(), {}, None),
    ("DNS names of the grant", {"allow_dns": ["web.example.org"]}, lambda: fresh_csr(WEB, "web.example.org"), {}, None),
    ("names from both", {"allow_dns": ["a.example.org"]}, lambda: fresh_csr(WEB), {"dns": ["a.example.org"]}, None),
    ("Ed25519", {}, lambda: make_csr(keys.generate("ed25519")), {}, None),
    ("a lifetime within all limits", {"max_ttl": "2h"}, fresh_csr, {"ttl": 7200.0}, None),
    ("no lifetime, and a token that allows less than the default", {"max_ttl": "20m"}, fresh_csr, {}, None),
    ("a wildcard that the grant lists", {"allow_dns": ["*.example.org"], "profiles": ["server"]},
     lambda: fresh_csr(WEB, "*.example.org"), {"profile": "server"}, None),
    ("no CSR", {}, lambda: b"not a csr", {}, Kind.BAD_CSR),
    ("an empty one", {}, lambda: b"", {}, Kind.BAD_CSR),
    ("trailing data", {}, lambda: fresh_csr(WEB) + b"\0", {}, Kind.BAD_CSR),
    ("one that is too large", {}, lambda: fresh_csr(WEB) + bytes(20_000), {}, Kind.BAD_CSR),
    ("a wrong signature", {}, broken_signature, {}, Kind.BAD_PROOF),
    ("names changed after it was signed", {}, tampered_names, {}, Kind.BAD_PROOF),
    ("RSA with 1024 bits", {}, lambda: rsa_csr(1024), {}, Kind.WEAK_KEY),
    ("RSA with exponent 3", {}, lambda: rsa_csr(2048, 3), {}, Kind.WEAK_KEY),
    ("a profile that is not there", {}, fresh_csr, {"profile": "nothing"}, Kind.UNKNOWN_PROFILE),
    ("a profile outside the grant", {}, fresh_csr, {"profile": "client"}, Kind.PROFILE_NOT_ALLOWED),
    ("a profile whose authority is not there", {"profiles": ["elsewhere"]}, fresh_csr, {}, Kind.UNKNOWN_AUTHORITY),
    ("an identity outside the grant", {}, fresh_csr, {"identity": WEB + "2"}, Kind.NAME_NOT_ALLOWED),
    ("one smuggled in by the CSR", {}, lambda: fresh_csr(WEB + "2"), {}, Kind.NAME_NOT_ALLOWED),
    ("a DNS name smuggled in by the CSR", {}, lambda: fresh_csr(WEB, "evil.example.org"), {"identity": WEB}, Kind.NAME_NOT_ALLOWED),
    ("a trust domain that is not ours", {"allow": ["spiffe://example.net/x"]}, fresh_csr, {}, Kind.UNKNOWN_AUTHORITY),
    ("a DNS name outside the authority's zones", {"allow_dns": ["a.example.net"]}, lambda: fresh_csr(WEB, "a.example.net"), {},
     Kind.NAME_NOT_ALLOWED),
    ("a CSR and a request that disagree", {"allow": [WEB, WEB + "2"]}, lambda: fresh_csr(WEB + "2"), {"identity": WEB}, Kind.BAD_NAME),
    ("DNS names that disagree", {"allow_dns": ["a.example.org", "b.example.org"]}, lambda: fresh_csr(WEB, "a.example.org"),
     {"dns": ["b.example.org"]}, Kind.BAD_NAME),
    ("no name, with a token that leaves a choice", {"allow": ["spiffe://example.org/prod/*"]}, fresh_csr, {}, Kind.BAD_NAME),
    ("a name that is none", {}, fresh_csr, {"identity": "spiffe://Example.org/UP?x"}, Kind.BAD_NAME),
    ("a workload without an identity", {"allow": [], "allow_dns": ["a.example.org"]}, lambda: fresh_csr("a.example.org"), {},
     Kind.BAD_NAME),
    ("a wildcard that the grant would match as a pattern only", {"allow_dns": ["a.example.org", "*.b.example.org"], "profiles": ["server"]},
     lambda: fresh_csr(WEB, "*.example.org"), {"profile": "server"}, Kind.NAME_NOT_ALLOWED),
    ("a lifetime over the token's", {"max_ttl": "20m"}, fresh_csr, {"ttl": 1201.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("a lifetime over the profile's", {}, fresh_csr, {"ttl": 90_000.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("a lifetime under the profile's", {}, fresh_csr, {"ttl": 1.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("a lifetime that is no number", {}, fresh_csr, {"ttl": float("nan")}, Kind.LIFETIME_NOT_ALLOWED),
    ("from a network that is not allowed", {"cidr": ["192.168.0.0/16"]}, fresh_csr, {}, Kind.NOT_ALLOWED),
    ("another CSR than the token is for", {"csr_hash": "00" * 32}, fresh_csr, {}, Kind.NOT_ALLOWED),
    ("an agent's name with a workload's profile", {"allow": ["spiffe://example.org/agent/a"]}, fresh_csr, {}, Kind.NAME_NOT_ALLOWED),
    ("what the policy denies everybody", {"allow": ["spiffe://example.org/jobs/root"]}, fresh_csr, {}, Kind.NAME_NOT_ALLOWED),
    ("by a policy grant for tokens of this name", {"name": "jobs", "allow": [], "profiles": []}, fresh_csr,
     {"identity": "spiffe://example.org/jobs/a"}, None),
    ("beyond that grant", {"name": "jobs", "allow": [], "profiles": []}, fresh_csr, {"identity": WEB}, Kind.NAME_NOT_ALLOWED),
    ("a token of the API", {"allow": [], "profiles": [], "scopes": ["admin"]}, fresh_csr, {"identity": WEB}, Kind.NOT_ALLOWED),
    ("a renewal with a token", {}, fresh_csr, {"predecessor": bytes(32)}, Kind.NOT_FOUND),
]  # fmt: skip


async def make_house_rules(here: House) -> None:
    await here.rulebook.apply("profiles", PROFILES, {"kind": "test"}, "test")
    await here.rulebook.apply("policy", POLICY, {"kind": "test"}, "test")


def test_what_is_asked_for_and_what_comes_out(tmp_path: Path) -> None:
    """One installation for the whole table; each case has a token and a key of its own."""

    async def work(here: House) -> None:
        await make_house_rules(here)
        failures = []
        for words, differs, csr, wanted, kind in CASES:
            principal, data = await here.token(**differs), csr()
            before = len(await here.entries())
            result = await outcome(here.issue(principal, data, **wanted))
            entry = (await here.entries())[before:]
            found = result.kind if isinstance(result, HandclaspError) else None
            logged = {None: "certificate.issued"}.get(kind, "renewal.refused" if "predecessor" in wanted else "issuance.refused")
            if found is not kind or types(entry) != [logged] or (kind and entry[0]["why"]["kind"] != kind.value):
                failures.append((words, kind, result, entry))
        assert failures == []
        stored = await here.everything_stored()
        assert not any(secret.encode() in stored for secret in here.secrets)

    run(tmp_path, work, dns_zones=["example.org"])


def test_what_a_certificate_says_and_what_is_recorded_are_the_same(migrated_url: str, tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token(allow_dns=["a.example.org", "b.example.org"], allow_ip=["10.0.0.0/8"], owner="team-web")
        key = keys.generate("p256")
        issued = await here.issue(token, fresh_csr(WEB, "b.example.org", "a.example.org", key=key), ip=["10.0.0.1"], ttl=1800.0)
        row, entry = await here.row(issued), (await here.entries())[issued.log_entry]
        certificate = x509.load_der_x509_certificate(issued.der)
        assert sha256(issued.der) == issued.sha256 == bytes(row.sha256)
        assert bytes(row.der) == issued.der
        assert certificate.serial_number == issued.serial == int.from_bytes(row.serial)
        assert issued.serial >> 136 == 42  # the instance's byte
        assert issued.serial.bit_length() > 64 + 8
        assert certificate.not_valid_after_utc == to_datetime(row.not_after) == to_datetime(issued.not_after)
        assert from_datetime(certificate.not_valid_before_utc) == row.not_before == issued.not_before
        assert here.here.clock() < issued.renew_after < issued.renew_before < issued.not_after
        assert (row.renew_after, row.renew_before) == (issued.renew_after, issued.renew_before)
        assert bytes(row.spki_sha256) == spki_sha256(key.public_key())
        assert bytes(row.line) == issued.sha256
        assert (row.generation, row.predecessor, row.granted_by, row.log_index) == (0, None, f"token:{token.id}", issued.log_entry)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert sorted(san.get_values_for_type(x509.DNSName)) == ["a.example.org", "b.example.org"]
        point = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value[0].full_name
        assert point is not None
        assert point[0].value.endswith(f"/crl/issuing/{row.crl_shard}.crl")
        assert entry["type"] == "certificate.issued"
        assert entry["what"]["sha256"] == issued.sha256.hex()
        assert entry["what"]["dns"] == ["b.example.org", "a.example.org"]
        assert entry["what"]["ip"] == ["10.0.0.1"]
        assert entry["why"] == {"grant": f"token:{token.id}"}
        assert entry["who"] == {"kind": "token", "id": token.id, "name": "web-bootstrap"}
        assert entry["from"] == {"door": "rest", "address": "10.1.2.3"}
        owner = await here.here.store.row(select(tables.identity.c.owner).where(tables.identity.c.name == WEB))
        assert owner is not None
        assert owner.owner == "team-web"

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


def test_every_kind_of_certificate_verifies_with_other_peoples_code(tmp_path: Path) -> None:
    """`openssl verify -x509_strict` and `cryptography.x509.verification`, each for every built-in profile and key type."""

    async def work(here: House) -> None:
        store = verification.Store([x509.load_der_x509_certificate(here.here.authorities.anchors("example.org")[0])])
        builder = verification.PolicyBuilder().store(store).time(to_datetime(here.here.clock()).replace(tzinfo=None))
        between = [x509.load_der_x509_certificate(der) for der in chains.split_pem(here.here.authorities.get().chain_pem)]
        agent = await here.token(allow=[], profiles=["agent"], agent=True)
        workload = await here.token(allow_dns=["web.example.org"])
        server = await here.token(allow=[], allow_dns=["*.example.org", "a.example.org"], allow_ip=["127.0.0.1/32"], profiles=["server"])
        client = await here.token(allow=[], allow_email=["ann@example.org"], profiles=["client"])
        wanted: list[tuple[Any, str, dict[str, Any]]] = [
            (workload, "p256", {"identity": WEB, "dns": ["web.example.org"]}),
            (workload, "p384", {"identity": WEB}),
            (workload, "rsa2048", {"identity": WEB}),
            (server, "p256", {"dns": ["a.example.org", "*.example.org"], "ip": ["127.0.0.1"]}),
            (client, "p256", {"email": ["ann@example.org"]}),
            (agent, "p256", {"identity": "spiffe://example.org/agent/host-1"}),
            (ServerPrincipal("example.org", dns=("ca.example.org",)), "p256", {"dns": ["ca.example.org"], "profile": "server"}),
        ]
        for principal, key_type, request in wanted:
            issued = await here.issue(principal, make_csr(keys.generate(key_type)), **request)
            leaf = x509.load_der_x509_certificate(issued.der)
            assert chains.split_pem(issued.bundle_pem) == here.here.authorities.anchors("example.org")
            if needs.find("openssl"):
                roots = here.here.authorities.anchors("example.org")
                chain = chains.split_pem(issued.chain_pem)
                assert openssl_verify(tmp_path, issued.der, chain, roots, at=here.here.clock()) == "ok", request
            if "email" in request:
                continue  # this verifier knows no certificate that has an e-mail address alone
            usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            if x509.ExtendedKeyUsageOID.CLIENT_AUTH in usages:
                builder.build_client_verifier().verify(leaf, between)
            for name in request.get("dns", []):
                subject = x509.DNSName(name.replace("*", "anything"))
                builder.build_server_verifier(subject).verify(leaf, between)
        enrolled = [entry for entry in await here.entries() if entry["type"] == "agent.enrolled"]
        assert [entry["what"]["identity"] for entry in enrolled] == ["spiffe://example.org/agent/host-1"]

    run(tmp_path, work)


def test_an_agent_that_enrols_again_keeps_its_address(migrated_url: str, tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token(allow=[], profiles=["agent"], agent=True, labels={"role": "web"})
        name = "spiffe://example.org/agent/host-1"
        await here.issue(token, identity=name)
        await here.issue(token, identity=name, source=replace(HERE, address=None))
        row = await here.here.store.row(select(tables.agent))
        assert row is not None
        assert (row.address, row.labels) == ("10.1.2.3", '{"role": "web"}')

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


def test_keys_stay_with_their_identity_and_blocked_ones_with_nobody(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token(allow=["spiffe://example.org/prod/*"])
        key = keys.generate("p256")
        first = await here.issue(token, fresh_csr(WEB, key=key))
        again = await here.issue(token, fresh_csr(WEB, key=key))  # a second certificate of the same identity
        assert again.sha256 != first.sha256
        refusal = await outcome(here.issue(token, fresh_csr(WEB + "2", key=key)))
        assert isinstance(refusal, HandclaspError)
        assert refusal.kind is Kind.REUSED_KEY
        await here.revoker.revoke(first.sha256, "key_compromise", "", token, HERE, any_certificate=True)
        for name in (WEB, WEB + "2"):
            refusal = await outcome(here.issue(token, fresh_csr(name, key=key)))
            assert isinstance(refusal, HandclaspError)
            assert refusal.kind is Kind.BLOCKED_KEY
        assert types(await here.entries())[-2:] == ["issuance.refused"] * 2

    run(tmp_path, work)


def test_uses_are_counted_when_a_certificate_is_recorded_and_not_before(tmp_path: Path) -> None:
    """A request that was refused costs nothing; a hundred at once with a one-use token get one certificate."""

    async def work(here: House) -> None:
        token = await here.token(uses=1)
        for _ in range(3):
            assert isinstance(await outcome(here.issue(token, identity=WEB + "2")), HandclaspError)
        results = await asyncio.gather(*(outcome(here.issue(token)) for _ in range(100)))
        refusals = [result.kind for result in results if isinstance(result, HandclaspError)]
        assert refusals == [Kind.TOKEN_SPENT] * 99
        assert types(await here.entries()).count("certificate.issued") == 1
        assert types(await here.entries()).count("issuance.refused") == 3 + 99

    run(tmp_path, work)


def test_an_identity_token_serves_once_where_the_policy_says_so(tmp_path: Path) -> None:
    policy = """
version: 1
oidc: [{name: ci, issuer: 'https://oidc.example.org', audience: handclasp, single_use: true}]
grants: [{name: ci, principals: [{oidc: ci, claims: {sub: job}}], identities: ['spiffe://example.org/ci/job'], profiles: [workload]}]
"""

    async def work(here: House) -> None:
        await here.rulebook.apply("policy", policy, {"kind": "test"}, "test")
        results = await asyncio.gather(*(outcome(here.issue(OIDC, identity="spiffe://example.org/ci/job")) for _ in range(10)))
        assert [one.kind for one in results if isinstance(one, HandclaspError)] == [Kind.REPLAYED] * 9

    run(tmp_path, work)


def test_a_token_revoked_a_moment_ago_obtains_nothing(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token()
        await here.tokens.revoke(token.id, "local:test")
        refusal = await outcome(here.issue(token))  # the caller was authenticated before
        assert isinstance(refusal, HandclaspError)
        assert refusal.kind is Kind.TOKEN_REVOKED
        late = await here.token(expires="10s")
        here.here.clock.pass_(11)
        refusal = await outcome(here.issue(late))
        assert isinstance(refusal, HandclaspError)
        assert refusal.kind is Kind.TOKEN_EXPIRED

    run(tmp_path, work)


def test_a_lifetime_ends_with_the_authority_and_the_log_says_so(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token()
        end = here.here.authorities.get().issuer.not_after
        here.here.clock.now = end - 1_800_000
        issued = await here.issue(token_for_ever(token, end))
        assert issued.not_after == end // 1000 * 1000
        assert (await here.entries())[issued.log_entry]["what"]["clamped"] is True
        here.here.clock.now = end - 5_000
        refusal = await outcome(here.issue(token_for_ever(token, end)))
        assert isinstance(refusal, HandclaspError)
        assert refusal.kind is Kind.LIFETIME_NOT_ALLOWED

    def token_for_ever(token: Any, end: int) -> Any:
        return replace(token, expires_at=end + 1)

    run(tmp_path, work, lifetime=10 * 86400.0)


def test_personal_data_is_in_entries_only_salted(tmp_path: Path) -> None:
    """An address that was certified, or asked for and refused, can be erased: the entry holds a salted hash of it and nothing else."""

    async def work(here: House) -> None:
        token = await here.token(allow=[], allow_email=["ann@example.org"], profiles=["client"], owner="ann@example.org")
        issued = await here.issue(token, email=["ann@example.org"])
        await outcome(here.issue(token, email=["bob@example.org"]))
        await outcome(here.issue(token, fresh_csr("bob@example.org")))
        await outcome(here.issue(token, identity="spiffe://example.org/x@y"))
        await outcome(here.issue(token, dns=["carl@example.org"]))
        await here.revoker.revoke(issued.sha256, "superseded", "ann@example.org left", token, HERE, any_certificate=True)
        renewed = await outcome(here.renew(await here.issue(token, email=["ann@example.org"])))
        assert not isinstance(renewed, HandclaspError)
        assert [data for data in await here.here.store.entries(0, 1000) if b"@" in data] == []
        kept = await here.here.store.rows(select(tables.log_personal.c.value))
        assert {"ann@example.org", "ann@example.org left"} <= {row.value for row in kept}

    run(tmp_path, work)


def test_no_secret_is_stored_or_logged(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        key = keys.generate("p256")
        await here.issue(await here.token(), fresh_csr(WEB, key=key))
        await outcome(here.issue(await here.token(), base64.b64encode(keys.to_pem(key))))  # somebody sends a private key in place of a CSR
        await outcome(here.issue(await here.token(), keys.to_pem(key)))
        stored = await here.everything_stored()
        private = keys.to_pem(key).splitlines()[1]
        assert private not in stored
        assert base64.b64encode(keys.to_pem(key)) not in stored
        assert not any(secret.encode() in stored for secret in here.secrets)

    run(tmp_path, work)


@given(st.integers(0, 2**42), st.integers(1_000, 10**10), st.floats(0, 1, exclude_max=True))
def test_a_renewal_window_lies_in_the_second_half_and_leaves_a_quarter(now: int, lifetime: int, draw: float) -> None:
    after, before = renewal_window(now, now + lifetime, draw)
    assert now + lifetime * EARLIEST - 1 <= after <= before < now + lifetime
    assert now + lifetime - before >= lifetime * (1 - EARLIEST - SPREAD - LENGTH) - 2
    assert before - after <= lifetime * LENGTH + 1


@given(st.integers(10_000, 10**10), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2, unique=True))
def test_windows_follow_the_draw(lifetime: int, draws: list[float]) -> None:
    """A fleet that was started together does not renew together."""
    low, high = sorted(draws)
    assert renewal_window(0, lifetime, low)[0] <= renewal_window(0, lifetime, high)[0]
    assert renewal_window(0, lifetime, 0.999)[0] - renewal_window(0, lifetime, 0.0)[0] > lifetime * SPREAD * 0.9


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_certificate_is_refused_by_openssl_once_its_time_is_over(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await here.issue(await here.token(), ttl=20.0)
        chain, roots = chains.split_pem(issued.chain_pem), here.here.authorities.anchors("example.org")
        assert openssl_verify(tmp_path, issued.der, chain, roots, at=here.here.clock()) == "ok"
        assert "expired" in openssl_verify(tmp_path, issued.der, chain, roots, at=here.here.clock() + 21_000)

    run(tmp_path, work)
