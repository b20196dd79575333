"""``handclasp agent list`` and ``agent show``: agents as the server knows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from handclasp import wire
from support.fake_api import FakeApi

Run = Callable[..., Result]
HOST = "spiffe://example.org/agent/web-1"
WEB = "spiffe://example.org/prod/web"


def agent(**fields: Any) -> wire.Agent:
    target = wire.AgentTarget(name="/etc/nginx/tls", state="failed", sha256="a1" * 32, last_failure="nginx -t: no such file")
    held = wire.AgentIdentity(identity=WEB, sha256="b2" * 32, not_after="2026-01-01T01:00:00Z", state="failed", targets=[target])
    known: dict[str, Any] = {
        "identity": HOST, "hostname": "web-1", "version": "0.1.0", "labels": {"role": "web"}, "enrolled_at": "2025-12-01T00:00:00Z",
        "last_contact": "2025-12-31T23:00:00Z", "address": "10.0.0.7", "state": "overdue", "identities": [held],
        "missed": [
            wire.AgentMissed(
                identity=WEB, sha256="b2" * 32, renew_before="2025-12-31T23:45:00Z", not_after="2026-01-01T01:00:00Z", state="overdue"
            )
        ],
        "evidence": wire.AgentEvidence(rule="nodes", method="aws", subject="i-0abc"), "can_enrol_again": True,
    }  # fmt: skip
    return wire.Agent(**{**known, **fields})


def test_an_agent_is_shown_with_what_it_missed(run: Run, api: FakeApi) -> None:
    api.on("GET", "/v1/agents/web-1", agent())
    done = run("agent", "show", "web-1")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert "state\toverdue" in lines
    assert "enrolled with\taws: i-0abc (rule nodes)" in lines
    assert "enrols again\tyes, with the same evidence" in lines
    assert f"fail\t{WEB}\toverdue: to be renewed before 2025-12-31T23:45:00Z, ends 2026-01-01T01:00:00Z" in lines
    assert f"{WEB}\t/etc/nginx/tls\tfailed\t{'a1' * 8}\t\tnginx -t: no such file" in lines


def test_a_failed_delivery_is_told_once_in_the_row_of_its_target(run: Run, api: FakeApi) -> None:
    target = wire.AgentTarget(name="files:/srv/tls", state="failed", last_failure="reload: it said\nno")
    for own, shown in (("", ""), ("the server is away\n", "the server is away")):
        failure = f"{own}{target.name}: {target.last_failure}"
        held = wire.AgentIdentity(identity=WEB, sha256="b2" * 32, state="failed", targets=[target], last_failure=failure)
        api.on("GET", "/v1/agents/web-1", agent(identities=[held], missed=[]))
        lines = run("agent", "show", "web-1").stdout.splitlines()
        assert lines[-2:] == [f"{WEB}\t\tfailed\t{'b2' * 8}\t\t{shown}", f"{WEB}\tfiles:/srv/tls\tfailed\t\t\treload: it said\\nno"]


def test_a_whole_identity_is_one_part_of_the_path(run: Run, api: FakeApi) -> None:
    api.on(
        "GET", "/v1/agents/spiffe%3A%2F%2Fexample.org%2Fagent%2Fweb-1", agent(state="ok", missed=[], evidence=None, can_enrol_again=False)
    )
    done = run("agent", "show", HOST)
    assert done.exit_code == 0
    assert "enrolled with\ta token" in done.stdout
    assert "enrols again\tno, it needs a new token" in done.stdout
    assert json.loads(run("agent", "show", HOST, "--json").stdout)["identity"] == HOST
    assert run("agent", "show", "nobody").exit_code == 1


@pytest.mark.parametrize(("option", "parameter"), [("--state", "state"), ("--identity", "identity"), ("--label", "label"), ("--q", "q")])
def test_filters_are_the_servers(run: Run, api: FakeApi, option: str, parameter: str) -> None:
    api.pages("/v1/agents", [agent(state="x")])
    assert run("agent", "list", option, "x").exit_code == 0
    assert api.asked[-1].params[parameter] == "x"


def test_agents_are_listed_with_what_is_wrong(run: Run, api: FakeApi) -> None:
    api.pages("/v1/agents", [agent()])
    done = run("agent", "list")
    assert done.stdout == f"{HOST}\tweb-1\toverdue\t0.1.0\t2025-12-31T23:00:00Z\t1\t{WEB}\t{WEB}\n"
