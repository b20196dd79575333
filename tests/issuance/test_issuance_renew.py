"""Renewal: the newest of its line only, under the rules of today. And revocation: at once, with everything over the same key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import func, select

from handclasp.access.principals import CertificatePrincipal
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.request import IssuedCertificate
from handclasp.pki import keys
from handclasp.store import tables
from support.errors import refused
from support.installation import BY
from support.issuing import HERE, WEB, House, fresh_csr, house, outcome, types

GRACE = 600
POLICY = """
version: 1
grants:
- name: web
  principals: [{token: web-bootstrap}]
  identities: ['spiffe://example.org/prod/%s']
  profiles: [workload]
  max_ttl: %s
"""


def run(directory: Path, work: Callable[[House], Awaitable[None]], url: str = "", **issuing: Any) -> None:
    async def main() -> None:
        async with house(directory, url, **issuing) as here:
            await work(here)

    asyncio.run(main())


async def kind_of(work: Awaitable[IssuedCertificate]) -> Kind | None:
    result = await outcome(work)
    return result.kind if isinstance(result, HandclaspError) else None


def test_a_renewal_goes_on_with_the_line(migrated_url: str, tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token(allow_dns=["web.example.org"], max_ttl="2h")
        issued = [await here.issue(token, identity=WEB, dns=["web.example.org"], ttl=5400.0)]
        for _ in range(3):
            here.here.clock.pass_(3000)
            issued.append(await here.renew(issued[-1]))
        rows = [await here.row(one) for one in issued]
        assert [row.generation for row in rows] == [0, 1, 2, 3]
        assert {bytes(row.line) for row in rows} == {issued[0].sha256}
        assert [row.predecessor for row in rows] == [None, *(one.sha256 for one in issued[:-1])]
        assert [row.superseded_by for row in rows] == [*(one.sha256 for one in issued[1:]), None]
        assert {row.granted_by for row in rows} == {f"token:{token.id}"}
        assert {one.not_after - one.not_before for one in issued} == {5_460_000}  # the lifetime stays what it was
        assert len({bytes(row.spki_sha256) for row in rows}) == 4
        sans = {
            str(
                x509.load_der_x509_certificate(one.der)
                .extensions.get_extension_for_class(x509.SubjectAlternativeName)
                .value.get_values_for_type(x509.DNSName)
            )
            for one in issued
        }
        assert sans == {"['web.example.org']"}
        entry = (await here.entries())[issued[2].log_entry]
        assert entry["type"] == "certificate.renewed"
        assert entry["who"]["sha256"] == issued[1].sha256.hex()
        assert entry["what"]["line"] == issued[0].sha256.hex()
        assert entry["what"]["generation"] == 2
        token_row = await here.here.store.row(select(tables.token.c.used))
        assert token_row is not None
        assert token_row.used == 1  # renewals use nothing

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


async def _renewed(here: House, issued: IssuedCertificate) -> None:
    await here.renew(issued)


async def _renewed_long_ago(here: House, issued: IssuedCertificate) -> None:
    await here.renew(issued)
    here.here.clock.pass_(GRACE + 1)


async def _renewed_just_now(here: House, issued: IssuedCertificate) -> None:
    await here.renew(issued)
    here.here.clock.pass_(GRACE)


async def _revoked(here: House, issued: IssuedCertificate) -> None:
    holder = await here.holder(issued)
    await here.revoker.revoke(issued.sha256, "superseded", "", holder, HERE, any_certificate=False)


async def _expired(here: House, issued: IssuedCertificate) -> None:
    here.here.clock.now = issued.not_after


async def _token_revoked(here: House, issued: IssuedCertificate) -> None:
    await here.tokens.revoke((await here.row(issued)).granted_by.removeprefix("token:"), "local:test")


async def _token_expired(here: House, issued: IssuedCertificate) -> None:
    here.here.clock.pass_(3590)


async def _denied(here: House, issued: IssuedCertificate) -> None:
    await here.rulebook.apply("policy", f"version: 1\ndeny: [{{name: d, identities: ['{WEB}']}}]\n", {"kind": "test"}, "test")


async def _nothing(here: House, issued: IssuedCertificate) -> None:
    pass


RENEWALS: list[tuple[str, Callable[[House, IssuedCertificate], Awaitable[None]], dict[str, Any], Kind | None]] = [
    ("the newest", _nothing, {}, None),
    ("a superseded one in its grace time: the answer may have been lost", _renewed_just_now, {}, None),
    ("a superseded one after it", _renewed_long_ago, {}, Kind.SUPERSEDED),
    ("a revoked one", _revoked, {}, Kind.REVOKED),
    ("an expired one", _expired, {}, Kind.NOT_ALLOWED),
    ("by a token that was revoked", _token_revoked, {}, Kind.NOT_ALLOWED),
    ("by a token that has only expired", _token_expired, {}, None),
    ("of what the policy denies now", _denied, {}, Kind.NAME_NOT_ALLOWED),
    ("with another profile", _nothing, {"profile": "client"}, Kind.PROFILE_NOT_ALLOWED),
    ("with the same profile said again", _nothing, {"profile": "workload"}, None),
    ("for longer than the token allows", _nothing, {"ttl": 7201.0}, Kind.LIFETIME_NOT_ALLOWED),
    ("for less", _nothing, {"ttl": 60.0}, None),
]


@pytest.mark.parametrize(("before", "wanted", "kind"), [case[1:] for case in RENEWALS], ids=[case[0] for case in RENEWALS])
def test_renewals(
    tmp_path: Path, before: Callable[[House, IssuedCertificate], Awaitable[None]], wanted: dict[str, Any], kind: Kind | None
) -> None:
    async def work(here: House) -> None:
        issued = await here.issue(await here.token(max_ttl="2h"), ttl=3600.0)
        holder = await here.holder(issued)
        await before(here, issued)
        result = await kind_of(here.issue(holder, predecessor=issued.sha256, **wanted))
        assert result is kind
        last = (await here.entries())[-1]
        assert last["type"] == ("renewal.refused" if kind else "certificate.renewed")
        if kind:
            assert last["why"]["kind"] == kind.value
            assert last["what"]["predecessor"] == issued.sha256.hex()
            assert len(await here.here.store.rows(select(tables.certificate.c.sha256))) == (2 if before is _renewed_long_ago else 1)

    run(tmp_path, work)


def test_who_renews_shows_the_very_certificate(tmp_path: Path) -> None:
    """Not a token, not another certificate of the same identity, not a certificate that says so itself."""

    async def work(here: House) -> None:
        token = await here.token(renew=False)
        one, two = await here.issue(token), await here.issue(token)
        holder = await here.holder(two)
        assert await kind_of(here.issue(token, predecessor=one.sha256)) is Kind.NOT_ALLOWED
        assert await kind_of(here.issue(holder, predecessor=one.sha256)) is Kind.NOT_ALLOWED
        assert await kind_of(here.renew(one)) is Kind.NOT_ALLOWED  # the token says: no renewals
        forged = CertificatePrincipal(bytes(32), WEB, holder.names, "workload", bytes(32), 0, f"token:{token.id}")
        assert await kind_of(here.issue(forged, predecessor=bytes(32))) is Kind.NOT_FOUND

    run(tmp_path, work)


def test_what_a_csr_says_in_a_renewal_widens_nothing(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await here.issue(await here.token(allow_dns=["*.example.org"]), identity=WEB, dns=["a.example.org"])
        assert await kind_of(here.renew(issued, fresh_csr(WEB, "b.example.org"))) is Kind.NAME_NOT_ALLOWED
        assert await kind_of(here.renew(issued, fresh_csr(WEB + "2"))) is Kind.NAME_NOT_ALLOWED
        renewed = await here.renew(issued, fresh_csr(WEB))  # fewer names in the CSR: the certificate keeps its own
        assert (await here.row(renewed)).names == '{"dns": ["a.example.org"]}'

    run(tmp_path, work)


def test_a_renewal_needs_a_new_key_unless_the_profile_says_otherwise(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        await here.rulebook.apply("profiles", "version: 1\nprofiles: {same: {extend: workload, renew_same_key: true}}\n", BY, "test")
        token = await here.token(profiles=["workload", "same"])
        key = keys.generate("p256")
        issued = await here.issue(token, fresh_csr(key=key), profile="workload")
        assert await kind_of(here.renew(issued, fresh_csr(key=key))) is Kind.REUSED_KEY
        issued = await here.issue(token, fresh_csr(key=key), profile="same")
        assert await kind_of(here.renew(issued, fresh_csr(key=key))) is None
        assert await kind_of(here.renew(issued, fresh_csr())) is None
        # The profile goes away, or loses the type of key: what was obtained with it is not renewed any more.
        await here.rulebook.apply("profiles", "version: 1\nprofiles: {same: {extend: workload, key_types: [p384]}}\n", BY, "test")
        assert await kind_of(here.renew(issued)) in (Kind.WEAK_KEY, Kind.BAD_KEY)
        await here.rulebook.apply("profiles", "version: 1\nprofiles: {}\n", BY, "test")
        assert await kind_of(here.renew(issued)) is Kind.UNKNOWN_PROFILE
        assert types(await here.entries()).count("renewal.refused") == 3

    run(tmp_path, work)


def test_a_policy_that_was_narrowed_is_felt_at_the_next_renewal(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        await here.rulebook.apply("policy", POLICY % ("*", "1h"), BY, "test")
        issued = await here.issue(await here.token(allow=[], profiles=[]), identity=WEB)
        assert (await here.row(issued)).granted_by.startswith("policy:web+token:")
        assert await kind_of(here.renew(issued)) is None
        assert await kind_of(here.renew(issued, ttl=3600.0)) is None
        await here.rulebook.apply("policy", POLICY % ("*", "30m"), BY, "test")
        assert await kind_of(here.renew(issued, ttl=3600.0)) is Kind.LIFETIME_NOT_ALLOWED
        await here.rulebook.apply("policy", POLICY % ("db", "1h"), BY, "test")
        assert await kind_of(here.renew(issued)) is Kind.NAME_NOT_ALLOWED
        await here.rulebook.apply("policy", "version: 1\n", BY, "test")
        assert await kind_of(here.renew(issued)) is Kind.NOT_ALLOWED

    run(tmp_path, work)


def test_who_renewed_near_the_end_of_an_authority_is_not_short_lived_for_good(tmp_path: Path) -> None:
    """The lifetime that the old authority cut off is not what anybody wanted: from its successor the certificate has its full one."""

    async def work(here: House) -> None:
        here.here.clock.now = here.here.authorities.get().issuer.not_after - 120_000
        issued = await here.issue(await here.token(max_ttl="2h"))
        assert issued.not_after - here.here.clock() <= 120_000
        await here.here.authorities.create_issuing("issuing-2", "root", by=BY)
        await here.here.authorities.retire("issuing", by=BY)
        await here.here.authorities.load()
        here.here.clock.pass_(60)
        renewed = await here.renew(issued)
        assert renewed.authority == "issuing-2"
        assert renewed.not_after - here.here.clock() > 3_500_000

    run(tmp_path, work, lifetime=10 * 86400.0)


def test_two_renewals_at_once_leave_one_newest(tmp_path: Path) -> None:
    """A client that lost the answer asks again: both get one, and one of them is the newest of the line."""

    async def work(here: House) -> None:
        issued = await here.issue(await here.token())
        two = await asyncio.gather(here.renew(issued), here.renew(issued))
        superseded = (await here.row(issued)).superseded_by
        assert superseded in [one.sha256 for one in two]
        other = next(one for one in two if one.sha256 != superseded)
        assert (await here.row(other)).superseded_by == superseded

    run(tmp_path, work)


def test_a_stolen_key_does_not_keep_renewing_beside_its_owner(tmp_path: Path) -> None:
    """Regression, smallstep/certificates#319. Whoever renews second, in the grace time, takes the line; the other one's next renewal is
    refused and logged, which is what somebody notices."""

    async def work(here: House) -> None:
        stolen = await here.issue(await here.token())
        owners = await here.renew(stolen)
        thiefs = await here.renew(stolen)
        here.here.clock.pass_(GRACE + 1)
        assert await kind_of(here.renew(owners)) is Kind.SUPERSEDED
        newest = await here.renew(thiefs)
        assert await kind_of(here.renew(stolen)) is Kind.SUPERSEDED
        entries = await here.entries()
        assert entries[thiefs.log_entry]["what"]["instead_of"] == owners.sha256.hex()
        refused = [entry for entry in entries if entry["type"] == "renewal.refused"]
        assert [entry["why"]["kind"] for entry in refused] == ["superseded", "superseded"]
        assert (await here.row(newest)).superseded_by is None

    run(tmp_path, work)


def test_the_grace_time_is_over_before_a_short_lived_successor_is_due(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await here.issue(await here.token(max_ttl="40s"))
        await here.renew(issued)
        here.here.clock.pass_(26)  # a quarter of the lifetime with its backdating
        assert await kind_of(here.renew(issued)) is Kind.SUPERSEDED

    run(tmp_path, work)


# --- revocation -------------------------------------------------------------------------------------------------------------------------


async def _dirty(here: House) -> set[int]:
    return {row.shard for row in await here.here.store.rows(select(tables.crl_dirty))}


def test_a_revocation_is_in_rows_log_and_the_next_crl(migrated_url: str, tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token, operator = await here.token(), await here.token(allow=[], profiles=[], scopes=["certificates:revoke"])
        issued = await here.issue(token)
        await here.here.publisher.publish_dirty()
        assert await _dirty(here) == set()
        done = await here.revoker.revoke(issued.sha256, "cessation_of_operation", "machine gone", operator, HERE, any_certificate=True)
        assert (done.revoked, done.reason, done.revoked_at) == ([issued.sha256], "cessation_of_operation", here.here.clock())
        row = await here.row(issued)
        assert (row.revoked_at, row.revocation_reason) == (here.here.clock(), 5)
        assert await _dirty(here) == {row.crl_shard}
        entry = (await here.entries())[done.log_entry or 0]
        assert entry["type"] == "certificate.revoked"
        assert entry["who"]["id"] == operator.id
        assert entry["why"] == {"reason": "cessation_of_operation"}
        assert "machine gone" not in str(entry)
        assert await here.here.publisher.publish_dirty() == [("issuing", row.crl_shard)]
        der, _ = await here.here.publisher.get("issuing", row.crl_shard)
        listed = x509.load_der_x509_crl(der).get_revoked_certificate_by_serial_number(issued.serial)
        assert listed is not None
        assert await kind_of(here.renew(issued)) is Kind.REVOKED

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


def test_revoking_again_changes_nothing(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        issued = await here.issue(await here.token())
        holder = await here.holder(issued)
        first = await here.revoker.revoke(issued.sha256, "superseded", "", holder, HERE, any_certificate=False)
        here.here.clock.pass_(10)
        before = len(await here.entries())
        again = await here.revoker.revoke(issued.sha256, "affiliation_changed", "", holder, HERE, any_certificate=False)
        assert (again.revoked, again.reason, again.revoked_at, again.log_entry) == ([], "superseded", first.revoked_at, None)
        assert len(await here.entries()) == before
        # except that a key found compromised later is blocked, with the time of the first revocation
        later = await here.revoker.revoke(issued.sha256, "key_compromise", "", holder, HERE, any_certificate=False)
        assert later.revoked == [issued.sha256]
        row = await here.row(issued)
        assert (row.revoked_at, row.revocation_reason) == (first.revoked_at, 1)
        blocked = await here.here.store.row(select(func.count().label("n")).where(tables.key.c.blocked_at.is_not(None)))
        assert blocked is not None
        assert blocked.n == 1

    run(tmp_path, work)


def test_a_compromised_key_takes_every_certificate_over_it_along(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token, key = await here.token(), keys.generate("p256")
        over_it = [await here.issue(token, fresh_csr(key=key)) for _ in range(3)]
        other = await here.issue(token)
        holder = await here.holder(over_it[1])
        done = await here.revoker.revoke(over_it[1].sha256, "key_compromise", "", holder, HERE, any_certificate=False)
        assert sorted(done.revoked) == sorted(one.sha256 for one in over_it)
        assert (await here.row(other)).revoked_at is None
        assert types(await here.entries())[-4:] == ["certificate.revoked"] * 3 + ["key.blocked"]
        assert await _dirty(here) == {(await here.row(one)).crl_shard for one in over_it}
        assert await kind_of(here.issue(token, fresh_csr(key=key))) is Kind.BLOCKED_KEY

    run(tmp_path, work)


def test_a_renewal_and_the_revocation_of_what_it_renews_cannot_both_happen_unseen(tmp_path: Path) -> None:
    """In whatever order they are committed: a renewal that stands behind the revocation in the log is refused."""

    async def work(here: House) -> None:
        for _ in range(5):
            issued = await here.issue(await here.token())
            holder = await here.holder(issued)
            revocation = here.revoker.revoke(issued.sha256, "superseded", "", holder, HERE, any_certificate=False)
            renewed, revoked = await asyncio.gather(outcome(here.renew(issued)), revocation)
            if isinstance(renewed, HandclaspError):
                assert renewed.kind is Kind.REVOKED
            else:
                assert renewed.log_entry < (revoked.log_entry or 0)

    run(tmp_path, work)


def test_who_may_not_revoke(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        token = await here.token()
        issued, other = await here.issue(token), await here.issue(token)
        holder = await here.holder(other)
        for principal in (holder, token):
            with refused(Kind.NOT_ALLOWED):
                await here.revoker.revoke(issued.sha256, "superseded", "", principal, HERE, any_certificate=False)
        assert types(await here.entries())[-2:] == ["revocation.refused"] * 2
        with refused(Kind.NOT_FOUND):
            await here.revoker.revoke(bytes(32), "superseded", "", token, HERE, any_certificate=True)
        with refused(Kind.BAD_REQUEST):
            await here.revoker.revoke(issued.sha256, "no_reason", "", token, HERE, any_certificate=True)
        assert (await here.row(issued)).revoked_at is None

    run(tmp_path, work)


def test_rules_are_applied_compared_and_logged(tmp_path: Path) -> None:
    async def work(here: House) -> None:
        first = await here.rulebook.compare("policy", POLICY % ("*", "1h"), BY)
        assert not first.applied
        assert [change.change for change in first.changes] == ["added"]
        assert (await here.rulebook.current()).policy.grants == ()
        applied = await here.rulebook.apply("policy", POLICY % ("*", "1h"), BY, "test")
        assert applied.applied
        assert len((await here.rulebook.current()).policy.grants) == 1
        assert not (await here.rulebook.apply("policy", POLICY % ("*", "1h"), BY, "test")).applied  # it is in force already
        with refused(Kind.BAD_POLICY):
            await here.rulebook.apply("policy", "version: 1\ngrants: [{name: x}]\nnonsense: 1\n", BY, "test")
        with refused(Kind.BAD_PROFILE):
            await here.rulebook.compare("profiles", "version: 1\nprofiles: {workload: {}}\n", BY)
        changed = await here.rulebook.apply("profiles", "version: 1\nprofiles: {x: {extend: workload, lifetime: 2h}}\n", BY, "test")
        assert [change.subject for change in changed.changes] == ["profile x"]
        assert types(await here.entries())[2:] == ["policy.compared", "policy.applied", "profiles.applied"]
        document = await here.rulebook.document("policy")
        assert (document.text, document.applied_by) == (POLICY % ("*", "1h"), "test")

    run(tmp_path, work)
