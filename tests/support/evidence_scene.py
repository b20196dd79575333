"""Every method of enrolment in one policy, with those who sign for it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from handclasp import wire
from handclasp.access.clusters import Clusters
from handclasp.access.evidence.challenge import Challenges
from handclasp.access.evidence.verifier import EvidenceVerifier
from handclasp.access.oidc import OidcVerifier
from handclasp.access.policy import Policy, parse_policy
from handclasp.access.principals import EvidencePrincipal
from handclasp.pki import keys
from support.access import NOW
from support.evidence import ACCOUNT, Cloud, DeviceAuthority, indented, pem, signed
from support.kube import Cluster, Pod, cluster_entry

CSR = bytes(range(32))

AGENT = Pod("handclasp", "agent", "agent-x1", "uid-x1", node="n1")

OIDC_ISSUER = "https://ci.example.org"


@dataclass
class Scene:
    """A policy with every method in it, those who sign for it, and a verifier under a clock that the test moves."""

    now: int = NOW
    fetched: int = 0
    devices: DeviceAuthority = field(default_factory=lambda: DeviceAuthority(NOW))
    cloud: Cloud = field(default_factory=lambda: Cloud(NOW))
    cluster: Cluster = field(default_factory=Cluster)
    ci: Cluster = field(default_factory=lambda: Cluster(OIDC_ISSUER))

    def __post_init__(self) -> None:
        self.policy = self.parse()
        connect: Any = None
        self.challenges = Challenges(b"secret" * 8, lambda: self.now)
        oidc = OidcVerifier((), self.fetch, lambda: self.now)
        self.verifier = EvidenceVerifier(oidc, Clusters(self.fetch, connect, lambda: self.now), self.challenges, lambda: self.now)

    async def fetch(self, url: str) -> bytes:
        self.fetched += 1
        if url.endswith("/keys"):
            return self.ci.jwks.encode()
        return json.dumps({"issuer": OIDC_ISSUER, "jwks_uri": OIDC_ISSUER + "/keys"}).encode()

    def parse(self, *more: str, **changes: str) -> Policy:
        text = f"""
version: 1
oidc: [{{name: ci, issuer: "{OIDC_ISSUER}", audience: handclasp, single_use: true}}]
clusters: [{json.dumps(cluster_entry(self.cluster, name="prod-a"))}]
enrolment:
  - {{name: runners, evidence: oidc, issuer: ci, claims: {{pool: build}}, identity: "spiffe://td/agent/ci-{{runner}}"}}
  - {{name: nodes, evidence: kubernetes, cluster: prod-a, service_accounts: [handclasp/agent], audience: handclasp,
     identity: "spiffe://td/agent/{{cluster}}-{{node}}"}}
  - name: racks
    evidence: x509
    ca: |
{indented(self.devices.pem)}
    dns: ["*.rack.example.org"]
    identity: "spiffe://td/agent/{{dns}}"
  - name: instances
    evidence: aws
    accounts: ["{ACCOUNT}"]
    max_age: 15m
    certificates: |
{indented(Cloud(NOW, 1).pem)}
{indented(self.cloud.pem)}
    identity: "spiffe://td/agent/{{instance}}"
"""
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        return parse_policy(text + "".join(more))

    def verify(self, evidence: wire.Evidence, csr: bytes = CSR, source: str | None = "10.0.0.1") -> EvidencePrincipal:
        return asyncio.run(self.verifier.verify(evidence, csr, self.policy, source))

    # --- evidence ---------------------------------------------------------------------------------------------------------------------

    def runner(self, **claims: Any) -> wire.Evidence:
        at = self.now // 1000
        known = {"iss": OIDC_ISSUER, "aud": "handclasp", "iat": at, "exp": at + 300, "sub": "runner:7", "jti": "j1", "pool": "build"}
        token = {key: value for key, value in {**known, "runner": "r7", **claims}.items() if value is not None}
        return wire.Evidence(method="oidc", token=self.ci.sign(token))

    def pod(self, pod: Pod = AGENT, cluster: str = "prod-a", **more: Any) -> wire.Evidence:
        known = {"aud": "handclasp", "now": self.now / 1000}
        return wire.Evidence(method="kubernetes", cluster=cluster, token=self.cluster.token(pod, **(known | more)))

    def device(self, csr: bytes = CSR, key: keys.PrivateKey | None = None, challenge: str = "", **made: Any) -> wire.Evidence:
        own, certificate = self.devices.device(**{"dns": ["r1.rack.example.org"], **made})
        return signed(key or own, pem(certificate), challenge or self.challenges.make()[0], csr)

    def instance(self, **changes: Any) -> wire.Evidence:
        document = self.cloud.document(**changes)
        return self.cloud.evidence(document, self.cloud.message(document))
