"""Federated bundles under a clock that the test moves, with endpoints that answer what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.authority.jwtkeys import JwtKeys
from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import parse_entry
from handclasp.pki import chains
from handclasp.pki.bundles import MAX_BUNDLE, SpiffeBundle, jwk_of, parse_spiffe_bundle, spiffe_bundle
from handclasp.trust.bundles import Bundles
from handclasp.trust.federation import SHORTEST, Endpoint, Federation, Peer, newer
from support.authorities import key_of, make_authority
from support.errors import refused
from support.installation import BY, Installation, installation

OURS, TD = "example.org", "partner.example"
URL = "https://spiffe.partner.example/bundle"
ENDPOINT = f"spiffe://{TD}/handclasp/server"
ROOT = make_authority("p256", trust_domain=TD).root
OTHER = make_authority("p384", trust_domain=TD).root
KEY = jwk_of(key_of("p256", 21).public_key())


def bundle(*roots: bytes, sequence: int | None = 1, hint: int = 300, jwt: bool = True) -> bytes:
    return spiffe_bundle(roots, sequence, hint, [("k", KEY)] if jwt else [])


@dataclass
class World:
    here: Installation
    answer: bytes | Exception = b""
    asked: list[Endpoint] = field(default_factory=list)
    during: Callable[[], Awaitable[Any]] | None = None

    def __post_init__(self) -> None:
        self.federation = Federation(self.here.store, self.here.authorities, self.here.clock, self.fetch)
        keys = JwtKeys(self.here.store, self.here.keystore, self.here.clock)
        self.bundles = Bundles(self.here.store, self.here.authorities, keys)

    async def fetch(self, endpoint: Endpoint) -> bytes:
        self.asked.append(endpoint)
        if self.during is not None:
            await self.during()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def add(self, **changes: Any) -> Peer:
        known: dict[str, Any] = {"url": URL, "profile": "https_web", "endpoint_id": None, "bundle": None, "by": BY}
        return (await self.federation.put(changes.pop("trust_domain", TD), **(known | changes)))[0]

    async def types(self) -> list[str]:
        entries = [parse_entry(data) for data in await self.here.store.entries(0, 10_000)]
        return [entry["type"].removeprefix("federation.") for entry in entries if entry["type"].startswith("federation.")]


@asynccontextmanager
async def world(directory: Path, url: str = "") -> AsyncIterator[World]:
    async with installation(directory, url) as here:
        await here.authorities.create_root("root", OURS, by=BY)
        yield World(here)


def run(directory: Path, work: Callable[[World], Awaitable[None]], url: str = "") -> None:
    async def main() -> None:
        async with world(directory, url) as made:
            await work(made)

    asyncio.run(main())


def test_from_added_to_removed(tmp_path: Path, migrated_url: str) -> None:
    async def work(world: World) -> None:
        peer = await world.add()
        assert (peer.state(world.here.clock()), peer.sequence, peer.tried_at) == ("waiting", None, None)
        with refused(Kind.NOT_FOUND, "not been fetched"):
            await world.bundles.spiffe(TD)
        world.answer = bundle(ROOT, sequence=5, hint=600)
        [peer] = await world.federation.poll()
        assert (peer.state(world.here.clock()), peer.sequence, peer.refresh_hint, peer.problem) == ("ok", 5, 600, None)
        assert world.asked == [Endpoint(URL, None)]
        assert await world.bundles.spiffe(TD) == world.answer, "handed on as it came"
        assert chains.split_pem(await world.bundles.pem(TD)) == [ROOT]
        with refused(Kind.NOT_FOUND):
            await world.bundles.own(TD)
        assert TD not in await world.bundles.pem(OURS)
        assert ROOT not in chains.split_pem(await world.bundles.pem(OURS)), "bundles of two trust domains are never merged"
        await world.federation.poll()
        assert len(world.asked) == 1, "not before its time"
        world.answer = bundle(ROOT, OTHER, sequence=6)
        world.here.clock.pass_(600)
        [peer] = await world.federation.poll()
        assert (peer.sequence, len(peer.read().authorities)) == (6, 2)
        world.here.clock.pass_(300)
        await world.federation.poll()
        await world.federation.remove(TD, by=BY)
        for gone in (world.bundles.spiffe(TD), world.federation.refresh(TD), world.federation.remove(TD, by=BY)):
            with refused(Kind.NOT_FOUND):
                await gone
        assert await world.types() == ["added", "changed", "changed", "removed"], "a fetch that brings nothing new is no entry"

    run(tmp_path, work, migrated_url if migrated_url.startswith("postgresql") else "")


REFUSED: list[tuple[str, dict[str, Any], Kind]] = [
    ("no trust domain", {"trust_domain": "Partner"}, Kind.BAD_NAME),
    ("our own", {"trust_domain": OURS}, Kind.CONFLICT),
    ("plain http", {"url": "http://spiffe.partner.example/"}, Kind.NOT_ALLOWED),
    ("loopback", {"url": "https://127.0.0.1/"}, Kind.NOT_ALLOWED),
    ("a metadata service", {"url": "https://169.254.169.254/"}, Kind.NOT_ALLOWED),
    ("a file", {"url": "file:///etc/passwd"}, Kind.NOT_ALLOWED),
    ("a password in it", {"url": "https://a:b@partner.example/"}, Kind.NOT_ALLOWED),
    ("another profile", {"profile": "http"}, Kind.BAD_REQUEST),
    ("https_web with an ID", {"endpoint_id": ENDPOINT}, Kind.BAD_REQUEST),
    ("https_spiffe without an ID", {"profile": "https_spiffe", "bundle": chains.to_pem(ROOT)}, Kind.BAD_REQUEST),
    ("https_spiffe without a bundle", {"profile": "https_spiffe", "endpoint_id": ENDPOINT}, Kind.BAD_REQUEST),
    ("a bundle without anchors", {"profile": "https_spiffe", "endpoint_id": ENDPOINT, "bundle": '{"keys": []}'}, Kind.BAD_REQUEST),
    ("an ID elsewhere", {"profile": "https_spiffe", "endpoint_id": f"spiffe://{OURS}/x", "bundle": chains.to_pem(ROOT)}, Kind.BAD_REQUEST),
    ("an ID without a path", {"profile": "https_spiffe", "endpoint_id": f"spiffe://{TD}", "bundle": chains.to_pem(ROOT)}, Kind.BAD_NAME),
    ("a bundle that is none", {"bundle": "{"}, Kind.BAD_CERTIFICATE),
]


@pytest.mark.parametrize(("changes", "kind"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_federated(tmp_path: Path, changes: dict[str, Any], kind: Kind) -> None:
    async def work(world: World) -> None:
        with refused(kind):
            await world.add(**changes)
        assert await world.federation.all() == []
        assert await world.types() == []

    run(tmp_path, work)


BAD: list[tuple[str, bytes | Exception, str]] = [
    ("nobody there", HandclaspError(Kind.UNAVAILABLE, "it cannot be reached"), "cannot be reached"),
    ("not itself", HandclaspError(Kind.VERIFY_FAILED, "the endpoint shows another name"), "another name"),
    ("too slow", TimeoutError(), "in time"),
    ("garbage", b"<html>", "not a JSON object"),
    ("a bundle map", json.dumps({"trust_domains": {TD: {"keys": []}}}).encode(), "no list of keys"),
    ("huge", b" " * (MAX_BUNDLE + 1), "more than"),
    ("an older one with other keys", bundle(OTHER, sequence=4), "went back"),
    ("a broken anchor", b'{"keys": [{"kty": "EC", "use": "x509-svid", "x5c": ["AAAA"]}]}', "anchor"),
]


@pytest.mark.parametrize("profile", ["https_web", "https_spiffe"])
@pytest.mark.parametrize(("answer", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_answer_leaves_the_last_good_bundle(tmp_path: Path, answer: bytes | Exception, words: str, profile: str) -> None:
    async def work(world: World) -> None:
        spiffe: dict[str, Any] = {"profile": profile, "endpoint_id": ENDPOINT, "bundle": chains.to_pem(OTHER)}
        await world.add(**(spiffe if profile == "https_spiffe" else {}))
        good = world.answer = bundle(ROOT, sequence=5)
        await world.federation.refresh(TD)
        before = await world.types()
        world.here.clock.pass_(60)
        world.answer = answer
        peer = await world.federation.refresh(TD)
        assert peer.problem is not None
        assert words in peer.problem
        assert (peer.sequence, peer.bundle.encode(), peer.fetched_at) == (5, good, world.here.clock() - 60_000)
        assert await world.bundles.spiffe(TD) == good
        assert await world.types() == before
        world.here.clock.pass_(3 * 300)
        assert peer.state(world.here.clock()) == "stale"
        world.answer = bundle(ROOT, OTHER, sequence=6)
        peer = await world.federation.refresh(TD)
        assert (peer.problem, peer.sequence, peer.state(world.here.clock())) == (None, 6, "ok")
        if profile == "https_spiffe":  # with what it began with first, and with what was last fetched from then on
            assert [one.anchors for one in world.asked] == [(OTHER,), (ROOT,), (ROOT,)]
            assert {one.endpoint_id for one in world.asked} == {ENDPOINT}

    run(tmp_path, work)


def test_retries_come_soon_and_then_ever_less_often(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.add()
        world.answer = HandclaspError(Kind.UNAVAILABLE, "away")
        clock, began = world.here.clock, world.here.clock()
        times: list[float] = []
        while clock() < began + 7200_000:
            count = len(world.asked)
            await world.federation.poll()
            if len(world.asked) > count:
                times.append((clock() - began) / 1000)
            clock.pass_(1)
        gaps = [after - before for before, after in pairwise(times)]
        assert 5 <= gaps[0] <= 11
        assert max(gaps) <= 301, "never less often than a bundle that is well"
        assert min(gaps[6:]) >= 150
        assert len(set(gaps[6:])) > 1, "drawn each time"

    run(tmp_path, work)


def test_a_publishers_hint_is_kept_within_bounds(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.add()
        for hint, shortest, longest in ((0, SHORTEST * 0.9, SHORTEST), (1000, 900, 1000), (365 * 86_400, 86_400 * 0.9, 86_400)):
            world.answer = bundle(ROOT, hint=hint)
            await world.federation.refresh(TD)
            count = len(world.asked)
            world.here.clock.pass_(shortest - 0.01)
            await world.federation.poll()
            assert len(world.asked) == count
            world.here.clock.pass_(longest - shortest + 0.01)
            await world.federation.poll()
            assert len(world.asked) == count + 1

    run(tmp_path, work)


def test_one_that_hangs_keeps_no_other_waiting_and_a_clock_set_back_stops_nothing(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        for number in range(12):
            await world.add(trust_domain=f"p{number}.example")
        world.answer = bundle(jwt=False)
        peers = await world.federation.poll()
        assert [peer.problem for peer in peers] == [None] * 12
        world.here.clock.pass_(-86_400)
        await world.federation.poll()
        assert len(world.asked) == 24

    run(tmp_path, work)


def test_everything_revoked_is_a_bundle_too_and_then_https_spiffe_needs_a_new_start(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.add(profile="https_spiffe", endpoint_id=ENDPOINT, bundle=chains.to_pem(ROOT))
        assert chains.split_pem(await world.bundles.pem(TD)) == [ROOT], "what it begins with counts at once"
        world.answer = bundle(jwt=False)
        peer = await world.federation.refresh(TD)
        assert (peer.problem, peer.read().authorities) == (None, ())
        assert await world.bundles.pem(TD) == ""
        peer = await world.federation.refresh(TD)
        assert "no anchor left" in str(peer.problem)
        assert len(world.asked) == 1
        await world.add(profile="https_spiffe", endpoint_id=ENDPOINT, bundle=bundle(OTHER, sequence=0).decode())
        world.answer = bundle(OTHER, sequence=1)
        assert (await world.federation.refresh(TD)).problem is None

    run(tmp_path, work)


def test_what_was_changed_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.add()
        world.answer = bundle(ROOT)
        world.during = lambda: world.add(url="https://new.partner.example/", bundle=chains.to_pem(OTHER))
        peer = await world.federation.refresh(TD)
        assert (peer.url, peer.read().authorities, peer.tried_at) == ("https://new.partner.example/", (OTHER,), None)
        world.during = lambda: world.federation.remove(TD, by=BY)
        with refused(Kind.NOT_FOUND):
            await world.federation.refresh(TD)
        assert await world.federation.all() == []

    run(tmp_path, work)


def test_a_trust_domain_that_became_ours_is_not_fetched_and_ours_is_served(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.add(bundle=chains.to_pem(ROOT))
        await world.here.authorities.create_root("late", TD, by=BY)
        [peer] = await world.federation.poll()
        assert "served here" in str(peer.problem)
        assert world.asked == []
        assert chains.split_pem(await world.bundles.pem(TD)) == [world.here.authorities.find("late").der]

    run(tmp_path, work)


SEQUENCES = st.none() | st.integers(0, 5)
CONTENTS = st.frozensets(st.sampled_from([ROOT, OTHER]))


@given(SEQUENCES, CONTENTS, SEQUENCES, CONTENTS)
def test_other_keys_never_come_with_a_lower_number(
    old: int | None, before: frozenset[bytes], new: int | None, after: frozenset[bytes]
) -> None:
    known, found = SpiffeBundle(tuple(before), sequence=old), SpiffeBundle(tuple(after), sequence=new)
    goes_back = old is not None and new is not None and new < old
    assert (newer(known, found) is not None) == (goes_back and before != after)


def test_what_everybody_may_ask_for_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher can make a bundle that takes long to read, and anybody can ask for its anchors as often as he likes."""
    reads = 0

    def counted(data: bytes, trust_domain: str) -> SpiffeBundle:
        nonlocal reads
        reads += 1
        return parse_spiffe_bundle(data, trust_domain)

    monkeypatch.setattr("handclasp.trust.bundles.parse_spiffe_bundle", counted)

    async def work(world: World) -> None:
        await world.add()
        world.answer = bundle(ROOT, sequence=1)
        await world.federation.poll()
        for _ in range(20):
            assert chains.split_pem(await world.bundles.pem(TD)) == [ROOT]
        assert reads == 1
        world.answer = bundle(OTHER, sequence=2)
        await world.federation.refresh(TD)
        assert chains.split_pem(await world.bundles.pem(TD)) == [OTHER], "and never what was there before"
        await world.federation.remove(TD, by=BY)
        with refused(Kind.NOT_FOUND):
            await world.bundles.pem(TD)

    run(tmp_path, work)
