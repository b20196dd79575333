"""Renewal suggestions for many certificates at once, rotations, and what the server knows of its agents, over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from handclasp.client.api import ApiClient, Credential
from handclasp.client.csr import new_request
from handclasp.clock import parse_rfc3339
from handclasp.errors import Kind
from handclasp.wire import RenewalQuery
from support.live import Client, Holder, Live
from support.waiting import eventually

DOMAIN = "spiffe://example.org/rotations"
ASK = "/v1/certificates:renewal-info"
UNKNOWN = "0" * 64


def agent_of(live: Live, name: str, *allow: str, **fields: Any) -> Holder:
    """Enrol an agent that may have these identities."""
    identity = f"spiffe://example.org/agent/{name}"
    token = live.token(agent=True, allow=[identity, *allow], profiles=["agent", "workload"], **fields)
    return live.holder(identity, token=token, profile="agent")


def held_by(live: Live, agent: Holder, identity: str, **fields: Any) -> Holder:
    """Have an agent obtain a certificate."""
    key, csr = new_request("p256", identity=None)
    with live.client(None, agent) as client:
        return live.keep(
            client("POST", "/v1/certificates", {"csr": csr, "identity": identity, "profile": "workload", **fields}).ok(201), key
        )


def renewed(live: Live, holder: Holder) -> Holder:
    key, csr = new_request("p256", identity=None)
    with live.client(None, holder) as client:
        return live.keep(client("POST", f"/v1/certificates/{holder.sha256}:renew", {"csr": csr}).ok(201), key)


def test_an_agent_asks_about_many_certificates_at_once(live: Live, admin: Client) -> None:
    agent = agent_of(live, "asks", f"{DOMAIN}/asks/*")
    one, other = held_by(live, agent, f"{DOMAIN}/asks/a"), held_by(live, agent, f"{DOMAIN}/asks/b")
    newer = renewed(live, other)  # as its holder: no row names the agent
    everything = [agent.sha256, one.sha256, other.sha256, newer.sha256, UNKNOWN, one.sha256]
    with live.client(None, agent) as client:
        first = client("POST", ASK, {"certificates": everything}).ok()
        states = {item["sha256"]: item["state"] for item in first["items"]}
        assert states == {agent.sha256: "valid", one.sha256: "valid", other.sha256: "superseded", newer.sha256: "valid"}
        window = next(item for item in first["items"] if item["sha256"] == newer.sha256)
        assert (window["renew_after"], window["renew_before"]) == (newer.issued["renew_after"], newer.issued["renew_before"])
        assert client("POST", ASK, {"certificates": everything, "tag": "another"}).ok()["items"]
        admin("POST", f"/v1/certificates/{one.sha256}:revoke", {}).ok()
        second = client("POST", ASK, {"certificates": everything, "tag": first["tag"]}).ok()
        assert second["tag"] != first["tag"]
        assert {item["sha256"]: item["state"] for item in second["items"]} == states | {one.sha256: "revoked"}
        client("POST", ASK, {"certificates": ["x"]}).refused(Kind.BAD_REQUEST)
        client("POST", ASK, {"certificates": [UNKNOWN] * 2001}).refused(Kind.BAD_REQUEST)
        assert client("GET", f"/v1/certificates/{newer.sha256}:renewal-info").ok()["state"] == "valid"


def test_nothing_is_told_while_nothing_has_changed(live: Live) -> None:
    with live.client(live.token("certificates:read")) as reader:
        for _ in range(20):  # other tests revoke meanwhile, now and then
            tag = reader("POST", ASK, {"certificates": []}).ok()["tag"]
            again = reader("POST", ASK, {"certificates": [UNKNOWN], "tag": tag}).ok()
            if again["tag"] == tag:
                break
        assert again == {"tag": tag, "items": []}


def test_others_learn_of_their_own_certificate_only(live: Live) -> None:
    mine, theirs = live.holder(f"{DOMAIN}/mine"), live.holder(f"{DOMAIN}/theirs")
    body = {"certificates": [mine.sha256, theirs.sha256]}
    with live.client(None, mine) as client:
        assert [item["sha256"] for item in client("POST", ASK, body).ok()["items"]] == [mine.sha256]
        client("GET", f"/v1/certificates/{theirs.sha256}:renewal-info").refused(Kind.NOT_ALLOWED)
    with live.client(live.issuing_token(f"{DOMAIN}/mine")) as client:
        assert client("POST", ASK, body).ok()["items"] == []
    with live.client(live.token("certificates:read")) as client:
        assert len(client("POST", ASK, body).ok()["items"]) == 2


def test_the_client_asks_for_many(live: Live) -> None:
    agent = agent_of(live, "sdk", f"{DOMAIN}/sdk")
    credential = Credential(agent.cert_file.read_bytes(), agent.key_file.read_bytes())
    with ApiClient(live.facts["https"], ca=live.facts["ca_file"], credential=credential) as client:
        found = client.renewal_list(RenewalQuery(certificates=[agent.sha256]))
        assert [(one.sha256, one.state) for one in found.items] == [(agent.sha256, "valid")]


def test_a_rotation_from_its_plan_to_its_end(live: Live, admin: Client) -> None:
    agent = agent_of(live, "rotated", f"{DOMAIN}/whole/*")
    held = [held_by(live, agent, f"{DOMAIN}/whole/n{number}", ttl="24h") for number in range(4)]
    live.holder(f"{DOMAIN}/wholly-other")
    wanted = {"identity": f"{DOMAIN}/whole/*", "within": "10m", "reason": "drill"}
    with live.client(live.token("certificates:rotate")) as operator:
        planned = operator("POST", "/v1/rotations", {**wanted, "dry_run": True}).ok(201)
        assert (planned["state"], planned["total"], planned["id"], planned["pending"]) == ("planned", 4, "", [])
        assert planned["notes"] == []
        hasty = operator("POST", "/v1/rotations", {**wanted, "within": "30s", "dry_run": True}).ok(201)
        assert "agents ask every minute" in hasty["notes"][0]
        started = operator("POST", "/v1/rotations", wanted).ok(201)
        assert (started["state"], started["total"], started["replaced"], len(started["pending"])) == ("running", 4, 0, 4)
        assert {item["agent"] for item in started["pending"]} == {agent.issued["identity"]}
        begins, ends = parse_rfc3339(started["begins_at"]), parse_rfc3339(started["ends_at"])
        assert begins < ends == parse_rfc3339(started["created_at"]) + 600_000
        with live.client(None, agent) as client:
            items = client("POST", ASK, {"certificates": [one.sha256 for one in held]}).ok()["items"]
        for item in items:
            assert begins <= parse_rfc3339(item["renew_after"]) <= parse_rfc3339(item["renew_before"]) <= ends
        renewed(live, held[0])
        admin("POST", f"/v1/certificates/{held[1].sha256}:revoke", {}).ok()
        shown = operator.get(f"/v1/rotations/{started['id']}")
        assert (shown["replaced"], shown["gone"], shown["late"], shown["state"]) == (1, 1, 0, "running")
        assert {item["sha256"] for item in shown["pending"]} == {held[2].sha256, held[3].sha256}
        for one in held[2:]:
            renewed(live, one)
        done = operator.get(f"/v1/rotations/{started['id']}")
        assert (done["state"], done["replaced"], done["gone"], done["pending"]) == ("done", 3, 1, [])
        listed = operator.get("/v1/rotations")["items"]
        assert [(one["what"], one["reason"], one["state"]) for one in listed if one["id"] == started["id"]] == [
            (f"identity {DOMAIN}/whole/*", "drill", "done")
        ]
        operator("GET", "/v1/rotations/none").refused(Kind.NOT_FOUND)
    entry = admin.get(f"/v1/log/entries/{started['log_entry']}")["entry"]
    assert (entry["type"], entry["what"]["certificates"], entry["what"]["rotation"]) == ("rotation.started", 4, started["id"])
    assert entry["personal"]["reason"]["value"] == "drill", "what people write is kept where it can be erased"


@pytest.mark.parametrize(
    ("body", "kind", "word"),
    [
        ({}, Kind.BAD_REQUEST, "one of them"),
        ({"all": True, "identity": f"{DOMAIN}/*"}, Kind.BAD_REQUEST, "one of them"),
        ({"identity": "*"}, Kind.BAD_REQUEST, "pattern"),
        ({"identity": f"{DOMAIN}/*", "within": "0s"}, Kind.BAD_REQUEST, "takes from"),
        ({"identity": f"{DOMAIN}/*", "within": "soon"}, Kind.BAD_REQUEST, "duration"),
        ({"authority": "nobody"}, Kind.UNKNOWN_AUTHORITY, "nobody"),
        ({"authority": "root"}, Kind.UNKNOWN_AUTHORITY, "root"),
    ],
)
def test_what_is_no_rotation_is_refused(admin: Client, body: dict[str, Any], kind: Kind, word: str) -> None:
    admin("POST", "/v1/rotations", body).refused(kind, word)


def test_rotating_what_an_authority_signed_says_where_renewals_come_from(admin: Client) -> None:
    planned = admin("POST", "/v1/rotations", {"authority": "issuing", "dry_run": True}).ok(201)
    assert planned["total"] >= 0
    assert any("still signs" in note for note in planned["notes"])


def test_rotations_come_in_pages(live: Live, admin: Client) -> None:
    made = [admin("POST", "/v1/rotations", {"identity": f"{DOMAIN}/paged-{number}"}).ok(201)["id"] for number in range(3)]
    seen = [item["id"] for page in admin.pages("/v1/rotations", limit=2) for item in page]
    assert len(seen) == len(set(seen))
    assert [one for one in seen if one in made] == made[::-1]


# --- agents -----------------------------------------------------------------------------------------------------------------------------


def report(live: Live, agent: Holder, *identities: dict[str, Any], hostname: str = "host") -> None:
    with live.client(None, agent) as client:
        client("PUT", "/v1/agents/self", {"hostname": hostname, "version": "1", "identities": identities}).ok()


def test_agents_are_found_by_what_they_are_and_have(live: Live, admin: Client) -> None:
    names = ["find-a", "find-b", "find-c"]
    agents = [agent_of(live, name, f"{DOMAIN}/found/*", labels={"role": "finds", "n": name[-1]}) for name in names]
    web = held_by(live, agents[0], f"{DOMAIN}/found/web", ttl="24h")
    target = {"name": "/etc/web", "state": "ok", "sha256": web.sha256}
    report(
        live, agents[0], {"identity": f"{DOMAIN}/found/web", "sha256": web.sha256, "state": "ok", "targets": [target]}, hostname="Found-1"
    )
    report(live, agents[1], {"identity": f"{DOMAIN}/found/db", "state": "failed", "last_failure": "disk full"})

    def found(**filters: str) -> list[str]:
        return [item["identity"].rpartition("/")[2] for page in admin.pages("/v1/agents", **filters) for item in page]

    assert found(label="role=finds") == names
    assert found(label="role=finds", limit="1") == names
    assert found(label="role=finds", state="ok") == ["find-a"]
    assert found(label="role=finds", state="attention") == ["find-b"]
    assert found(label="role=finds", state="enrolled") == ["find-c"]
    assert found(label="n=b") == ["find-b"]
    assert found(identity=f"{DOMAIN}/found/web") == ["find-a"]
    assert found(identity=f"{DOMAIN}/found/w") == []
    assert found(identity="spiffe://example.org/agent/find-c") == ["find-c"]
    assert found(q="FOUND-1") == ["find-a"]
    assert found(q="/agent/find-") == names
    admin("GET", "/v1/agents", state="lost").refused(Kind.BAD_REQUEST, "lost")
    admin("GET", "/v1/agents", label="role").refused(Kind.BAD_REQUEST, "K=V")

    by_name = admin.get("/v1/agents/find-a")
    assert by_name == admin.get("/v1/agents/" + quote("spiffe://example.org/agent/find-a", safe=""))
    assert by_name["identities"][0]["targets"][0]["sha256"] == web.sha256
    assert (by_name["missed"], by_name["evidence"], by_name["can_enrol_again"]) == ([], None, False)
    admin("GET", "/v1/agents/nobody").refused(Kind.NOT_FOUND)


def test_a_report_that_says_the_same_again_is_taken(live: Live, admin: Client) -> None:
    agent = agent_of(live, "again")
    for failure in ("", "", "disk full", "disk full"):
        before = admin.get("/v1/agents/again")["last_contact"]
        report(live, agent, {"identity": f"{DOMAIN}/again", "state": "failed", "last_failure": failure})
        assert admin.get("/v1/agents/again")["identities"][0]["last_failure"] == failure
        eventually(lambda: admin.get("/v1/agents/again")["last_contact"] != before, 30, "the contact is written, a moment later")  # noqa: B023
    stranger = live.holder(f"{DOMAIN}/stranger")
    with live.client(None, stranger) as client:
        client("PUT", "/v1/agents/self", {"hostname": "x", "version": "1"}).refused(Kind.NOT_ALLOWED)
