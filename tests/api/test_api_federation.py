"""JWT-SVIDs and federation through the API, and the bundle endpoint beside it."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator

import pytest

from handclasp.client.api import ApiClient
from handclasp.errors import Kind
from handclasp.pki.bundles import parse_spiffe_bundle
from handclasp.pki.chains import to_pem
from handclasp.pki.jwt_svid import verify_jwt_svid
from handclasp.wire import JwtSvidRequest
from support.authorities import authority, make_authority
from support.live import Client, Live
from support.spiffe_bundles import jwt_only
from support.waiting import eventually

TD = "partner.example"
ROOT = make_authority(trust_domain=TD).root
URL = "https://spiffe.partner.invalid/bundle"
POLICY = """
version: 1
grants:
  - name: own
    principals: [{certificate: spiffe://example.org/jwt/self}]
    identities: [spiffe://example.org/jwt/self]
    profiles: [workload]
    actions: [jwt]
workloads:
  - {name: web, agents: {role: jwt}, selectors: ["unix:uid:33"], identity: spiffe://example.org/jwt/web, jwt: true}
"""


@pytest.fixture
def policy(admin: Client) -> Iterator[None]:
    before = admin.get("/v1/policy")["text"]
    admin("PUT", "/v1/policy", {"text": POLICY}).ok()
    yield
    admin("PUT", "/v1/policy", {"text": before or "version: 1\n"}).ok()


@pytest.mark.usefixtures("policy")
def test_agents_and_holders_have_jwt_svids(live: Live, nobody: Client) -> None:
    token = live.token(agent=True, labels={"role": "jwt"}, allow=["spiffe://example.org/agent/jwt-1"], profiles=["agent"])
    agent = live.holder("spiffe://example.org/agent/jwt-1", token=token, profile="agent")
    holder = live.holder("spiffe://example.org/jwt/self")
    eventually(lambda: "jwt-svid" in nobody("GET", "/v1/bundles/example.org").text, 10, "a key for JWT-SVIDs")
    bundle = parse_spiffe_bundle(nobody("GET", "/v1/bundles/example.org").body, "example.org")
    for who, identity in ((agent, "spiffe://example.org/jwt/web"), (holder, "spiffe://example.org/jwt/self")):
        with live.client(holder=who) as client:
            made = client("POST", "/v1/jwt-svids", {"identity": identity, "audience": ["db"], "ttl": "2m"}).ok(201)
            claims = verify_jwt_svid(made["token"], ["db"], {"example.org": bundle.jwt_keys}, live_now(live))
            assert (claims["sub"], made["identity"]) == (identity, identity)
            client("POST", "/v1/jwt-svids", {"identity": "spiffe://example.org/jwt/other", "audience": ["db"]}).refused(
                Kind.NAME_NOT_ALLOWED
            )
            client("POST", "/v1/jwt-svids", {"identity": identity, "audience": []}).refused(Kind.BAD_REQUEST)
            client("POST", "/v1/jwt-svids", {"identity": identity, "audience": ["db"], "ttl": "2h"}).refused(Kind.LIFETIME_NOT_ALLOWED)
        with ApiClient(live.facts["https"], ca=live.facts["ca_file"], credential=(who.cert_file, who.key_file)) as api:
            assert api.jwt_svid(JwtSvidRequest(identity=identity, audience=["db"])).log_entry > made["log_entry"]


def live_now(live: Live) -> int:
    import time

    assert live.facts
    return time.time_ns() // 1_000_000


@pytest.mark.usefixtures("policy")
def test_a_refusal_is_one_log_entry_and_not_two(live: Live, admin: Client, nobody: Client) -> None:
    nobody("POST", "/v1/jwt-svids", {"identity": "spiffe://example.org/jwt/web", "audience": ["a"]}).refused(Kind.NOT_AUTHENTICATED)
    holder = live.holder("spiffe://example.org/jwt/nobody")
    newest = admin.get("/v1/log/entries", limit=1)["items"][0]["index"]
    with live.client(holder=holder) as client:
        client("POST", "/v1/jwt-svids", {"identity": "spiffe://example.org/jwt/nobody", "audience": ["a"]}).refused(Kind.NOT_ALLOWED)
    ours = [
        item for item in admin.get("/v1/log/entries", limit=20)["items"] if item["index"] > newest and holder.sha256 in json.dumps(item)
    ]
    assert [item["entry"]["type"] for item in ours] == ["jwt.refused"]
    admin("POST", "/v1/jwt-svids", {"identity": "spiffe://example.org/jwt/web", "audience": ["a"]}).refused(Kind.NOT_ALLOWED)


def test_federation_from_added_to_removed(live: Live, admin: Client, nobody: Client) -> None:
    path = f"/v1/federation/{TD}"
    body = {"url": URL, "profile": "https_spiffe", "endpoint_id": f"spiffe://{TD}/server", "bundle": to_pem(ROOT)}
    made = admin("PUT", path, body).ok()
    assert (made["trust_domain"], made["state"], made["anchors"], made["jwt_keys"]) == (TD, "ok", 1, 0)
    assert admin.get("/v1/federation")["items"][0]["trust_domain"] == TD
    refreshed = admin("POST", f"{path}:refresh").ok()
    assert "does not resolve" in refreshed["problem"] or "cannot be reached" in refreshed["problem"]
    assert admin.get(path)["url"] == URL
    assert nobody("GET", f"/v1/bundles/{TD}.pem").text == to_pem(ROOT)
    assert parse_spiffe_bundle(nobody("GET", f"/v1/bundles/{TD}").body, TD).authorities == (ROOT,)
    assert [item["trust_domain"] for item in nobody.get("/v1/bundles")["items"]] == ["example.org"], "ours only"
    nobody("GET", f"/bundle/{TD}").refused(Kind.NOT_FOUND)
    nobody("GET", path).refused(Kind.NOT_AUTHENTICATED)
    with live.client(live.token("federation:read")) as reader:
        assert reader.get(path)["trust_domain"] == TD
        reader("DELETE", path).refused(Kind.NOT_ALLOWED)
        reader("POST", f"{path}:refresh").refused(Kind.NOT_ALLOWED)
    admin("PUT", "/v1/federation/example.org", {"url": URL}).refused(Kind.CONFLICT)
    admin("PUT", path, {"url": "https://127.0.0.1/"}).refused(Kind.NOT_ALLOWED)
    admin("PUT", path, {"url": URL, "profile": "https_spiffe", "endpoint_id": f"spiffe://{TD}/x", "bundle": "x"}).refused(
        Kind.BAD_CERTIFICATE
    )
    assert admin("DELETE", path).ok()["log_entry"] > 0
    for method, gone in (("GET", path), ("DELETE", path), ("POST", f"{path}:refresh")):
        admin(method, gone).refused(Kind.NOT_FOUND)
    nobody("GET", f"/v1/bundles/{TD}").refused(Kind.NOT_FOUND)
    types = [item["entry"]["type"] for item in admin.get("/v1/log/entries", subject=f"federation:{TD}")["items"]]
    assert types == ["federation.removed", "federation.added"]


def test_names_that_are_no_trust_domain_are_not_found(admin: Client, nobody: Client) -> None:
    for name in ("..", "%00", "A", "a%2Fb", "x" * 300):
        for path in (f"/v1/bundles/{name}", f"/v1/bundles/{name}.pem", f"/bundle/{name}"):
            nobody("GET", path).refused(Kind.NOT_FOUND)
        admin("GET", f"/v1/federation/{name}").refused(Kind.NOT_FOUND)


def test_the_bundle_endpoint_is_for_everybody(nobody: Client) -> None:
    answer = nobody("GET", "/bundle/example.org")
    assert answer.body == nobody("GET", "/v1/bundles/example.org").body
    assert answer.headers["content-type"] == "application/json"
    again = nobody("GET", "/bundle/example.org", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    head = nobody("HEAD", "/bundle/example.org")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(answer.body)))
    for method in ("POST", "PUT", "DELETE"):
        assert nobody(method, "/bundle/example.org").refused(Kind.METHOD_NOT_ALLOWED)
    nobody("GET", "/bundle/").refused(Kind.NOT_FOUND)
    nobody("GET", "/bundle/example.org/").refused(Kind.NOT_FOUND)
    assert authority().root not in parse_spiffe_bundle(answer.body, "example.org").authorities


def test_the_listener_shows_the_servers_spiffe_id(live: Live) -> None:
    with live.socket() as connection:
        shown = connection.getpeercert()
    assert shown is not None
    assert ("URI", "spiffe://example.org/handclasp/server") in shown["subjectAltName"]
    holder = live.token(allow=["spiffe://example.org/**"], profiles=["workload"])
    from handclasp.client.csr import new_request

    with live.client(holder) as client:
        _, csr = new_request("p256", identity=None)
        body = {"csr": csr, "identity": "spiffe://example.org/handclasp/server", "profile": "workload"}
        client("POST", "/v1/certificates", body).refused(Kind.NAME_NOT_ALLOWED)


def test_the_spiffe_package_reads_our_bundle(live: Live) -> None:
    """py-spiffe's own fetch of a bundle is not part of it; its parser is, and reads what the endpoint serves."""
    from spiffe import JwtBundle, TrustDomain

    context = ssl.create_default_context(cafile=live.facts["ca_file"])
    with urllib.request.urlopen(f"{live.facts['https']}/bundle/example.org", context=context) as answer:
        data = answer.read()
    assert JwtBundle.parse(TrustDomain("example.org"), jwt_only(data)).jwt_authorities
