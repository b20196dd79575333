"""The inventory through real HTTP: lists, one identity, views, exports that are whole or seen to be broken."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from handclasp.access.principals import SCOPES
from handclasp.api.routes import Route, Streamed
from handclasp.api.streams import begin, stream
from handclasp.client.api import ApiClient
from handclasp.errors import HandclaspError, Kind
from support.live import Client, Live

PREFIX = "spiffe://example.org/inv"


def path_of(identity: str, more: str = "") -> str:
    return f"/v1/identities/{quote(identity, safe='')}{more}"


def test_one_identity_tells_whose_it_is_who_may_have_it_and_what_to_do(live: Live, admin: Client) -> None:
    identity = f"{PREFIX}/detail/web"
    holder = live.holder(identity)
    token = live.create_token(allow=[f"{PREFIX}/detail/*"], profiles=["workload"], uses=3, owner="team-detail")
    detail = admin.get(path_of(identity))
    assert (detail["identity"]["identity"], detail["identity"]["newest"], detail["identity"]["state"]) == (identity, holder.sha256, "ok")
    (item,) = detail["line"]
    assert item["certificate"]["sha256"] == holder.sha256
    grants = {one["grant"]: one for one in detail["grants"]}
    assert grants[f"token:{token['id']}"]["uses_left"] == 3
    kinds = {step["kind"] for step in detail["next_steps"]}
    assert ("unowned" in kinds) == (detail["identity"]["owner"] is None)
    assert detail["log_subject"] == f"identity:{identity}"
    admin("GET", path_of(f"{PREFIX}/detail/none")).refused(Kind.NOT_FOUND)


def test_the_servers_own_certificate_needs_no_grant(admin: Client) -> None:
    detail = admin.get(path_of("spiffe://example.org/handclasp/server"))
    (grant,) = (one for one in detail["grants"] if one["grant"] == "server")  # beside tokens of other tests that allow any name
    assert grant["renew"] is True
    assert "its own" in grant["who"]
    assert "no_grant" not in {step["kind"] for step in detail["next_steps"]}


def test_lineage_is_the_line_in_order(live: Live, admin: Client) -> None:
    from handclasp.client.csr import new_request

    identity = f"{PREFIX}/lineage"
    holder = live.holder(identity)
    with live.client(None, holder) as client:
        csr = new_request("p256", identity=None)[1]
        renewed = client("POST", f"/v1/certificates/{holder.sha256}:renew", {"csr": csr}).ok(201)
    items = [item["certificate"] for item in admin.get(path_of(identity, ":lineage"))["items"]]
    by_generation = {one["generation"]: one for one in items}
    assert {g: one["sha256"] for g, one in by_generation.items()} == {0: holder.sha256, 1: renewed["sha256"]}
    assert (by_generation[1]["predecessor"], by_generation[0]["superseded_by"]) == (holder.sha256, renewed["sha256"])
    assert by_generation[0]["granted_by"] == by_generation[1]["granted_by"]
    page = admin.get(path_of(identity, ":lineage"), limit=1)
    assert len(page["items"]) == 1
    rest = admin.get(path_of(identity, ":lineage"), limit=1, cursor=page["next_cursor"])
    assert {page["items"][0]["certificate"]["sha256"], rest["items"][0]["certificate"]["sha256"]} == {
        one["sha256"] for one in by_generation.values()
    }


def test_views_are_checked_kept_and_removed(admin: Client) -> None:
    body = {"name": "ending soon", "list": "certificates", "query": "?sort=expires&state=valid&expires_before=7d"}
    saved = admin("POST", "/v1/views", body).ok(201)
    assert saved["query"] == "expires_before=7d&sort=expires&state=valid"
    assert [one["name"] for one in admin.get("/v1/views")["items"] if one["id"] == saved["id"]] == ["ending soon"]
    admin("POST", "/v1/views", body).refused(Kind.CONFLICT)
    for wrong in ("state=lost", "colour=red", "state=valid&state=expired", "%ff=1", "nonsense"):
        admin("POST", "/v1/views", {**body, "name": "wrong", "query": wrong}).refused(Kind.BAD_REQUEST)
    admin("POST", "/v1/views", {**body, "name": "wrong", "list": "tokens"}).refused(Kind.BAD_REQUEST)
    assert admin("DELETE", f"/v1/views/{saved['id']}").ok()["name"] == "ending soon"
    admin("DELETE", f"/v1/views/{saved['id']}").refused(Kind.NOT_FOUND)


def test_filters_say_what_is_wrong_with_them(admin: Client) -> None:
    for path in ("/v1/certificates", "/v1/identities", "/v1/certificates:export"):
        answer = admin("GET", f"{path}?expires_before=soon")
        answer.refused(Kind.BAD_REQUEST)
        assert "expires_before: " in answer.text
    admin("GET", "/v1/certificates?cursor=WzEsMl0").refused(Kind.BAD_REQUEST)
    admin("GET", "/v1/certificates:export?format=xml").refused(Kind.BAD_REQUEST)
    admin("GET", f"/v1/certificates/{'0' * 64}?expand=all").refused(Kind.BAD_REQUEST)


def test_states_and_empty_lists(admin: Client) -> None:
    found = admin.get("/v1/standings")["items"]
    assert [one["standing"] for one in found][:2] == ["unissued", "revoked_served"]
    assert all(one["count"] >= 0 and one["title"] and one["meaning"] for one in found)
    assert admin.get("/v1/locations", source="none-such") == {"items": [], "next_cursor": None}
    admin("GET", "/v1/locations/999999").refused(Kind.NOT_FOUND)
    admin("GET", f"/v1/locations/{10**17}").refused(Kind.NOT_FOUND)


def test_the_wider_scope_holds_the_narrower(live: Live) -> None:
    assert {"inventory:read", "certificates:read"} <= SCOPES.keys()
    with live.client(live.token("inventory:read")) as client:
        assert client("GET", "/v1/certificates").status == 200
        assert client("GET", "/v1/standings").status == 200
    with live.client(live.token("certificates:read")) as client:
        assert client("GET", "/v1/certificates").status == 200
        client("GET", "/v1/certificates:export").refused(Kind.NOT_ALLOWED)


@pytest.mark.parametrize("format_", ["csv", "json", "cbom"])
def test_an_export_is_streamed_whole(live: Live, admin: Client, format_: str) -> None:
    holders = [live.holder(f"{PREFIX}/export/{format_}-{number}") for number in range(2)]
    client = ApiClient(live.facts["https"], ca=live.facts["ca_file"], token=live.admin_token)
    params = {"format": format_, "spiffe": f"{PREFIX}/export"}
    data = b"".join(client.stream("/v1/certificates:export", params)).decode()
    client.close()
    assert all(holder.sha256 in data for holder in holders)
    if format_ != "csv":
        json.loads(data)
    answer = admin("GET", f"/v1/certificates:export?format={format_}")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    with pytest.raises(HandclaspError) as caught:
        list(ApiClient(live.facts["https"], ca=live.facts["ca_file"]).stream("/v1/certificates:export"))
    assert caught.value.kind is Kind.NOT_AUTHENTICATED


def test_a_reader_that_leaves_an_export_takes_nothing_with_it(live: Live, admin: Client) -> None:
    live.holder(f"{PREFIX}/leaving")
    parts = urlsplit(live.facts["https"])
    for _ in range(3):
        context = ssl.create_default_context(cafile=live.facts["ca_file"])
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, context=context, timeout=10)
        connection.request("GET", "/v1/certificates:export", headers={"Authorization": f"Bearer {live.admin_token}"})
        connection.getresponse().read1(10)
        connection.close()
    assert admin("GET", "/v1/standings").status == 200


# --- the stream itself --------------------------------------------------------------------------------------------------------------------


class Wire:
    """An ASGI server's two ends, with a reader that may leave."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self._leaves_after = leaves_after
        self._left = asyncio.Event()

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))
        if self._leaves_after is not None and len(self.sent) > self._leaves_after:
            self._left.set()
        await asyncio.sleep(0)

    async def receive(self) -> Any:
        await self._left.wait()
        return {"type": "http.disconnect"}

    @property
    def is_whole(self) -> bool:
        return not self.sent[-1].get("more_body", False) and self.sent[-1]["type"] == "http.response.body"


async def _never(_call: Any) -> Any:
    raise AssertionError


ROUTE = Route("GET", "/x", _never, "inventory:read", "x", media_type="text/csv")


async def run_stream(parts: AsyncIterator[bytes], wire: Wire, *, head: bool = False) -> None:
    answer = await begin(ROUTE, Streamed(parts, "text/csv"))
    await stream(wire.send, wire.receive, answer, head)


def test_a_stream_that_ends_is_whole_and_one_that_fails_is_not() -> None:
    closed: list[bool] = []

    async def make(fails: bool) -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b"two"
            if fails:
                raise RuntimeError("the database went away")
        finally:
            closed.append(True)

    async def run() -> None:
        good, bad, head = Wire(), Wire(), Wire()
        await run_stream(make(False), good)
        assert good.is_whole
        assert b"".join(message.get("body", b"") for message in good.sent) == b"onetwo"
        await run_stream(make(True), bad)
        assert not bad.is_whole
        await run_stream(make(False), head, head=True)
        assert head.is_whole
        assert not any(message.get("body") for message in head.sent)
        assert closed == [True, True, True]

    asyncio.run(run())


def test_what_fails_before_the_first_part_is_an_answer_like_any() -> None:
    async def make() -> AsyncIterator[bytes]:
        raise HandclaspError(Kind.UNAVAILABLE, "the database is away")
        yield b""

    async def run() -> None:
        with pytest.raises(HandclaspError):
            await run_stream(make(), Wire())

    asyncio.run(run())


def test_a_reader_that_is_gone_is_given_no_more() -> None:
    made = 0

    async def make() -> AsyncIterator[bytes]:
        nonlocal made
        while made < 1000:
            made += 1
            yield b"x" * 10

    async def run() -> None:
        wire = Wire(leaves_after=3)
        await run_stream(make(), wire)
        assert made < 10
        assert not wire.is_whole

    asyncio.run(run())


def test_a_reader_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handclasp.api.streams.PATIENCE", 0.01)

    class Stuck(Wire):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body"):
                await asyncio.Event().wait()

    async def make() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def run() -> None:
        wire = Stuck()
        await asyncio.wait_for(run_stream(make(), wire), 10)
        assert not wire.is_whole

    asyncio.run(run())
