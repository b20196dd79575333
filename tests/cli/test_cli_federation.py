"""``handclasp federation``: what is sent, what is shown, and exit codes that a script can go by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handclasp import wire
from handclasp.errors import HandclaspError, Kind
from support.fake_api import FakeApi

TD = "partner.example"
URL = "https://spiffe.partner.example/bundle"
PATH = f"/v1/federation/{TD}"


def federation(**changes: Any) -> wire.Federation:
    known: dict[str, Any] = {
        "trust_domain": TD, "url": URL, "profile": "https_web", "endpoint_id": None, "state": "ok", "sequence": 4, "refresh_hint": 300,
        "anchors": 1, "jwt_keys": 2, "fetched_at": "2025-12-31T23:58:00Z", "tried_at": "2025-12-31T23:58:00Z", "problem": None,
        "created_at": "2025-06-01T00:00:00Z",
    }  # fmt: skip
    return wire.Federation(**(known | changes))


@pytest.fixture
def there(api: FakeApi) -> FakeApi:
    api.on("PUT", PATH, federation(state="waiting"))
    api.on("GET", PATH, federation())
    api.on("POST", f"{PATH}:refresh", federation())
    api.on("DELETE", PATH, wire.Done(log_entry=50))
    api.on(
        "GET",
        "/v1/federation",
        wire.FederationList(items=[federation(), federation(trust_domain="b.example", problem="it cannot be reached")]),
    )
    return api


def test_add_by_web(there: FakeApi, run: Any) -> None:
    result = run("federation", "add", TD, URL)
    assert result.exit_code == 0, result.stderr
    assert [(asked.method, asked.path) for asked in there.asked] == [("PUT", PATH), ("POST", f"{PATH}:refresh")]
    assert there.asked[0].body == wire.FederationRequest(url=URL, profile="https_web")
    assert "anchors 1, JWT keys 2" in result.stderr
    assert TD in result.stdout


def test_add_by_spiffe_id(there: FakeApi, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "bundle.pem"
    file.write_text("PEM")
    result = run("federation", "add", TD, URL, "--endpoint-id", f"spiffe://{TD}/server", "--bundle", str(file), "--json")
    assert json.loads(result.stdout)["trust_domain"] == TD
    assert there.asked[0].body == wire.FederationRequest(url=URL, profile="https_spiffe", endpoint_id=f"spiffe://{TD}/server", bundle="PEM")


@pytest.mark.parametrize("arguments", [("add", TD, URL), ("refresh", TD)])
def test_what_could_not_be_fetched_exits_1(there: FakeApi, run: Any, arguments: tuple[str, ...]) -> None:
    there.on("POST", f"{PATH}:refresh", federation(problem="it cannot be reached"))
    for more in ((), ("--json",)):
        result = run("federation", *arguments, *more)
        assert result.exit_code == 1
        assert "was not fetched: it cannot be reached" in result.stderr


def test_list_show_remove(there: FakeApi, run: Any) -> None:
    listed = run("federation", "list")
    assert TD in listed.stdout
    assert "it cannot be reached" in listed.stdout
    assert len(json.loads(run("federation", "list", "--json").stdout)["items"]) == 2
    shown = run("federation", "show", TD)
    assert URL in shown.stdout
    assert json.loads(run("federation", "show", TD, "--json").stdout)["sequence"] == 4
    assert "log entry 50" in run("federation", "remove", TD).stderr
    assert json.loads(run("federation", "remove", TD, "--json").stdout) == {"log_entry": 50}
    there.on("GET", "/v1/federation", wire.FederationList(items=[]))
    assert run("federation", "list").exit_code == 0


def test_refusals_are_passed_on(there: FakeApi, run: Any) -> None:
    there.on("PUT", PATH, HandclaspError(Kind.CONFLICT, "served here"))
    assert run("federation", "add", TD, URL).exit_code == 1
    assert run("federation", "add", TD).exit_code == 2
