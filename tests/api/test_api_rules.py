"""Policy, profiles and OIDC through real HTTP."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec

from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.live import Client, Live
from support.oidc import Issuer

PREFIX = "spiffe://example.org/rules"
GRANT = """version: 1
grants:
  - name: deployed
    principals: [{{certificate: {principal}}}]
    identities: [{identity}]
    profiles: [workload]
"""


def test_a_policy_is_compared_then_applied_and_both_are_logged(live: Live, admin: Client) -> None:
    deployer = live.holder(f"{PREFIX}/deployer")
    text = GRANT.format(principal=f"{PREFIX}/deployer", identity=f"{PREFIX}/prod/*")
    admin("PUT", "/v1/policy", {"text": "version: 1\n"})
    csr = new_request("p256", identity=None)[1]
    with live.client(None, deployer) as client:
        body = {"csr": csr, "identity": f"{PREFIX}/prod/web"}
        client("POST", "/v1/certificates", body).refused(Kind.NOT_ALLOWED, "no grant")
        diff = admin("POST", "/v1/policy:diff", {"text": text}).ok()
        assert (diff["applied"], [(c["change"], c["subject"]) for c in diff["changes"]]) == (False, [("added", "grant deployed")])
        client("POST", "/v1/certificates", body).refused(Kind.NOT_ALLOWED)
        applied = admin("PUT", "/v1/policy", {"text": text}).ok()
        assert applied["applied"] is True
        shown = admin.get("/v1/policy")
        assert (shown["text"], shown["sha256"]) == (text, hashlib.sha256(text.encode()).hexdigest())
        issued = client("POST", "/v1/certificates", body).ok(201)
        assert admin.get(f"/v1/certificates/{issued['sha256']}")["granted_by"] == "policy:deployed"
        client("POST", "/v1/certificates", {**body, "identity": f"{PREFIX}/test/web"}).refused(Kind.NAME_NOT_ALLOWED, "policy:deployed")
        again = admin("PUT", "/v1/policy", {"text": text}).ok()
        assert (again["applied"], again["changes"]) == (False, [])
        admin("PUT", "/v1/policy", {"text": "version: 1\n"}).ok()
        client("POST", "/v1/certificates", body).refused(Kind.NOT_ALLOWED)
    for index, type_ in ((diff["log_entry"], "policy.compared"), (applied["log_entry"], "policy.applied")):
        assert admin.get(f"/v1/log/entries/{index}")["entry"]["type"] == type_


def test_a_bad_policy_changes_nothing_and_every_mistake_is_named_with_its_line(admin: Client) -> None:
    before = admin.get("/v1/policy")
    text = "version: 2\ngrants:\n  - name: a b\n    principals: [{tokn: x}]\n    identities: ['http://x']\n    profiles: []\n"
    for method, path in (("PUT", "/v1/policy"), ("POST", "/v1/policy:diff")):
        detail = admin(method, path, {"text": text}).refused(Kind.BAD_POLICY)["detail"]
        for line in (1, 3, 4, 5):
            assert f"policy.yaml:{line}:" in detail, detail
    for bomb in (
        "a: &a [x]\nb: *a\n",
        "version: 1\nversion: 1\n",
        "\t",
        "[" * 5000,
        "- - -",
        "\x07",
        "version: 1\n" * 2 + "!!python/object:os.system",
    ):
        admin("PUT", "/v1/policy", {"text": bomb}).refused(Kind.BAD_POLICY)
    assert admin.get("/v1/policy") == before


def test_profiles(live: Live, admin: Client) -> None:
    built_in = {"workload", "server", "client", "agent", "mesh", "probe"}
    text = "version: 1\nprofiles:\n  short:\n    extend: workload\n    lifetime: 5m\n    max_lifetime: 10m\n"
    diff = admin("POST", "/v1/profiles:diff", {"text": text}).ok()
    assert ("added", "profile short") in [(change["change"], change["subject"]) for change in diff["changes"]]
    admin("PUT", "/v1/profiles", {"text": text}).ok()
    assert {item["name"] for item in admin.get("/v1/profiles")["items"]} == built_in | {"short"}
    shown = admin.get("/v1/profiles/short")
    assert (shown["lifetime"], shown["max_lifetime"], shown["built_in"]) == ("5m", "10m", False)
    holder = live.holder(f"{PREFIX}/short", profile="short")
    assert admin.get(f"/v1/certificates/{holder.sha256}")["profile"] == "short"
    token = live.issuing_token(f"{PREFIX}/short2", profiles=["short"])
    with live.client(token) as client:
        body = {"csr": new_request("p256", identity=None)[1], "ttl": "11m"}
        client("POST", "/v1/certificates", body).refused(Kind.LIFETIME_NOT_ALLOWED)
    admin("PUT", "/v1/profiles", {"text": "version: 1\nprofiles:\n  workload:\n    lifetime: 9h\n"}).refused(
        Kind.BAD_PROFILE, "profiles.yaml:3"
    )
    admin("PUT", "/v1/profiles", {"text": "version: 1\nprofiles: {}\n"}).ok()
    admin("GET", "/v1/profiles/short").refused(Kind.NOT_FOUND)
    with live.client(token) as client:
        client("POST", "/v1/certificates", body).refused(Kind.UNKNOWN_PROFILE)


def test_an_oidc_token_obtains_what_the_policy_says(live: Live, issuer: Issuer, admin: Client) -> None:
    issuer.apply(live, identities=[f"{PREFIX}/ci/{{repository}}"], claims={"team": "rules"})
    csr = new_request("p256", identity=None)[1]
    claims = {"sub": "job", "team": "rules", "repository": "web"}
    body = {"csr": csr, "identity": f"{PREFIX}/ci/web"}
    with live.client(issuer.token(**claims)) as client:
        for _ in range(2):
            issued = client("POST", "/v1/certificates", body).ok(201)
        client("POST", "/v1/certificates", {**body, "identity": f"{PREFIX}/ci/api"}).refused(Kind.NAME_NOT_ALLOWED)
    entry = admin.get(f"/v1/log/entries/{issued['log_entry']}")["entry"]
    assert (entry["who"]["kind"], entry["who"]["issuer"], entry["who"]["subject"]) == ("oidc", issuer.url, "job")
    wrong = [
        ("another audience", issuer.token(aud="other", **claims), Kind.NOT_AUTHENTICATED),
        ("its time is over", issuer.token(lifetime=-60, **claims), Kind.NOT_AUTHENTICATED),
        ("another key", issuer.token(key=ec.generate_private_key(ec.SECP256R1()), **claims), Kind.NOT_AUTHENTICATED),
        ("another issuer", issuer.token(**claims, iss="https://evil.example"), Kind.NOT_AUTHENTICATED),
        ("a changed signature", issuer.token(**claims)[:-8] + "AAAAAAAA", Kind.NOT_AUTHENTICATED),
        ("another team", issuer.token(**{**claims, "team": "other"}), Kind.NOT_ALLOWED),
        ("a claim that would widen", issuer.token(**{**claims, "repository": "*"}), Kind.NAME_NOT_ALLOWED),
        ("a claim with a path in it", issuer.token(**{**claims, "repository": "../admin"}), Kind.NAME_NOT_ALLOWED),
    ]
    for sentence, token, kind in wrong:
        with live.client(token) as client:
            answer = client("POST", "/v1/certificates", body)
            assert answer.kind == kind.value, f"{sentence}: {answer.status} {answer.text}"


def test_a_token_that_serves_once_is_not_taken_again(live: Live, issuer: Issuer) -> None:
    issuer.apply(live, identities=[f"{PREFIX}/once"], claims={"team": "once"}, single_use=True)
    csr = new_request("p256", identity=None)[1]
    token = issuer.token(sub="job", team="once")
    with live.client(token) as client:
        body = {"csr": csr, "identity": f"{PREFIX}/once"}
        client("POST", "/v1/certificates", {**body, "identity": f"{PREFIX}/other"}).refused(Kind.NAME_NOT_ALLOWED)
        client("POST", "/v1/certificates", body).ok(201)
        client("POST", "/v1/certificates", body).refused(Kind.REPLAYED)
        results = client("POST", "/v1/certificates:batch", {"requests": [body] * 3}).ok()["results"]
        assert {result["problem"]["kind"] for result in results} == {"replayed"}
    with live.client(issuer.token(sub="job", team="once")) as client:
        client("POST", "/v1/certificates", body).ok(201)
    with live.client(issuer.token(sub="job", team="once", jti=None)) as client:
        client("POST", "/v1/certificates", body).refused(Kind.NOT_AUTHENTICATED, "jti")
