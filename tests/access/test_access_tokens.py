"""Tokens: golden bytes, what cannot be made, and their life in a store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.access.tokengrant import TokenGrant
from handclasp.access.tokens import Tokens, new_token
from handclasp.errors import HandclaspError, Kind
from handclasp.store.database import Store
from handclasp.store.writes import Write
from handclasp.wire import TokenRequest
from support.access import NOW, certificate, or_refused, token

WEB = ["spiffe://td/prod/web"]


def counted() -> Callable[[int], bytes]:
    """Return a source of bytes that are all different and the same each time."""
    calls = iter(range(1_000_000))
    return lambda size: hashlib.sha512(str(next(calls)).encode()).digest()[:size]


def request(**changes: Any) -> TokenRequest:
    known: dict[str, Any] = {"name": "web", "allow": WEB, "profiles": ["workload"]}
    return TokenRequest(**(known | changes))


def make(by: Any = "local:test", **changes: Any) -> tuple[dict[str, Any], str]:
    return new_token(request(**changes), now=NOW, random=counted(), created_by=by)


# --- stored and shown forms -------------------------------------------------------------------------------------------------------------

GOLDEN = (
    '{"v":1,"allow":["spiffe://td/a"],"allow_dns":["a.example.org"],"allow_ip":["10.0.0.0/8"],"allow_email":["*@example.org"],'
    '"profiles":["workload"],"max_ttl_ms":3600000,"cidr":["192.0.2.0/24"],"csr_hash":"' + "ab" * 32 + '","renew":true,"agent":true,'
    '"labels":{"a":"1","b":"2"},"scopes":["log:read"]}'
)


def test_the_stored_form_does_not_change() -> None:
    full = TokenGrant(
        v=1, allow=("spiffe://td/a",), allow_dns=("a.example.org",), allow_ip=("10.0.0.0/8",), allow_email=("*@example.org",),
        profiles=("workload",), max_ttl_ms=3_600_000, cidr=("192.0.2.0/24",), csr_hash="ab" * 32, renew=True, agent=True,
        labels={"b": "2", "a": "1"}, scopes=("log:read",),
    )  # fmt: skip
    assert full.to_json() == GOLDEN
    assert TokenGrant.from_json(GOLDEN) == full
    assert TokenGrant(v=1).to_json() == '{"v":1}'
    assert TokenGrant.from_json('{"v":1}').to_grant("a").profiles == frozenset()
    assert not TokenGrant.from_json('{"v":1}').renew


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"v":2}', '{"v":"1"}', '{"v":1,"allow":"x"}', "\ud800", '{"v":1,"max_ttl_ms":1.5}'])
def test_a_stored_grant_that_was_not_written_here_is_no_grant(text: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        TokenGrant.from_json(text.encode("utf-8", "surrogatepass"))
    assert caught.value.kind is Kind.INTERNAL


def test_a_new_token() -> None:
    row, text = make(uses=3, expires="1h", max_ttl="24h", owner="team-web")
    assert text == "hct_h6xyyqpjftu3x4d4_TfQFl-ymzxmAZJ1U-45hYd-sOLC2rRzSo0MXAWCcdRA" or len(text) == 64
    kind, token_id, secret = text.split("_", 2)
    assert (kind, len(token_id), len(secret)) == ("hct", 16, 43)
    assert row["secret_sha256"] == hashlib.sha256(secret.encode()).digest()
    assert secret not in repr(row)
    assert (row["uses"], row["used"], row["created_at"], row["expires_at"]) == (3, 0, NOW, NOW + 3_600_000)
    assert row["grant"] == '{"v":1,"allow":["spiffe://td/prod/web"],"profiles":["workload"],"max_ttl_ms":86400000,"renew":true}'


MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("a bad pattern", {"allow": ["spiffe://*/a"]}),
    ("a placeholder, which nothing fills", {"allow": ["spiffe://td/{x}"]}),
    ("a placeholder in a host", {"allow_dns": ["{x}.example.org"]}),
    ("a bad network", {"cidr": ["10.0.0.1/8"]}),
    ("names without a profile", {"profiles": []}),
    ("names and scopes", {"scopes": ["log:read"]}),
    ("scopes and a number of certificates", {"allow": [], "profiles": [], "scopes": ["log:read"], "uses": 3}),
    ("a scope that does not exist", {"allow": [], "profiles": [], "scopes": ["everything"]}),
    ("the agent profile without being for agents", {"profiles": ["agent"]}),
    ("labels without being for agents", {"labels": {"a": "b"}}),
    ("a label without a name", {"agent": True, "labels": {"": "b"}}),
    ("no time at all", {"expires": "0s"}),
    ("for ever", {"expires": "9999d"}),
    ("a duration that is none", {"expires": "soon"}),
    ("a lifetime that is nothing", {"max_ttl": "0s"}),
]


@pytest.mark.parametrize("changes", [case[1] for case in MISTAKES], ids=[case[0] for case in MISTAKES])
def test_a_token_that_makes_no_sense_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(HandclaspError) as caught:
        make(**changes)
    assert caught.value.kind is Kind.BAD_REQUEST


def test_nobody_gives_away_a_scope_that_they_do_not_hold() -> None:
    wanted = {"allow": [], "profiles": [], "scopes": ["log:read"]}
    for by in (token(scopes=frozenset({"tokens:write"})), certificate(is_agent=True)):
        with pytest.raises(HandclaspError) as caught:
            make(by, **wanted)
        assert caught.value.kind is Kind.NOT_ALLOWED
    for by in ("local:up", token(scopes=frozenset({"log:read"})), token(scopes=frozenset({"admin"}))):
        make(by, **wanted)
    with pytest.raises(HandclaspError):
        make(token(scopes=frozenset({"tokens:write", "log:read"})), **wanted | {"scopes": ["log:read", "admin"]})


# --- in a store -------------------------------------------------------------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def run(url: str, test: Callable[[Store, Tokens, Time], Awaitable[None]]) -> None:
    """Run a test with a store of its own."""

    async def inside() -> None:
        time = Time()
        store = await Store.open(url, time)
        try:
            await test(store, Tokens(store, time), time)
        finally:
            await store.close()

    asyncio.run(inside())


async def refused(call: Awaitable[Any]) -> Kind:
    with pytest.raises(HandclaspError) as caught:
        await call
    return caught.value.kind


def test_the_life_of_a_token(database_url: str) -> None:
    async def life(store: Store, tokens: Tokens, time: Time) -> None:
        made = await tokens.create(request(owner="team-web", uses=2, cidr=["10.0.0.0/8"], csr_hash="ab" * 32), "local:test")
        principal = await tokens.authenticate(made.token)
        assert principal is await tokens.authenticate(made.token)
        assert (principal.id, principal.name, principal.owner, principal.uses) == (made.id, "web", "team-web", 2)
        assert principal.csr_sha256 == b"\xab" * 32
        assert principal.grant.name == f"token:{made.id}"
        assert made.token[-43:] not in repr(principal)
        assert await tokens.grant_of(f"token:{made.id}") == principal.grant

        shown = await tokens.show(made.id)
        assert (shown.state, shown.used, shown.last_used_at, shown.allow, shown.cidr) == ("active", 0, None, WEB, ["10.0.0.0/8"])
        await store.ledger.commit(Write(entries=[], spend_token=made.id))
        await store.ledger.commit(Write(entries=[], spend_token=made.id))
        assert await refused(store.ledger.commit(Write(entries=[], spend_token=made.id))) is Kind.TOKEN_SPENT
        assert (await tokens.show(made.id)).state == "spent"

        assert await tokens.revoke(made.id, principal) == 1
        assert await refused(tokens.authenticate(made.token)) is Kind.TOKEN_REVOKED
        assert await tokens.grant_of(f"token:{made.id}") is None
        assert await refused(store.ledger.commit(Write(entries=[], spend_token=made.id))) is Kind.TOKEN_REVOKED
        assert await refused(tokens.revoke(made.id, principal)) is Kind.CONFLICT
        assert (await tokens.show(made.id)).state == "revoked"

    run(database_url, life)


def test_what_is_not_a_token(database_url: str) -> None:
    async def strangers(store: Store, tokens: Tokens, time: Time) -> None:
        made = await tokens.create(request(), "local:test")
        wrong = made.token[:-1] + ("A" if made.token[-1] != "A" else "B")
        for text in (
            wrong,
            made.token + "A",
            made.token[:-1],
            made.token.upper(),
            " " + made.token,
            "",
            "hct__",
            "hct_" + "a" * 16 + "_" + "b" * 43,
        ):
            assert await refused(tokens.authenticate(text)) is Kind.TOKEN_UNKNOWN
        # Who has not got the secret does not learn that the token expired or was revoked.
        time.now += 3_600_000
        assert await refused(tokens.authenticate(wrong)) is Kind.TOKEN_UNKNOWN
        assert await refused(tokens.authenticate(made.token)) is Kind.TOKEN_EXPIRED
        await tokens.revoke(made.id, "local:test")
        assert await refused(tokens.authenticate(wrong)) is Kind.TOKEN_UNKNOWN
        for name in ("token:" + "a" * 16, "policy:web", "token:", "", "token:' OR 1=1"):
            assert await tokens.grant_of(name) is None
        assert await refused(tokens.show("a" * 16)) is Kind.NOT_FOUND
        assert await refused(tokens.revoke("a" * 16, "local:test")) is Kind.NOT_FOUND

    run(database_url, strangers)


def test_nobody_revokes_a_token_with_a_scope_that_they_do_not_hold(database_url: str) -> None:
    """Regression: tokens:write took the administrator's token away."""

    async def revoking(store: Store, tokens: Tokens, time: Time) -> None:
        async def made(*scopes: str) -> Any:
            names = {} if scopes else {"allow": WEB}
            wanted = {"name": "x", "expires": "1h", **names, **({"scopes": [*scopes]} if scopes else {"profiles": ["workload"]})}
            return await tokens.create(TokenRequest(**wanted), "local:test")

        writer = await tokens.authenticate((await made("tokens:write", "log:read")).token)
        for scopes in (("admin",), ("policy:write",), ("log:read", "certificates:revoke")):
            assert await refused(tokens.revoke((await made(*scopes)).id, writer)) is Kind.NOT_ALLOWED
        for scopes in ((), ("log:read",), ("tokens:write", "log:read")):
            await tokens.revoke((await made(*scopes)).id, writer)
        admin = await tokens.authenticate((await made("admin")).token)
        await tokens.revoke((await made("admin")).id, admin)
        await tokens.revoke((await made("policy:write")).id, admin)
        await tokens.revoke(admin.id, "local:test")

    run(database_url, revoking)


def test_an_expired_token_still_carries_renewals(tmp_path: Any) -> None:
    async def expired(store: Store, tokens: Tokens, time: Time) -> None:
        made = await tokens.create(request(expires="1s"), "local:test")
        time.now += 1000
        assert await refused(tokens.authenticate(made.token)) is Kind.TOKEN_EXPIRED
        grant = await tokens.grant_of(f"token:{made.id}")
        assert grant is not None
        assert grant.renew

    run(f"sqlite:///{tmp_path / 'a.db'}", expired)


def test_a_revocation_in_another_process_is_seen(tmp_path: Any) -> None:
    async def elsewhere(store: Store, tokens: Tokens, time: Time) -> None:
        made = await tokens.create(request(), "local:test")
        await tokens.authenticate(made.token)
        await Tokens(store, time).revoke(made.id, "local:test")  # its own cache is another one; the store's generation tells
        assert await refused(tokens.authenticate(made.token)) is Kind.TOKEN_REVOKED

    run(f"sqlite:///{tmp_path / 'a.db'}", elsewhere)


def test_everything_is_logged_and_no_secret_is(tmp_path: Any) -> None:
    async def logged(store: Store, tokens: Tokens, time: Time) -> None:
        made = await tokens.create(request(owner="someone@example.org"), "local:up")
        await tokens.revoke(made.id, token(name="boss"))
        created, revoked = [msgspec.json.decode(data) for data in await store.entries(0, 10)]
        assert (created["type"], created["who"]) == ("token.created", {"kind": "local", "id": "local:up"})
        assert created["what"]["grant"]["allow"] == WEB
        assert (revoked["type"], revoked["who"]["name"], revoked["what"]) == ("token.revoked", "boss", {"token": made.id})
        everything = b"".join(await store.entries(0, 10))
        assert made.token[-43:].encode() not in everything
        assert b"someone@" not in everything

    run(f"sqlite:///{tmp_path / 'a.db'}", logged)


def test_lists(database_url: str) -> None:
    async def lists(store: Store, tokens: Tokens, time: Time) -> None:
        names = []
        for number in range(7):
            time.now += number % 2  # some have the same time
            names.append((await tokens.create(request(name=f"t{number}", owner="a" if number < 3 else "b"), "local:test")).id)
        seen: list[str] = []
        cursor = None
        while True:
            page = await tokens.list(3, cursor)
            assert len(page.items) <= 3
            seen += [item.id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(seen) == sorted(names)
        assert len((await tokens.list(filters={"owner": "a"})).items) == 3
        assert [item.name for item in (await tokens.list(filters={"name": "t4"})).items] == ["t4"]
        await tokens.revoke(names[0], "local:test")
        await store.ledger.commit(Write(entries=[], spend_token=names[1]))
        for state, count in (("active", 5), ("spent", 1), ("revoked", 1), ("expired", 0)):
            page = await tokens.list(filters={"state": state})
            assert ([item.state for item in page.items], page.next_cursor) == ([state] * count, None)
        time.now += 3_600_000
        assert len((await tokens.list(filters={"state": "expired"})).items) == 6
        for bad in (
            {"limit": 0},
            {"limit": 1001},
            {"cursor": "x"},
            {"cursor": ""},
            {"filters": {"state": "x"}},
            {"filters": {"grant": "x"}},
        ):
            assert await refused(tokens.list(**bad)) is Kind.BAD_REQUEST  # type: ignore[arg-type]

    run(database_url, lists)


@given(st.text(max_size=80))
def test_any_text_is_a_cursor_or_a_refusal(text: str) -> None:
    from handclasp.access.tokens import _read_cursor

    with or_refused(Kind.BAD_REQUEST):
        _read_cursor(text)


TEXTS = st.lists(st.text(max_size=20), max_size=2)


@given(TEXTS, TEXTS, TEXTS, TEXTS, st.text(max_size=6), st.lists(st.sampled_from(["admin", "log:read", "x"]), max_size=2), st.booleans())
def test_any_request_is_a_token_or_a_refusal(
    allow: list[str], dns: list[str], email: list[str], cidr: list[str], ttl: str, scopes: list[str], agent: bool
) -> None:
    asked = TokenRequest(name="a", allow=allow, allow_dns=dns, allow_email=email, cidr=cidr, max_ttl=ttl, scopes=scopes, agent=agent)
    with or_refused(Kind.BAD_REQUEST, Kind.NOT_ALLOWED):
        new_token(asked, now=NOW, random=counted(), created_by=token())
