"""Below the pages: roles, sessions, and the API in process. No browser and no server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from handclasp import wire
from handclasp.access.principals import SCOPES, ConsoleUser, OidcPrincipal
from handclasp.access.roles import ROLES, SCOPES_OF, Roles
from handclasp.access.sessions import Sessions
from handclasp.access.signin import Client, OidcSignIn
from handclasp.console.assets import Assets
from handclasp.console.nav import NAV, nav_for, section_of
from handclasp.console.pages.rules import token_command
from handclasp.console.picture import line_picture
from handclasp.console.render import environment, relative
from handclasp.console.table import PAGES
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables
from handclasp.wire.inventory import LineItem
from support.issuing import house

RULES = (
    "spiffe://example.org/person/alice=admin",
    "spiffe://example.org/person/*=auditor",
    "email:bob@example.org=operator",
    "claim:groups:platform=operator",
    "claim:groups:payments=team:payments+ledger",
    "claim:email:carol@example.org=team:shop",
)


@pytest.mark.parametrize(
    ("identity", "role"),
    [
        ("spiffe://example.org/person/alice", "admin"),
        ("spiffe://example.org/person/dan", "auditor"),
        ("spiffe://example.org/person/dan/laptop", None),
        ("spiffe://other.org/person/alice", None),
        ("email:bob@example.org", "operator"),
        ("email:BOB@example.org", None),
        ("claim:groups:platform", None),
    ],
)
def test_roles_of_certificates(identity: str, role: str | None) -> None:
    found = Roles(RULES).of_identity(identity)
    assert (found.name if found else None) == role


@pytest.mark.parametrize(
    ("claims", "role", "teams"),
    [
        ({"groups": ["platform"]}, "operator", set()),
        ({"groups": ["platform", "payments"]}, "operator", {"payments", "ledger"}),
        ({"groups": ["payments"], "email": "carol@example.org", "email_verified": True}, "team", {"payments", "ledger", "shop"}),
        ({"email": "carol@example.org"}, None, set()),
        ({"email": "carol@example.org", "email_verified": "true"}, None, set()),
        ({"email": ["carol@example.org"], "email_verified": False}, None, set()),
        ({"groups": "platform"}, "operator", set()),
        ({"groups": ["platformx"]}, None, set()),
        ({"groups": [["platform"]]}, None, set()),
        ({"groups": {"platform": 1}}, None, set()),
        ({}, None, set()),
    ],
)
def test_roles_of_claims(claims: dict[str, Any], role: str | None, teams: set[str]) -> None:
    roles = Roles(RULES)
    found = roles.of_held(roles.held(claims))
    assert ((found.name, set(found.teams)) if found else (None, set())) == (role, teams)


@pytest.mark.parametrize(
    "text",
    ["", "alice", "alice=admin", "spiffe://example.org/a=root", "spiffe://example.org/a=team", "spiffe://example.org/a=admin:payments",
     "claim:groups=admin", "claim::x=admin", "spiffe://*/a=admin", "spiffe://example.org/{name}=admin", "=admin"],
)  # fmt: skip
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        Roles((text,))
    assert caught.value.kind is Kind.BAD_SETTING


def test_what_roles_may() -> None:
    assert set(SCOPES_OF) == set(ROLES)
    assert all(scopes <= set(SCOPES) for scopes in SCOPES_OF.values())
    assert all(scope.endswith(":read") for role in ("auditor", "team") for scope in SCOPES_OF[role])
    assert not {"admin", "policy:write", "authorities:write", "federation:write"} & SCOPES_OF["operator"]


def test_a_session_lives_as_long_as_what_it_began_with(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, migrated_url) as here:
            clock = here.here.clock
            roles = Roles(("spiffe://example.org/prod/web=auditor", "claim:groups:platform=operator"))
            sessions = Sessions(here.here.store, here.tokens, roles, clock, idle=1800, lifetime=12 * 3600)
            token = await here.token(allow=[], profiles=[], scopes=["certificates:read"], expires="2d")
            issuing = await here.token(uses=0, expires="2d")
            begun = await sessions.begin(token, {"door": "console"})
            found = await sessions.find(begun.secret)
            assert found is not None
            assert (found.user.role, found.user.scopes, found.csrf) == ("auditor", {"certificates:read"}, begun.csrf)
            assert begun.secret not in found.csrf
            stored = await here.everything_stored()
            assert begun.secret.encode() not in stored
            for secret in ("", begun.secret[:-1], begun.secret + "x", "é" * 43, begun.csrf):
                assert await sessions.find(secret) is None
            with pytest.raises(HandclaspError) as caught:
                await sessions.begin(issuing, {})
            assert caught.value.kind is Kind.NOT_ALLOWED

            clock.pass_(1000)  # idle time begins anew with each use, but not with what a page asks by itself
            assert await sessions.find(begun.secret, active=False) is not None
            clock.pass_(799)
            assert await sessions.find(begun.secret) is not None
            clock.pass_(1799)
            assert await sessions.find(begun.secret) is not None
            clock.pass_(1801)
            assert await sessions.find(begun.secret) is None
            again = await sessions.begin(token, {})
            for _ in range(26):  # and ends all the same
                clock.pass_(1700)
                last = await sessions.find(again.secret)
            assert last is None

            bound = await here.token(allow=[], profiles=[], scopes=["certificates:read"], cidr=["10.0.0.0/8"], expires="20d")
            for there in ({"door": "console", "address": "192.0.2.1"}, {"door": "console"}):
                with pytest.raises(HandclaspError, match="not to be used from"):
                    await sessions.begin(bound, there)
            from_there = await sessions.begin(bound, {"door": "console", "address": "10.1.2.3"})
            assert await sessions.find(from_there.secret, address="::ffff:10.9.9.9") is not None
            assert await sessions.find(from_there.secret, address="192.0.2.1") is None
            assert await sessions.find(from_there.secret) is None

            revoked = await sessions.begin(token, {})
            await here.tokens.revoke(token.id, "local:test")
            assert await sessions.find(revoked.secret) is None

            holder = await here.holder(await here.issue(issuing, ttl=3600))
            by_certificate = await sessions.begin(holder, {})
            assert by_certificate.user.role == "auditor"
            await here.revoker.revoke(holder.sha256, "superseded", "", holder, _source(), any_certificate=True)
            assert await sessions.find(by_certificate.secret) is None

            person = OidcPrincipal("https://idp.example", "u-1", {"groups": ["platform"], "email": "a@example.org"}, None, 0)
            by_provider = await sessions.begin(person, {})
            assert by_provider.user.to_log() == {"kind": "console", "id": "oidc:u-1", "role": "operator"}
            rules = ("spiffe://example.org/prod/web=auditor", "claim:groups:other=operator")  # as the server is started again with
            later = Sessions(here.here.store, here.tokens, Roles(rules), clock, idle=1800, lifetime=12 * 3600)
            assert await later.find(by_provider.secret) is None
            await sessions.end(by_provider, {})
            assert await sessions.find(by_provider.secret) is None
            with pytest.raises(HandclaspError):
                await sessions.begin(OidcPrincipal("https://idp.example", "u-2", {}, None, 0), {})
            await sessions.sweep()
            clock.pass_(13 * 3600)
            await sessions.sweep()
            assert await here.here.store.rows(select(tables.session)) == []

    asyncio.run(run())


def test_a_provider_that_is_away_is_not_asked_by_everybody_who_presses_the_button() -> None:
    """Anybody may press it, signed in or not; a request for each would be one way to attack the provider."""
    asked: list[str] = []
    now = [1_800_000_000_000]

    async def fetch(url: str) -> bytes:
        asked.append(url)
        await asyncio.sleep(0)
        if now[0] < 1_800_000_010_000:
            raise HandclaspError(Kind.UNAVAILABLE, "away")
        return b'{"issuer": "https://idp.example", "authorization_endpoint": "https://idp.example/authorize"}'

    async def post(_url: str, _body: bytes, _headers: Any) -> tuple[int, bytes]:
        raise AssertionError("nothing is redeemed here")

    async def run() -> None:
        door = OidcSignIn(Client("https://idp.example", "console"), fetch, post, lambda: now[0])
        pressed = await asyncio.gather(*(door.begin("https://here/callback") for _ in range(20)), return_exceptions=True)
        assert [one.kind for one in pressed if isinstance(one, HandclaspError)] == [Kind.UNAVAILABLE] * 20
        assert len(asked) == 1
        now[0] += 10_000
        addresses = await asyncio.gather(*(door.begin("https://here/callback") for _ in range(20)))
        assert len({secret for _, secret in addresses}) == 20
        assert len(asked) == 2

    asyncio.run(run())


def _source() -> Any:
    from handclasp.issuance.request import Source

    return Source("console", "127.0.0.1")


def test_a_person_s_address_is_not_logged() -> None:
    user = ConsoleUser("certificate:email:bob@example.org", "email:bob@example.org", "operator", frozenset())
    assert "bob" not in str(user.to_log())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "now"), (-4, "now"), (-59, "59 s ago"), (90, "in 1 min"), (-7200, "2 h ago"), (86400 * 40, "in 40 d"), (86400 * 800, "in 2 y")],
)
def test_times_as_people_say_them(seconds: int, words: str) -> None:
    assert relative(1_800_000_000_000 + seconds * 1000, 1_800_000_000_000) == words


def test_names_in_templates_are_escaped_and_must_be_there() -> None:
    made = environment()
    assert made.from_string("{{ x|breakable }}").render(x="<b>a/b") == "&lt;b&gt;a/<wbr>b"
    assert made.from_string("{{ x|when(0) }}").render(x="<b>") == "&lt;b&gt;"
    with pytest.raises(Exception, match="undefined"):
        made.from_string("{{ missing }}").render()
    for name in made.list_templates():
        made.get_template(name)


def test_every_page_of_the_menu_is_there() -> None:
    known = {f"/console/{page.path}" for page in PAGES if page.method == "GET"}
    assert {address for _, items in NAV for _, address, _ in items} <= known
    assert nav_for({"log:read", "tokens:read"}.__contains__) == [
        ("Issuance", [("Tokens", "/console/tokens")]),
        ("Trust", [("Log", "/console/log")]),
    ]
    assert all(scope in SCOPES for _, items in NAV for _, _, scope in items)
    assert [section_of(path) for path in ("/console/", "/console/log/3", "/console/identity", "/console/sign-in")] == [
        "/console/", "/console/log", "/console/identities", "",
    ]  # fmt: skip


def test_assets_have_addresses_of_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("one")
    (tmp_path / "secret.txt").write_text("no")
    assets = Assets(tmp_path)
    address = assets.address("a.css")
    found = assets.find(address)
    assert found is not None
    assert found.data == b"one"
    assert assets.address("vendor/htmx.js") == ""
    for other in (address.replace("a.css", "secret.txt"), address.replace("a.css", "../a.css"), "/console/static/0/a.css", address + "/"):
        assert assets.find(other) is None


def test_the_picture_of_a_line() -> None:
    now = 1_800_000_000_000
    fields: dict[str, Any] = dict.fromkeys(wire.Certificate.__struct_fields__)
    fields |= {"sha256": "a" * 64, "origin": "issued", "state": "valid", "dns": [], "ip": [], "email": []}
    one = wire.Certificate(**(fields | {"not_before": "2027-01-15T07:00:00Z", "not_after": "2027-01-15T09:00:00Z"}))
    old = wire.Certificate(**(fields | {"state": "revoked", "not_before": "2027-01-15T05:00:00Z", "not_after": "2027-01-15T07:30:00Z"}))
    picture = line_picture([LineItem(certificate=one, sightings=[]), LineItem(certificate=old, sightings=[])], now)
    assert picture is not None
    assert [bar.tone for bar in picture.bars] == ["good", "bad"]
    assert all(bar.left >= 0 and bar.left + bar.width <= 100 for bar in picture.bars)
    assert picture.bars[1].left < picture.bars[0].left
    assert picture.now is not None
    assert 2 <= len(picture.ticks) <= 7
    assert line_picture([], now) is None


def test_the_command_of_a_token_is_quoted() -> None:
    request = {"name": "web", "allow": ["spiffe://example.org/prod/**"], "owner": "it's us; rm -rf", "uses": 0, "renew": False}
    assert token_command(request) == (
        """handclasp token create web --allow 'spiffe://example.org/prod/**' --uses 0 --owner 'it'"'"'s us; rm -rf' --no-renew"""
    )
