"""What the console refuses: forms that are not its own, and what a role may not do; without a browser, so that every case is cheap."""

from __future__ import annotations

import asyncio
import http.client
import re
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from handclasp.api.problems import STATUS
from handclasp.console.app import Console, Page
from handclasp.console.visit import Answer, Visit
from handclasp.errors import HandclaspError
from support.console_browser import Place
from support.live import Holder

NONE = "0" * 64
PAYMENTS, SHOP = "spiffe://example.org/staging/payments/api", "spiffe://example.org/prod/shop/cart"
PATTERN = "spiffe://example.org/staging/payments/*"
ASSIGN = {"owner": "nobody-such", "reason": "test"}
"""An owner that there is not: who may assign is told so, and nothing changes."""
OPERATORS = frozenset({"admin", "operator"})
OWN = frozenset({"admin", "operator", "payments"})
EVERYBODY = frozenset({"admin", "operator", "auditor", "payments"})
REST = {"within": "1x", "reason": "test"}
ACTIONS: dict[str, tuple[str, dict[str, str], frozenset[str]]] = {
    "revoke": (f"certificates/{NONE}/revoke", {"why": "superseded", "reason": "test"}, OPERATORS),
    "triage": (f"certificates/{NONE}/triage", {"decision": "claimed", "reason": "test"}, OPERATORS),
    "rotate": ("identity/rotate", {"identity": SHOP} | REST, OPERATORS),
    "rotate own": ("identity/rotate", {"identity": PAYMENTS} | REST, OWN),
    "assign": ("identity/assign", {"identity": SHOP} | ASSIGN, OPERATORS),
    "assign own": ("identity/assign", {"identity": PAYMENTS} | ASSIGN, OWN),
    "rotate by pattern": ("identity/rotate", {"identity": PATTERN} | REST, OPERATORS),
    "run": ("sources/no-such/run", {}, OPERATORS),
    "stop": ("scans/no-such/stop", {}, OPERATORS),
    "token": ("tokens", {"name": "bad name", "create": "1"}, OPERATORS),
    "token revoke": (f"tokens/{'a' * 16}/revoke", {}, OPERATORS),
    "policy": ("policy", {"text": "version: 99", "apply": "1"}, frozenset({"admin"})),
    "policy compare": ("policy", {"text": "version: 1", "compare": "1"}, EVERYBODY),
    "view": ("views", {"name": "x", "list": "nonsense", "query": ""}, OPERATORS),
    "view remove": ("views/no-such/remove", {}, OPERATORS),
}  # fmt: skip
"""Every form that changes something, with content that changes nothing, and who may send it."""


@dataclass
class Session:
    """Somebody who is signed in, as a browser would hold it."""

    place: Place
    holder: Holder | None
    cookie: str = ""
    csrf: str = ""

    address: str = "127.0.0.1"

    def send(self, method: str, path: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str, http.client.HTTPMessage]:
        live = self.place.live
        context = live.context(self.holder.cert_file, self.holder.key_file) if self.holder else live.context()
        sent = {"cookie": self.cookie, "origin": self.place.url, "sec-fetch-site": "same-origin", **headers}
        with closing(http.client.HTTPSConnection(*live.https, context=context, timeout=60, source_address=(self.address, 0))) as connection:
            body = urlencode(form) if form is not None else None
            if body is not None:
                sent["content-type"] = "application/x-www-form-urlencoded"
            connection.request(method, f"/console/{path}", body, {name.replace("_", "-"): value for name, value in sent.items() if value})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace"), answer.headers

    def post(self, path: str, form: dict[str, str], **headers: str) -> tuple[int, str]:
        status, body, _ = self.send("POST", path, {"csrf": self.csrf} | form, **headers)
        return status, body


@pytest.fixture(scope="module")
def people(place: Place) -> dict[str, Session]:
    """Everybody with a role, signed in."""
    signed_in = {}
    for name in ("admin", "operator", "auditor", "payments"):
        session = Session(place, place.people[name])
        status, _, headers = session.send("POST", "sign-in/certificate", {})
        assert status == 303
        session.cookie = str(headers["set-cookie"]).partition(";")[0]
        found = re.search(r'name="csrf" value="([^"]+)"', session.send("GET", "profiles")[1])
        assert found is not None
        session.csrf = found[1]
        signed_in[name] = session
    return signed_in


@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_do_what(people: dict[str, Session], action: str) -> None:
    path, form, may = ACTIONS[action]
    answers = {name: session.post(path, form)[0] for name, session in people.items()}
    assert {name for name, status in answers.items() if status != 403} == may, answers
    assert all(status < 500 for status in answers.values()), answers


@pytest.mark.parametrize("action", ACTIONS)
def test_forms_of_others_are_refused(people: dict[str, Session], action: str) -> None:
    path, form, _ = ACTIONS[action]
    admin = people["admin"]
    for changed, headers in (
        ({"csrf": ""}, {}),
        ({"csrf": people["operator"].csrf}, {}),
        ({}, {"origin": "https://evil.example"}),
        ({}, {"origin": ""}),
        ({}, {"origin": "null"}),
        ({}, {"sec_fetch_site": "cross-site"}),
        ({}, {"sec_fetch_site": "same-site"}),
    ):
        status, body = admin.post(path, form | changed, **headers)
        assert status == 403, (changed, headers)
        assert "this form is not of this page" in body


def test_a_token_of_one_network_opens_nothing_elsewhere(place: Place) -> None:
    token = place.live.token("inventory:read", cidr=["127.0.0.9/32"])
    outside, inside = Session(place, None, address="127.0.0.8"), Session(place, None, address="127.0.0.9")
    status, body, headers = outside.send("POST", "sign-in/token", {"token": token})
    assert (status, headers["set-cookie"]) == (403, None)
    assert "not to be used from 127.0.0.8" in body
    status, _, headers = inside.send("POST", "sign-in/token", {"token": token})
    assert status == 303
    inside.cookie = outside.cookie = str(headers["set-cookie"]).partition(";")[0]
    assert inside.send("GET", "certificates")[0] == 200
    assert outside.send("GET", "certificates")[0] == 303


def test_refusals_are_in_the_log(people: dict[str, Session], place: Place) -> None:
    people["admin"].post("policy", {"csrf": "x"})
    people["auditor"].post("sources/edge/run", {})
    with place.live.client(place.live.admin_token) as client:
        [one] = client.get("/v1/log/entries", type="console.refused", limit=1)["items"]
        assert one["entry"]["who"] == {"kind": "console", "id": "certificate:spiffe://example.org/person/admin", "role": "admin"}
        assert one["entry"]["why"] == {"kind": "not_allowed", "reason": "csrf"}
        [one] = client.get("/v1/log/entries", type="access.refused", limit=1)["items"]
        assert one["entry"]["who"]["id"] == "certificate:spiffe://example.org/person/auditor"
        assert one["entry"]["what"] == {"method": "POST", "path": "/v1/sources/edge:run"}
        assert one["entry"]["from"]["door"] == "console"
        assert client.get("/v1/log/entries", type="console.signed_in", limit=1)["items"]


def test_nobody_sees_anything_without_a_session(place: Place) -> None:
    stranger = Session(place, None)
    for path in ("", "certificates", "tokens", "no-such-page", "certificates/export?format=csv"):
        status, body, headers = stranger.send("GET", path)
        assert (status, body) == (303, "")
        assert headers["location"].startswith("/console/sign-in")
    for action, (path, form, _) in ACTIONS.items():
        status, _, headers = stranger.send("POST", path, form)
        assert (status, headers["location"]) == (303, "/console/sign-in"), action
    assert Session(place, None, "__Host-handclasp=" + "a" * 43).send("GET", "")[0] == 303


def test_guessing_is_slowed_down(place: Place) -> None:
    guesser = Session(place, None, address="127.0.0.9")
    answers = [guesser.send("POST", "sign-in/token", {"token": "guess"})[0] for _ in range(23)]
    assert answers[:20] == [403] * 20
    assert 429 in answers
    assert Session(place, place.people["auditor"]).send("POST", "sign-in/certificate", {})[0] == 303  # and nobody else is


def test_where_one_goes_after_signing_in_is_a_page_of_ours(place: Place) -> None:
    stranger = Session(place, place.people["auditor"])
    for wanted, to in (
        ("/console/tokens?state=active", "/console/tokens?state=active"),
        ("//evil.example/", "/console/"),
        ("https://evil.example/", "/console/"),
        ("/console/../v1/tokens", "/console/../v1/tokens"),
        ("/console//evil.example", "/console/"),
        ("/console/\\evil", "/console/"),
        ("/console/\r\nset-cookie: a=b", "/console/"),
    ):
        status, _, headers = stranger.send("POST", "sign-in/certificate", {"next": wanted})
        assert (status, headers["location"]) == (303, to), wanted


def test_an_agent_is_no_person(place: Place) -> None:
    """A pattern of console_roles may fit its name; but whoever has a host has its agent's certificate."""
    agent = place.live.holder("spiffe://example.org/agent/no-person", profile="agent")
    status, body, headers = Session(place, agent).send("POST", "sign-in/certificate", {})
    assert (status, headers["set-cookie"]) == (403, None)
    assert "this is the certificate of an agent, and not of a person" in body


def test_a_form_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may begin to send one to the door."""
    monkeypatch.setattr("handclasp.console.app.FORM_WITHIN", 0.05)
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        page = Page("POST", "sign-in/token", _never, public=True)
        log_key = SimpleNamespace(name="example.org/log")
        console = Console([page], _NoApi(), _Nobody(), None, lambda: 0, None, log_key)  # type: ignore[arg-type]
        scope = {"type": "http", "method": "POST", "path": "/console/sign-in/token", "query_string": b"", "headers": [], "client": None}
        await console(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 504
    assert b"did not come in time" in sent[1]["body"]


async def _never(_visit: Visit) -> Answer:
    raise AssertionError("the form never came")


class _NoApi:
    def status(self, error: HandclaspError) -> int:
        return STATUS[error.kind]


class _Nobody:
    async def find(self, _secret: str, *, address: str | None = None, active: bool = True) -> None:
        return None


@pytest.mark.parametrize("more", ["/assignments", ":assignments", ":lineage", ":x", "/..", "?a=b", "#", "\0", "%00", "\r\nset-cookie: a=b"])
def test_a_name_that_leads_to_another_route_is_nobodys_page(people: dict[str, Session], more: str) -> None:
    status, _, headers = people["admin"].send("GET", f"identity?{urlencode({'name': SHOP + more})}")
    assert status == 404
    assert "a=b" not in str(headers)


def test_what_every_answer_says_to_the_browser(people: dict[str, Session], place: Place) -> None:
    admin = people["admin"]
    for path in ("", "no-such-page", "sign-in"):
        _, body, headers = admin.send("GET", path)
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert headers["cache-control"] == "no-store"
        assert (headers["x-content-type-options"], headers["x-frame-options"], headers["referrer-policy"]) == (
            "nosniff",
            "DENY",
            "same-origin",
        )
        assert " style=" not in body
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|javascript:", body)
    css = re.search(r'href="/console/(static/[0-9a-f]{16}/console.css)"', admin.send("GET", "profiles")[1])
    assert css is not None
    stranger = Session(place, None)
    status, body, headers = stranger.send("GET", css[1])
    assert (status, headers["cache-control"], headers["content-type"]) == (
        200,
        "public, max-age=31536000, immutable",
        "text/css; charset=utf-8",
    )
    assert stranger.send("GET", css[1], accept_encoding="gzip")[2]["content-encoding"] == "gzip"
    for path in ("static/0000000000000000/console.css", "static/x/../../app.py", "static/x/%2e%2e/app.py", "static/", css[1] + "x"):
        assert stranger.send("GET", path)[0] == 404


def test_the_front_door_leads_browsers_to_the_console(place: Place) -> None:
    with place.live.client() as client:
        answer = client("GET", "/", headers={"accept": "text/html,*/*"})
        assert (answer.status, answer.headers["location"]) == (303, "/console/")
        assert client("GET", "/").status == 404
        assert client("GET", "/console").headers["location"] == "/console/"
    assert place.live.facts["console"] == f"{place.url}/console/"
    assert "/console/ (sign in with the admin token" in place.live.output


def test_exports_are_the_list_as_a_file(people: dict[str, Session]) -> None:
    status, body, headers = people["auditor"].send("GET", "certificates/export?format=csv&standing=foreign&cursor=x")
    assert (status, headers["content-disposition"]) == (200, 'attachment; filename="certificates.csv"')
    assert "partner.example.com" in body
    assert people["auditor"].send("GET", "certificates/export?format=exe")[0] == 400


def test_a_form_that_is_too_large_or_broken(people: dict[str, Session]) -> None:
    assert people["admin"].post("policy", {"text": "x" * 1_200_000})[0] == 413
    status, _, _ = people["admin"].send("POST", "policy", {"csrf": people["admin"].csrf, "text": "a\0b", "compare": "1"})
    assert status == 400
