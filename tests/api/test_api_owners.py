"""Owners, rules of ownership, assignments and confirmations through the API of a real server."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from handclasp.errors import Kind
from support.live import Client, Live, serving
from support.waiting import eventually

RULES = 'version: 1\nrules:\n  - {name: path, spiffe: "spiffe://example.org/ns/{team}/**", owner: "{team}", environment: prod}\n'
TEAM = {"name": "own-shop", "contact": "#shop"}


@pytest.fixture
def rules(admin: Client) -> Iterator[None]:
    admin("PUT", "/v1/owners", {"directory": "test", "owners": [TEAM, {"name": "own-core"}]}).ok()
    admin("PUT", "/v1/ownership", {"text": RULES}).ok()
    yield
    admin("PUT", "/v1/ownership", {"text": "version: 1\n"}).ok()


def settled(admin: Client, identity: str, owner: str | None) -> dict[str, Any]:
    path = f"/v1/identities/{identity}:assignments"
    eventually(lambda: admin.get(path)["owner"] == owner, 20, f"{owner} owns {identity}")
    found: dict[str, Any] = admin.get(path)
    return found


@pytest.mark.usefixtures("rules")
def test_rules_people_and_links(live: Live, admin: Client, nobody: Client) -> None:
    web, api = "spiffe://example.org/ns/own-shop/sa/web", "spiffe://example.org/ns/own-shop/sa/api"
    for identity in (web, api):
        live.holder(identity)
    eventually(lambda: admin.get("/v1/ownership")["sweep"] is None, 20, "every owner is derived")
    for identity in (web, api):
        # New identities are derived when the inventory notices them; here somebody asks for it at once.
        admin("POST", f"/v1/identities/{identity}:assign", {"tier": "1", "reason": "test"}).ok()
        shown = settled(admin, identity, "own-shop")
        assert [one["evidence"] for one in shown["items"]] == ["confirmed", "spiffe"]
        assert (shown["tier"], shown["environment"], shown["items"][1]["stands"]) == ("1", "prod", "owner")

    created = admin("POST", "/v1/owners/own-shop:ask", {}, secret="hcc_").ok(201)
    assert (created["identities"], created["contact"]) == ([api, web], "#shop")
    secret = created["secret"]
    assert created["path"] == f"/confirm/{secret}"
    newest = admin.get("/v1/log/entries", limit=1)["items"][0]["index"]
    asked = nobody("GET", f"/v1/confirmations/{secret}").ok()
    assert asked["identities"] == [{"identity": one, "tier": "1", "environment": "prod"} for one in (api, web)]
    page = nobody("GET", created["path"])
    assert page.status == 200
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script" not in page.text
    assert secret not in page.text
    assert admin.get("/v1/log/entries", limit=1)["items"][0]["index"] == newest, "looking changed nothing"

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = f"for%3A{web.replace(':', '%3A').replace('/', '%2F')}=confirm&for%3A{api.replace(':', '%3A').replace('/', '%2F')}=deny"
    done = nobody("POST", created["path"], answer.encode(), headers=form)
    assert "1 confirmed, 1 denied" in done.text
    assert done.headers["cache-control"] == "no-store"
    assert "answered" in nobody("GET", created["path"]).text
    assert "answered already" in nobody("POST", created["path"], answer.encode(), headers=form).text
    nobody("POST", f"/v1/confirmations/{secret}", {"confirmed": [web]}).refused(Kind.CONFLICT, "answered")
    settled(admin, web, "own-shop")
    settled(admin, api, None)
    needing = admin.get("/v1/ownership/needing", limit=1000)["items"]
    assert api in [one["identity"] for one in needing]
    entries = admin.get("/v1/log/entries", type="identity.confirmed")["items"]
    assert entries[0]["entry"]["what"]["denied"] == [api]

    admin("POST", f"/v1/identities/{api}:assign", {"owner": "own-core", "reason": "it is theirs"}).ok()
    assert settled(admin, api, "own-core")["items"][0]["stands"] == "owner"


def test_a_links_secret_is_in_no_log_and_no_answer(live: Live, admin: Client, nobody: Client) -> None:
    secret = "hcc_" + "s3cret-" * 6 + "x"
    for path in (f"/v1/confirmations/{secret}", f"/v1/confirmations/{secret}/more", f"/other/{secret}"):
        answer = nobody("GET", path)
        assert answer.kind == "not_found"
        assert "s3cret" not in answer.text
        assert answer.headers["cache-control"] == "no-store"
    nobody("POST", f"/v1/confirmations/{secret}", {"confirmed": ["dns:x"]}).refused(Kind.NOT_FOUND)
    assert "Nothing to answer" in nobody("GET", f"/confirm/{secret}").text
    nobody("GET", f"/v1/tokens/{secret}").refused(Kind.NOT_AUTHENTICATED)
    entries = json.dumps(admin.get("/v1/log/entries", type="access.refused"))
    assert "/v1/tokens/hcc_" in entries
    assert "s3cret" not in entries
    with closing(sqlite3.connect(f"file:{live.data / 'handclasp.db'}?mode=ro", uri=True)) as connection:
        assert not connection.execute("SELECT 1 FROM log_entry WHERE instr(entry, 's3cret')").fetchall()


@pytest.mark.usefixtures("rules")
def test_owners(admin: Client) -> None:
    entry = {"name": "own-hand", "kind": "service", "title": "By hand", "escalation": "own-core"}
    admin("PUT", "/v1/owners/own-hand", entry).ok()
    admin("PUT", "/v1/owners/other", entry).refused(Kind.BAD_REQUEST, "another")
    admin("PUT", "/v1/owners/own-core", {"name": "own-core"}).refused(Kind.CONFLICT, "directory test")
    admin("PUT", "/v1/owners/own-hand", entry | {"colour": "red"}).refused(Kind.BAD_REQUEST)
    assert admin.get("/v1/owners/own-hand")["title"] == "By hand"
    assert {one["name"] for page in admin.pages("/v1/owners", limit=1) for one in page} >= {"own-hand", "own-core", "own-shop"}
    assert [one["name"] for one in admin.get("/v1/owners", kind="service")["items"]] == ["own-hand"]
    admin("GET", "/v1/owners", kind="alien").refused(Kind.BAD_REQUEST)
    admin("GET", "/v1/ownership/needing", need="money").refused(Kind.BAD_REQUEST, "need is one of")
    dry = admin("PUT", "/v1/owners", {"directory": "test", "owners": [TEAM], "dry": True}).ok()
    assert [(one["change"], one["owner"]) for one in dry["changes"]] == [("left", "own-core")]
    assert admin.get("/v1/owners/own-core")["left_at"] is None
    admin("DELETE", "/v1/owners/own-hand").ok()
    admin("GET", "/v1/owners/own-hand").refused(Kind.NOT_FOUND)
    admin("DELETE", "/v1/owners/own-hand").refused(Kind.NOT_FOUND)
    circle = [{"name": "own-a", "escalation": "own-b"}, {"name": "own-b", "escalation": "own-a"}]
    admin("PUT", "/v1/owners", {"directory": "x", "owners": circle}).refused(Kind.BAD_REQUEST, "circle")


@pytest.mark.usefixtures("rules")
def test_rules_are_tried_and_compared(admin: Client) -> None:
    assert admin("POST", "/v1/ownership:diff", {"text": RULES}).ok()["changes"] == []
    assert admin("POST", "/v1/ownership:diff", {"text": "version: 1\n"}).ok()["changes"]
    admin("PUT", "/v1/ownership", {"text": "version: 2\n"}).refused(Kind.BAD_POLICY, "ownership.yaml:1")
    asked = {"identity": "spiffe://example.org/ns/x/sa/y", "facts": {"workload_labels": {"team": "own-core"}}}
    text = 'version: 1\nrules: [{name: l, workload_label: team, owner: "{value}"}]'
    tried = admin("POST", "/v1/ownership:test", asked | {"text": text}).ok()
    assert (tried["owner"], tried["known"]) == ("own-core", False)
    assert admin("POST", "/v1/ownership:test", asked).ok()["owner"] is None


def test_who_tries_links_is_slowed_down(tmp_path: Path) -> None:
    with serving(tmp_path, "--rate-refused", "5") as live, live.client() as nobody:
        kinds = [nobody("GET", f"/v1/confirmations/hcc_{number:043d}").kind for number in range(40)]
        assert kinds[:5] == ["not_found"] * 5
        assert set(kinds) == {"not_found", "rate_limited"}


def test_scopes(live: Live) -> None:
    reader = live.token("owners:read")
    with live.client(reader) as client:
        client("GET", "/v1/owners").ok()
        for method, path in (("PUT", "/v1/ownership"), ("POST", "/v1/owners/x:ask"), ("POST", "/v1/identities/dns:x:assign")):
            client(method, path, {}).refused(Kind.NOT_ALLOWED)
    assert re.fullmatch(r"hct_[a-z2-7]{16}_[\w-]{43}", reader)
