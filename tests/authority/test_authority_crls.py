"""Revocation lists: sharded, complete, never going back, and understood by OpenSSL."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, insert, select, update

from handclasp.authority.crls import CrlPublisher, mark_dirty
from handclasp.authority.offline import crl_pem, root_create, root_crl
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import crl
from handclasp.pki.names import Names
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from support.authorities import NOW
from support.installation import BASE, BY, Installation, Leaf, Ticker, installation, openssl_verify
from support.needs import needs

WEB = Names(spiffe="spiffe://example.org/web")


def run(directory: Path, work: Callable[[Installation], Awaitable[None]], url: str = "", *, shards: int = 4) -> None:
    async def main() -> None:
        async with installation(directory, url) as here:
            await here.authorities.create_root("root", "example.org", by=BY, base_url=BASE)
            await here.authorities.create_issuing("issuing-1", "root", by=BY, base_url=BASE, crl_shards=shards)
            await work(here)

    asyncio.run(main())


async def listed(here: Installation, shard: int, name: str = "issuing-1") -> set[int]:
    der, _ = await here.publisher.get(name, shard)
    return {one.serial_number for one in x509.load_der_x509_crl(der)}


async def numbers(here: Installation) -> dict[tuple[int, int], int]:
    rows = await here.store.rows(select(tables.crl))
    return {(row.authority_id, row.shard): row.number for row in rows}


async def dirty(here: Installation) -> list[tuple[int, int]]:
    return [(row.authority_id, row.shard) for row in await here.store.rows(select(tables.crl_dirty))]


def verdict(here: Installation, directory: Path, leaf: Leaf, crls: str | None) -> str:
    chain = here.authorities.get("issuing-1").chain
    return openssl_verify(directory, leaf.der, chain[:1], chain[1:], at=here.clock(), crls=crls)


def test_openssl_accepts_and_refuses_by_sharded_crls_on_either_database(tmp_path: Path, database_url: str) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        leaves = [await here.issue(WEB) for _ in range(6)]
        assert len(await here.publisher.publish_dirty()) == 1 + 4  # never published: the root's and every shard
        before, etag = await here.publisher.get_bundle_pem("example.org")
        assert {verdict(here, tmp_path, leaf, before) for leaf in leaves} == {"ok"}
        assert verdict(here, tmp_path, leaves[0], "") != "ok"  # no CRL at all is not good enough for -crl_check_all
        await here.revoke(leaves[0])
        assert await here.publisher.publish_dirty() == [("issuing-1", leaves[0].plan.crl_shard)]
        after, changed = await here.publisher.get_bundle_pem("example.org")
        assert etag != changed
        assert "certificate revoked" in verdict(here, tmp_path, leaves[0], after)
        assert {verdict(here, tmp_path, leaf, after) for leaf in leaves[1:]} == {"ok"}
        assert (await here.publisher.get_bundle_pem("example.org")) == (after, changed)

    run(tmp_path, work, database_url)


def test_a_crl_covers_exactly_the_certificates_that_name_it(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        leaf = await here.issue(WEB)
        await here.publisher.publish_dirty()
        certificate = x509.load_der_x509_certificate(leaf.der)
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        (url,) = [name.value for point in points for name in point.full_name or []]
        der, _ = await here.publisher.get("issuing-1", leaf.plan.crl_shard)
        extension = x509.load_der_x509_crl(der).extensions.get_extension_for_class(x509.IssuingDistributionPoint)
        assert extension.critical
        assert [name.value for name in extension.value.full_name or []] == [url] == [f"{BASE}/crl/issuing-1/{leaf.plan.crl_shard}.crl"]
        only = ("only_contains_user_certs", "only_contains_ca_certs", "only_contains_attribute_certs", "indirect_crl")
        assert not any(getattr(extension.value, flag) for flag in only)
        # Another shard's CRL must not do for this one: leave the right one out.
        texts = [(await here.publisher.get("root", 0))[0]]
        texts += [(await here.publisher.get("issuing-1", shard))[0] for shard in range(4) if shard != leaf.plan.crl_shard]
        assert "CRL" in verdict(here, tmp_path, leaf, "".join(map(crl_pem, texts)))

    run(tmp_path, work)


def _shown(der: bytes) -> str:
    command = ["openssl", "crl", "-inform", "DER", "-noout", "-text"]
    return subprocess.run(command, input=der, capture_output=True, check=True).stdout.decode()


def test_openssl_reads_every_field_of_a_crl(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        leaf = await here.issue(WEB)
        await here.revoke(leaf, "superseded")
        await here.publisher.publish_dirty()
        der, etag = await here.publisher.get("issuing-1", leaf.plan.crl_shard)
        text = _shown(der)
        for expected in (f"{leaf.plan.serial:036X}", "Superseded", "CRL Number", "Issuing Distribution Point: critical", "Authority Key"):
            assert expected in text
        assert etag.startswith('"')
        head = crl.read_crl(der)
        assert head.next_update == (NOW + 86_400_000) // 1000 * 1000
        assert head.this_update == (NOW - 60_000) // 1000 * 1000

    run(tmp_path, work)


def test_only_dirty_shards_are_rebuilt_and_numbers_only_rise(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        leaves = [await here.issue(WEB) for _ in range(8)]
        await here.publisher.publish_dirty()
        first = await numbers(here)
        assert await here.publisher.publish_dirty() == []
        chosen = leaves[0].plan.crl_shard
        await here.revoke(leaves[0])
        await here.publisher.publish_dirty()  # in the same millisecond as the first time: the number rises all the same
        second = await numbers(here)
        changed = {place for place in first if first[place] != second[place]}
        assert changed == {(leaves[0].authority_id, chosen)}
        assert all(second[place] >= first[place] for place in first)
        here.clock.pass_(-3600)  # a clock that was set back
        await here.revoke(next(leaf for leaf in leaves[1:]))
        await here.publisher.publish_dirty()
        third = await numbers(here)
        assert all(third[place] >= second[place] for place in second)
        assert await dirty(here) == []

    run(tmp_path, work)


def test_numbers_rise_even_when_an_old_backup_was_restored(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await here.publisher.publish_dirty()
        backup = await numbers(here)
        for _ in range(5):
            await here.store.ledger.commit(Write([], mark_dirty(2, 0, here.clock())))
            await here.publisher.publish_dirty()
        seen = await numbers(here)
        here.clock.pass_(60)
        restore = Change(update(tables.crl).where(tables.crl.c.authority_id == 2).values(number=backup[2, 0]))
        await here.store.ledger.commit(Write([], [restore, *mark_dirty(2, 0, here.clock())]))
        await here.publisher.publish_dirty()
        assert (await numbers(here))[2, 0] > seen[2, 0] > backup[2, 0]

    run(tmp_path, work)


def test_crls_are_renewed_when_half_their_time_is_gone(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        await here.publisher.publish_dirty()
        here.clock.pass_(12 * 3600 - 60)
        assert await here.publisher.publish_dirty() == []
        assert await here.publisher.problems() == []
        here.clock.pass_(120)
        assert len(await here.publisher.publish_dirty()) == 5
        here.clock.pass_(19 * 3600)  # nobody publishes
        assert len(await here.publisher.problems()) == 2
        assert await here.publisher.publish_dirty() != []
        assert await here.publisher.problems() == []

    run(tmp_path, work)


def test_a_revoked_certificate_leaves_one_crl_after_its_end_and_not_before(tmp_path: Path) -> None:
    async def work(here: Installation) -> None:
        leaf = await here.issue(WEB, ttl=3600)
        shard = leaf.plan.crl_shard
        await here.revoke(leaf)

        async def publish() -> bool:
            await here.store.ledger.commit(Write([], mark_dirty(leaf.authority_id, shard, here.clock())))
            await here.publisher.publish_dirty()
            return leaf.plan.serial in await listed(here, shard)

        assert await publish()
        here.clock.pass_(3500)
        assert await publish()
        here.clock.pass_(200)  # it has ended, and no CRL made after its end has held it yet
        assert await publish()
        here.clock.pass_(1)
        assert not await publish()

    run(tmp_path, work)


@settings(max_examples=8, deadline=None)
@given(lifetimes=st.lists(st.integers(60, 7200), min_size=1, max_size=5), steps=st.lists(st.integers(1, 4000), min_size=1, max_size=8))
def test_no_unexpired_revoked_certificate_is_ever_missing(
    lifetimes: list[int], steps: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def work(here: Installation) -> None:
        leaves = [await here.issue(WEB, ttl=lifetime) for lifetime in lifetimes]
        revoked: list[Leaf] = []
        for position, step in enumerate(steps):
            here.clock.pass_(step)
            if position < len(leaves):
                await here.revoke(leaves[position])
                revoked.append(leaves[position])
            await here.publisher.publish_dirty()
            found = await listed(here, 0)
            assert all(leaf.plan.serial in found for leaf in revoked if leaf.plan.not_after >= here.clock())
            assert found <= {leaf.plan.serial for leaf in revoked}

    run(tmp_path_factory.mktemp("crls"), work, shards=1)


def test_a_revocation_during_a_rebuild_stays_dirty_and_is_in_the_next_crl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(here: Installation) -> None:
        first, second = await here.issue(WEB), await here.issue(WEB)
        await here.publisher.publish_dirty()
        await here.revoke(first)
        real = here.publisher._revoked

        async def slow(*arguments: Any) -> list[crl.Revoked]:
            entries = await real(*arguments)
            monkeypatch.setattr(here.publisher, "_revoked", real)
            await here.revoke(second)  # after the rows were read, and in the same millisecond as the mark that was read
            return entries

        monkeypatch.setattr(here.publisher, "_revoked", slow)
        await here.publisher.publish_dirty()
        assert await listed(here, 0) == {first.plan.serial}
        assert await dirty(here) == [(first.authority_id, 0)]
        await here.publisher.publish_dirty()
        assert await listed(here, 0) == {first.plan.serial, second.plan.serial}
        assert await dirty(here) == []

    run(tmp_path, work, shards=1)


def test_a_slow_publisher_does_not_put_an_older_list_in_place_of_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(here: Installation) -> None:
        other = CrlPublisher(here.store, here.authorities, here.clock)
        first, second = await here.issue(WEB), await here.issue(WEB)
        await here.publisher.publish_dirty()
        await here.revoke(first)
        real = here.publisher._revoked

        async def slow(*arguments: Any) -> list[crl.Revoked]:
            entries = await real(*arguments)
            await here.revoke(second)
            assert await other.publish_dirty() == [("issuing-1", 0)]
            return entries

        monkeypatch.setattr(here.publisher, "_revoked", slow)
        assert await here.publisher.publish_dirty() == []
        assert await listed(here, 0) == {first.plan.serial, second.plan.serial}
        assert await dirty(here) == []

    run(tmp_path, work, shards=1)


def test_two_publishers_at_once_lose_no_revocation(tmp_path: Path, database_url: str) -> None:
    async def main() -> None:
        async with installation(tmp_path, database_url) as one:
            await one.authorities.create_root("root", "example.org", by=BY, base_url=BASE)
            await one.authorities.create_issuing("issuing-1", "root", by=BY, base_url=BASE, crl_shards=2)
            async with installation(tmp_path, database_url, clock=one.clock) as two:
                leaves = [await one.issue(WEB) for _ in range(12)]
                for leaf in leaves:
                    await asyncio.gather(one.revoke(leaf), one.publisher.publish_dirty(), two.publisher.publish_dirty())
                await one.publisher.publish_dirty()
                assert await listed(two, 0) | await listed(two, 1) == {leaf.plan.serial for leaf in leaves}
                assert await dirty(one) == []

    asyncio.run(main())


SCRIPT = """
import asyncio, sys
from pathlib import Path
from support.installation import BASE, BY, installation
from handclasp.pki.names import Names

async def main():
    async with installation(Path(sys.argv[1])) as here:
        if not here.authorities.all():
            await here.authorities.create_root("root", "example.org", by=BY, base_url=BASE)
            await here.authorities.create_issuing("issuing-1", "root", by=BY, base_url=BASE, crl_shards=1)
            await here.revoke(await here.issue(Names(spiffe="spiffe://example.org/web")))
        await here.publisher.publish_dirty()

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["crl.built", "crl.published", "ledger.written"])
def test_a_publisher_that_is_killed_loses_no_revocation(tmp_path: Path, point: str) -> None:
    # The root's CRL comes first, so the second passing is the shard's; the ledger has passed its point four times before.
    passing = 6 if point == "ledger.written" else 2
    environ = os.environ | {"PYTHONPATH": "src:tests", "HANDCLASP_FAULT": f"{point}:{passing}:kill"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environ, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()

    async def look() -> None:
        async with installation(tmp_path) as here:
            assert bool(await dirty(here)) == (point != "crl.published")
            await here.publisher.publish_dirty()
            assert len(await listed(here, 0)) == 1
            assert await dirty(here) == []

    asyncio.run(look())


def test_an_authority_whose_key_is_away_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(here: Installation) -> None:
        await here.authorities.create_issuing("issuing-2", "root", by=BY, base_url=BASE, crl_shards=2)
        await here.publisher.publish_dirty()
        real = here.authorities.crl_key

        def away(authority: Any) -> Any:
            if authority.name == "issuing-1":
                raise HandclaspError(Kind.UNAVAILABLE, "the token is away")
            return real(authority)

        one, two = await here.issue(WEB), await here.issue(WEB, authority="issuing-2")
        await here.revoke(one)
        await here.revoke(two)
        monkeypatch.setattr(here.authorities, "crl_key", away)
        with pytest.raises(HandclaspError):
            await here.publisher.publish_dirty()
        assert two.plan.serial in await listed(here, two.plan.crl_shard, "issuing-2")
        assert await dirty(here) == [(one.authority_id, one.plan.crl_shard)]
        monkeypatch.undo()
        assert await here.publisher.publish_dirty() == [("issuing-1", one.plan.crl_shard)]

    run(tmp_path, work)


def test_a_crl_that_does_not_fit_is_not_imported(tmp_path: Path) -> None:
    clock = Ticker()
    passphrase = b"another long passphrase"
    files, other = (root_create(tmp_path / name, trust_domain="example.org", passphrase=passphrase, now=clock()) for name in "ab")

    async def work(here: Installation) -> None:
        await here.authorities.import_root("far", "example.org", files.certificate.read_bytes(), by=BY)
        old = files.crl.read_bytes()
        root_crl(files, passphrase=passphrase, now=clock() + 9000)
        await here.publisher.import_crl("far", files.crl.read_bytes(), by=BY)
        bad = [(old, Kind.BAD_CERTIFICATE), (other.crl.read_bytes(), Kind.VERIFY_FAILED), (b"", Kind.BAD_CERTIFICATE)]
        bad += [(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", Kind.BAD_CERTIFICATE)]
        for data, kind in bad:
            with pytest.raises(HandclaspError) as caught:
                await here.publisher.import_crl("far", data, by=BY)
            assert caught.value.kind is kind
        with pytest.raises(HandclaspError):
            await here.publisher.import_crl("root", files.crl.read_bytes(), by=BY)
        assert (await here.publisher.get("far", 0))[0] != b""

    run(tmp_path, work)


@pytest.mark.parametrize(("name", "shard"), [("nobody", 0), ("issuing-1", 4), ("issuing-1", -1), ("root", 1), ("issuing-1", 0)])
def test_what_was_not_published_is_not_found(tmp_path: Path, name: str, shard: int) -> None:
    async def work(here: Installation) -> None:
        with pytest.raises(HandclaspError) as caught:
            await here.publisher.get(name, shard)
        assert caught.value.kind is Kind.NOT_FOUND
        with pytest.raises(HandclaspError):
            await here.publisher.get_bundle_pem("example.com")

    run(tmp_path, work)


def test_without_a_public_address_there_is_one_crl_for_everything(tmp_path: Path) -> None:
    needs("openssl")

    async def work(here: Installation) -> None:
        await here.authorities.create_issuing("plain", "root", by=BY, crl_shards=16)
        assert here.authorities.find("plain").crl_shards == 1
        leaf = await here.issue(WEB, authority="plain")
        await here.revoke(leaf)
        await here.publisher.publish_dirty()
        crls, _ = await here.publisher.get_bundle_pem("example.org")
        chain = here.authorities.get("plain").chain
        assert "certificate revoked" in openssl_verify(tmp_path, leaf.der, chain[:1], chain[1:], at=here.clock(), crls=crls)

    run(tmp_path, work)


def test_one_dirty_shard_among_100_000_revoked_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(here: Installation) -> None:
        await here.publisher.publish_dirty()
        authority = here.authorities.find("issuing-1")
        await asyncio.to_thread(_insert_revoked, tmp_path / "handclasp.db", authority.id, 100_000, 64)
        leaf = await here.issue(WEB)
        began = time.perf_counter()
        await here.revoke(leaf)
        assert await here.publisher.publish_dirty() == [("issuing-1", leaf.plan.crl_shard)]
        took = time.perf_counter() - began
        found = await listed(here, leaf.plan.crl_shard)
        assert leaf.plan.serial in found
        assert len(found) in (1563, 1564)  # 100,000 over 64, and the new one
        with capsys.disabled():
            print(f"\nrevoked and published, 100,000 revoked over 64 shards: {took * 1000:.0f} ms")

    run(tmp_path, work, shards=64)


def _insert_revoked(path: Path, authority_id: int, count: int, shards: int) -> None:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _quietly(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    constant = {
        "der": b"", "authority_id": authority_id, "identity_id": 1, "profile": "workload", "names": "{}", "spki_sha256": b"k" * 32,
        "key_type": "p256", "not_before": NOW, "not_after": NOW + 86_400_000, "renew_after": NOW, "renew_before": NOW, "line": b"l" * 32,
        "generation": 0, "granted_by": "token:x", "obtained_by": "token:x", "revoked_at": NOW, "revocation_reason": 4, "log_index": 0,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(
            insert(tables.certificate),
            [
                constant | {"sha256": number.to_bytes(32), "serial": (number + (1 << 140)).to_bytes(18), "crl_shard": number % shards}
                for number in range(count)
            ],
        )
    engine.dispose()
