"""Enrolment by evidence over the API: challenge, certificate, what is logged of a refusal, and the workloads of an agent."""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.evidence import ACCOUNT, Cloud, DeviceAuthority, indented, pem, signed
from support.kube import Cluster, Pod, cluster_entry
from support.live import Client, Live, serving
from support.oidc import AUDIENCE, Issuer

NOW = int(time.time() * 1000)


class Scene:
    """A policy in force on the live server, and who signs for it."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer, self.cluster, self.devices, self.cloud = issuer, Cluster(), DeviceAuthority(NOW), Cloud(NOW)
        self.policy = f"""
version: 1
oidc: [{{name: ci, issuer: "{issuer.url}", audience: {AUDIENCE}}}]
clusters: [{json.dumps(cluster_entry(self.cluster, name="a"))}]
enrolment:
  - {{name: runners, evidence: oidc, issuer: ci, claims: {{pool: build}}, identity: "spiffe://example.org/agent/ci-{{runner}}",
     labels: {{role: ci}}}}
  - {{name: nodes, evidence: kubernetes, cluster: a, service_accounts: [handclasp/agent], audience: handclasp,
     identity: "spiffe://example.org/agent/k8s-{{node}}", labels: {{role: node}}}}
  - name: racks
    evidence: x509
    ca: |
{indented(self.devices.pem)}
    identity: "spiffe://example.org/agent/{{common_name}}"
    labels: {{role: rack, rack: "{{common_name}}"}}
  - name: instances
    evidence: aws
    accounts: ["{ACCOUNT}"]
    certificates: |
{indented(self.cloud.pem)}
    identity: "spiffe://example.org/agent/aws-{{account}}-{{instance}}"
    labels: {{role: cloud}}
workloads:
  - {{name: rack-web, agents: {{role: rack}}, selectors: ["unix:uid:33"], identity: "spiffe://example.org/racks/{{rack}}/web"}}
  - {{name: pods, agents: {{role: node}}, selectors: ["k8s:container-name:app"], identity: "spiffe://example.org/k8s/{{k8s:ns}}"}}
"""

    def evidence(self, method: str, client: Client, digest: bytes, number: int = 0) -> dict[str, Any]:
        if method == "oidc":
            return {"method": "oidc", "token": self.issuer.token(sub="runner:7", pool="build", runner=f"r{number}")}
        if method == "kubernetes":
            pod = Pod("handclasp", "agent", "agent-x", "uid", node=f"node-{number}")
            return {"method": "kubernetes", "cluster": "a", "token": self.cluster.token(pod, aud="handclasp")}
        if method == "x509":
            key, certificate = self.devices.device(f"rack-{number}")
            challenge = client("POST", "/v1/agents:challenge").ok()["challenge"]
            found: dict[str, Any] = msgspec.to_builtins(signed(key, pem(certificate), challenge, digest))
            return found
        document = self.cloud.document(instanceId=f"i-{number:017x}")
        built: dict[str, Any] = msgspec.to_builtins(self.cloud.evidence(document, self.cloud.message(document)))
        return built


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    issuer = Issuer()
    yield Scene(issuer)
    issuer.close()


@pytest.fixture
def applied(live: Live, scene: Scene) -> Scene:
    with live.client(live.admin_token) as admin:
        admin("PUT", "/v1/policy", {"text": scene.policy}).ok()
    return scene


def request() -> tuple[bytes, str, bytes]:
    """Return a key, a CSR and the digest of its DER."""
    key, csr = new_request("p256", identity=None)
    der = ssl.PEM_cert_to_DER_cert(csr.replace("CERTIFICATE REQUEST", "CERTIFICATE"))
    return key, csr, hashlib.sha256(der).digest()


NAMES = {"oidc": "ci-r{}", "kubernetes": "k8s-node-{}", "x509": "rack-{}", "aws": f"aws-{ACCOUNT}-i-{{:017x}}"}


@pytest.mark.parametrize("method", list(NAMES))
def test_evidence_becomes_an_agent(live: Live, applied: Scene, nobody: Client, admin: Client, method: str) -> None:
    number = 10
    key, csr, digest = request()
    answer = nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": applied.evidence(method, nobody, digest, number)}).ok(201)
    identity = "spiffe://example.org/agent/" + NAMES[method].format(number)
    assert answer["identity"] == identity
    assert answer["again"] is (method != "aws")
    (entry,) = admin.get("/v1/log/entries", subject=f"agent:{identity}")["items"]
    assert entry["entry"]["type"] == "agent.enrolled"
    assert entry["entry"]["who"]["kind"] == "evidence"
    assert entry["entry"]["who"]["method"] == method
    assert entry["entry"]["who"]["subject"]
    holder = live.keep(answer, key)
    with live.client(holder=holder) as agent:
        report = {"hostname": "h", "version": "1", "identities": []}
        agent("PUT", "/v1/agents/self", report).ok()
        # Its certificate is for agents' work, and the same evidence does not make it another's.
        agent("GET", "/v1/certificates").refused(Kind.NOT_ALLOWED)
        refused = agent("POST", "/v1/certificates", {"csr": request()[1], "identity": "spiffe://example.org/prod/x"})
        assert refused.kind in ("not_allowed", "name_not_allowed")
        renewed = agent("POST", f"/v1/certificates/{holder.sha256}:renew", {"csr": request()[1]}).ok(201)
        assert renewed["identity"] == identity


def test_workloads_are_told_with_a_tag(live: Live, applied: Scene, nobody: Client, admin: Client) -> None:
    key, csr, digest = request()
    issued = nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": applied.evidence("x509", nobody, digest, 20)}).ok(201)
    with live.client(holder=live.keep(issued, key)) as agent:
        answer = agent("GET", "/v1/agents/self/workloads")
        (workload,) = answer.ok()["items"]
        assert (workload["name"], workload["identity"]) == ("rack-web", "spiffe://example.org/racks/rack-20/web")
        same = {"If-None-Match": answer.headers["etag"]}
        assert agent("GET", "/v1/agents/self/workloads", headers=same).status == 304
        web = agent("POST", "/v1/certificates", {"csr": request()[1], "identity": workload["identity"]}).ok(201)
        assert web["identity"] == workload["identity"]
        agent("POST", "/v1/certificates", {"csr": request()[1], "identity": "spiffe://example.org/racks/rack-21/web"}).refused(
            Kind.NAME_NOT_ALLOWED
        )
        admin("PUT", "/v1/policy", {"text": applied.policy.replace("unix:uid:33", "unix:uid:34")}).ok()
        assert agent("GET", "/v1/agents/self/workloads", headers=same).ok()["items"][0]["selectors"] == ["unix:uid:34"]
        admin("PUT", "/v1/policy", {"text": applied.policy.replace("name: racks", "name: shelves")}).ok()
        assert agent("GET", "/v1/agents/self/workloads", headers=same).ok()["items"] == []
    nobody("GET", "/v1/agents/self/workloads").refused(Kind.NOT_AUTHENTICATED)
    assert admin("GET", "/v1/agents/self/workloads").ok()["items"] == []


def test_a_refusal_is_one_entry_with_method_rule_and_reason(applied: Scene, nobody: Client, admin: Client) -> None:
    _, csr, digest = request()
    before = admin.get("/v1/log/entries", type="access.refused", limit=1)["items"]
    evidence = {"method": "oidc", "token": applied.issuer.token(sub="runner:7", pool="other", runner="r1")}
    nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": evidence}).refused(Kind.NOT_ALLOWED, "the claim pool")
    newest = admin.get("/v1/log/entries", type="agent.refused", limit=1)["items"][0]["entry"]
    assert newest["what"] == {"method": "oidc", "rule": "runners"}
    assert newest["why"]["kind"] == "not_allowed"
    assert "the claim pool" in newest["why"]["reason"]
    assert newest["from"]["address"]
    replay = applied.evidence("x509", nobody, digest, 30)
    nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": replay}).ok(201)
    nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": replay}).refused(Kind.REPLAYED)
    newest = admin.get("/v1/log/entries", type="agent.refused", limit=1)["items"][0]["entry"]
    assert newest["who"]["rule"] == "racks"
    assert newest["why"]["kind"] == "replayed"
    other = request()[1]
    nobody("POST", "/v1/agents:enroll", {"csr": other, "evidence": replay}).refused(Kind.NOT_AUTHENTICATED, "not by the certificate's key")
    secret = {"method": "hct_abc_secret", "token": "x"}
    nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": secret}).refused(Kind.NOT_AUTHENTICATED)
    assert "secret" not in json.dumps(admin.get("/v1/log/entries", type="agent.refused", limit=1))
    assert admin.get("/v1/log/entries", type="access.refused", limit=1)["items"] == before


def test_an_instance_enrols_once(applied: Scene, nobody: Client, admin: Client) -> None:
    _, csr, digest = request()
    evidence = applied.evidence("aws", nobody, digest, 40)
    issued = nobody("POST", "/v1/agents:enroll", {"csr": csr, "evidence": evidence}).ok(201)
    body = {"csr": request()[1], "evidence": evidence}
    nobody("POST", "/v1/agents:enroll", body).refused(Kind.REPLAYED, "enrolled before")
    admin("POST", f"/v1/certificates/{issued['sha256']}:revoke", {"reason": "superseded"}).ok()
    nobody("POST", "/v1/agents:enroll", {"csr": request()[1], "evidence": evidence}).ok(201)


def test_what_is_no_request_is_refused_before_anything_is_verified(applied: Scene, nobody: Client) -> None:
    nobody("POST", "/v1/agents:enroll", {"csr": "x", "evidence": {"method": "oidc"}}).refused(Kind.BAD_CSR)
    nobody("POST", "/v1/agents:enroll", {"csr": request()[1]}).refused(Kind.BAD_REQUEST)
    nobody("POST", "/v1/agents:enroll", {"csr": request()[1], "evidence": {"method": "oidc", "name": "x"}}).refused(Kind.BAD_REQUEST)
    named = new_request("p256", identity="spiffe://example.org/agent/other")[1]
    evidence = applied.evidence("oidc", nobody, b"", 50)
    nobody("POST", "/v1/agents:enroll", {"csr": named, "evidence": evidence}).refused(Kind.BAD_NAME)


def test_who_is_refused_all_the_time_has_to_wait(tmp_path: Path) -> None:
    with serving(tmp_path, "--rate-refused", "2") as live, live.client() as nobody, live.client(live.admin_token) as admin:
        body = {"csr": request()[1], "evidence": {"method": "oidc", "token": "a.b.c"}}
        kinds = [nobody("POST", "/v1/agents:enroll", body).kind for _ in range(20)]
        assert kinds[0] == "not_allowed"
        assert "rate_limited" in kinds
        logged = admin.get("/v1/log/entries", type="agent.refused", limit=100)["items"]
        assert len(logged) < 20
