"""Keys of JWT-SVIDs under a clock that the test moves: published ahead of use, until the last token has ended, agreed by every process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select, update

from handclasp.authority.jwtkeys import LEAD_HINTS, LEEWAY, MAX_LIFETIME, JwtKeys
from handclasp.errors import Kind
from handclasp.log.entries import parse_entry
from handclasp.pki.bundles import jwk_of, parse_spiffe_bundle
from handclasp.pki.jwt_svid import sign_jwt_svid, thumbprint, verify_jwt_svid
from handclasp.store import tables
from handclasp.store.writes import Change, Write
from handclasp.trust.bundles import Bundles
from support.errors import refused
from support.installation import BY, Installation, Ticker, installation

TD = "example.org"
HINT, PERIOD = 300.0, 86_400.0
LEAD = HINT * LEAD_HINTS


@dataclass
class Keys:
    here: Installation
    keys: JwtKeys
    bundles: Bundles
    seen: list[tuple[int, frozenset[str]]] = field(default_factory=list)

    async def step(self) -> list[str]:
        done = await self.keys.step([TD])
        await self.look()
        return [what.split()[0] for what in done]

    async def look(self) -> frozenset[str]:
        """Return the key IDs in the bundle, and hold its sequence against every one before: it rises with each change, and never falls."""
        document = json.loads(await self.bundles.own(TD))
        content = frozenset(key.get("kid", key.get("x5c", [""])[0]) for key in document["keys"])
        for sequence, before in self.seen:
            assert (document["spiffe_sequence"] > sequence) or (document["spiffe_sequence"] == sequence and before == content)
        self.seen.append((document["spiffe_sequence"], content))
        return frozenset(key["kid"] for key in document["keys"] if key["use"] == "jwt-svid")

    async def kid(self) -> str:
        return (await self.keys.signer(TD))[0]


@asynccontextmanager
async def opened(directory: Path, url: str = "", clock: Ticker | None = None) -> AsyncIterator[Keys]:
    async with installation(directory, url, clock=clock) as here:
        if not here.authorities.all():
            await here.authorities.create_root("root", TD, by=BY)
        keys = JwtKeys(here.store, here.keystore, here.clock, refresh_hint=HINT, period=PERIOD)
        yield Keys(here, keys, Bundles(here.store, here.authorities, keys, refresh_hint=HINT))


def run(directory: Path, work: Callable[[Keys], Awaitable[None]], url: str = "") -> None:
    async def main() -> None:
        async with opened(directory, url) as house:
            await work(house)

    asyncio.run(main())


def test_a_new_key_is_published_long_before_it_signs_and_the_old_one_long_after(tmp_path: Path, migrated_url: str) -> None:
    async def work(house: Keys) -> None:
        clock = house.here.clock
        with refused(Kind.UNAVAILABLE, "no key for JWT-SVIDs"):
            await house.kid()
        assert await house.step() == ["jwt_key.created"]
        first = await house.kid()
        assert await house.look() == {first}
        assert await house.step() == []
        clock.pass_(PERIOD - LEAD - 1)
        assert await house.step() == []
        clock.pass_(1)
        assert await house.step() == ["jwt_key.created"]
        published = clock()
        [second] = await house.look() - {first}
        while clock() < published + LEAD * 1000 - 1:  # whoever asks as often as the bundle says has it by now, several times over
            assert await house.kid() == first
            assert await house.look() == {first, second}
            clock.pass_(HINT - 0.001 if clock() + HINT * 1000 >= published + LEAD * 1000 else HINT)
            assert await house.step() == []
        clock.now = published + round(LEAD * 1000)
        assert 3 * HINT <= LEAD <= 5 * HINT
        assert await house.kid() == second
        stopped = clock()
        last = stopped + round((MAX_LIFETIME + LEEWAY) * 1000)
        clock.now = last - 1  # a token of the longest life, made at the last moment, is verified until its end
        assert await house.step() == []
        assert await house.look() == {first, second}
        clock.now = last
        assert await house.step() == ["jwt_key.retired"]
        assert await house.look() == {second}
        assert await house.kid() == second
        row = await house.here.store.row(select(tables.jwt_key).where(tables.jwt_key.c.kid == first))
        assert row is not None
        assert (row.key_uri, row.removed_at) == ("", last)
        entries = [parse_entry(data) for data in await house.here.store.entries(0, 1000)]
        told = [(entry["type"], entry["what"]["kid"]) for entry in entries if entry["type"].startswith("jwt_key.")]
        assert told == [("jwt_key.created", first), ("jwt_key.created", second), ("jwt_key.retired", first)]

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


def test_whatever_is_signed_is_verified_with_the_bundle_of_any_moment_of_its_life(tmp_path: Path) -> None:
    """Three weeks of keys: a verifier that asked one refresh hint ago, at any time, accepts what is signed now."""

    async def work(house: Keys) -> None:
        clock, start = house.here.clock, house.here.clock()
        await house.step()
        bundles = [(clock(), await house.bundles.own(TD))]
        while clock() < start + 3 * PERIOD * 1000:
            clock.pass_(HINT * 2.9)
            await house.step()
            bundles.append((clock(), await house.bundles.own(TD)))
            kid, key = await house.keys.signer(TD)
            assert kid == thumbprint(jwk_of(key.public_key()))
            at = clock() // 1000
            token = sign_jwt_svid(key, kid, identity=f"spiffe://{TD}/web", audience=["a"], issued_at=at, expires_at=at + 3600, jti="j")
            old = bundles[-2][1]
            for data, now in ((old, clock()), (bundles[-1][1], clock() + 3_599_000)):
                verify_jwt_svid(token, ["a"], {TD: parse_spiffe_bundle(data, TD).jwt_keys}, now)
        assert len({kid for _, data in bundles for kid in parse_spiffe_bundle(data, TD).jwt_keys}) >= 3

    run(tmp_path, work)


def test_a_leader_that_was_away_for_long_leaves_no_gap(tmp_path: Path) -> None:
    async def work(house: Keys) -> None:
        await house.step()
        first = await house.kid()
        house.here.clock.pass_(30 * PERIOD)
        assert await house.kid() == first, "an old key is better than none, and everybody has it"
        await house.step()
        assert await house.kid() == first
        house.here.clock.pass_(LEAD)
        assert await house.kid() != first

    run(tmp_path, work)


def test_processes_agree_and_a_restart_changes_nothing(tmp_path: Path, postgres_url: str) -> None:
    clock = Ticker()

    async def main() -> None:
        async with opened(tmp_path, postgres_url, clock) as one:
            async with opened(tmp_path / "other", postgres_url, clock) as two:
                await two.here.authorities.refresh()
                done = await asyncio.gather(one.step(), two.step())
                assert sorted(done) == [[], ["jwt_key.created"]], "two that both take themselves for the leader"
                await agree(one, two)
                clock.pass_(PERIOD - LEAD)
                assert sorted(await asyncio.gather(one.step(), two.step())) == [[], ["jwt_key.created"]]
                await agree(one, two)
                clock.pass_(LEAD)
                await agree(one, two)
            before = await one.bundles.own(TD)
        async with opened(tmp_path / "third", postgres_url, clock) as three:
            assert await three.bundles.own(TD) == before
            await three.kid()

    async def agree(one: Keys, two: Keys) -> None:
        for _ in range(200):
            if await one.bundles.own(TD) == await two.bundles.own(TD):
                break
            await asyncio.sleep(0.02)
        assert await one.bundles.own(TD) == await two.bundles.own(TD)
        assert await one.kid() == await two.kid()

    (tmp_path / "other").mkdir()
    (tmp_path / "third").mkdir()
    asyncio.run(main())


def test_the_private_half_is_in_no_row_in_the_clear_and_must_be_the_published_one(tmp_path: Path) -> None:
    async def work(house: Keys) -> None:
        await house.step()
        row = await house.here.store.row(select(tables.jwt_key))
        assert row is not None
        assert row.key_uri.startswith("sealed:")
        assert "d" not in json.loads(row.jwk)
        other = house.here.keystore.seal(house.here.keystore.generate("file:other.key", "p256"))
        for uri in (other, "sealed:AAAA", "sealed:*é", row.key_uri[:-8], "sealed:", "file:none.key"):
            change = Change(update(tables.jwt_key).values(key_uri=uri))
            await house.here.store.ledger.commit(Write([], [change], bump=True))
            with refused(Kind.INTERNAL, row.kid):
                await house.keys.signer(TD)

    run(tmp_path, work)


def test_anchors_and_jwt_keys_count_together_in_the_sequence(tmp_path: Path) -> None:
    async def work(house: Keys) -> None:
        await house.look()
        await house.step()
        await house.here.authorities.create_root("root-2", TD, by=BY)
        await house.look()
        await house.here.authorities.retire("root-2", by=BY)
        await house.look()
        house.here.clock.pass_(PERIOD)
        await house.step()
        house.here.clock.pass_(11 * 365 * 86_400)  # the root ends, by itself
        await house.look()
        sequences = [sequence for sequence, _ in house.seen]
        assert sequences == sorted(sequences)
        assert len(set(sequences)) == 6

    run(tmp_path, work)
