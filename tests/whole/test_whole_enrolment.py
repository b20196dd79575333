"""Agents that enrol by evidence with a real server: each method, and what happens when every credential has ended."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp import wire
from handclasp.agent import enroll, status
from handclasp.agent.evidence import reenrol
from handclasp.agent.loop import own_identity
from handclasp.agent.obtain import renew
from handclasp.agent.state import AgentFile, Enrolment, StateDirectory
from handclasp.client.api import ApiClient, Credential
from handclasp.client.csr import new_request
from handclasp.client.settings import ClientSettings
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from support.agents import running
from support.evidence import ACCOUNT, Cloud, DeviceAuthority, indented, metadata_service, pem
from support.kube import Cluster, Pod, cluster_entry
from support.live import Live, serving
from support.oidc import AUDIENCE, Issuer
from support.programs import Shell
from support.waiting import eventually

NOW = int(time.time() * 1000)
METHODS = ("oidc", "kubernetes", "x509", "aws")
NAMES = {"oidc": "ci-r1", "kubernetes": "node-1", "x509": "rack-1", "aws": "i-0123456789abcdef0"}


class Estate:
    """Where evidence is found for one agent of each method, and the policy that takes it."""

    def __init__(self, directory: Path, live: Live, issuer: Issuer, metadata: str, cloud: Cloud) -> None:
        self.directory, self.live, self.issuer, self.metadata, self.cloud = directory, live, issuer, metadata, cloud
        self.cluster, self.devices = Cluster(), DeviceAuthority(NOW)
        key, certificate = self.devices.device("rack-1")
        self.file("device.key").write_bytes(keys.to_pem(key))
        self.file("device.pem").write_text(pem(certificate))
        self.renew_tokens()

    def file(self, name: str) -> Path:
        return self.directory / name

    def renew_tokens(self) -> None:
        """Do what rotates projected tokens."""
        self.file("ci.token").write_text(self.issuer.token(sub="runner:1", pool="build", runner="r1", lifetime=30))
        pod = Pod("handclasp", "agent", "agent-x", "uid", node="node-1")
        self.file("pod.token").write_text(self.cluster.token(pod, aud="handclasp", lifetime=30))

    def enrolment(self, method: str) -> Enrolment:
        return {
            "oidc": Enrolment(method="oidc", token_file=str(self.file("ci.token"))),
            "kubernetes": Enrolment(method="kubernetes", cluster="a", token_file=str(self.file("pod.token"))),
            "x509": Enrolment(method="x509", cert_file=str(self.file("device.pem")), key_file=str(self.file("device.key"))),
            "aws": Enrolment(method="aws", metadata_url=self.metadata),
        }[method]

    def apply(self, ttl: str = "10s", *, once: bool = False) -> None:
        """Put the policy in force."""
        policy = f"""
version: 1
oidc: [{{name: ci, issuer: "{self.issuer.url}", audience: {AUDIENCE}}}]
clusters: [{json.dumps(cluster_entry(self.cluster, name="a"))}]
enrolment:
  - {{name: runners, evidence: oidc, issuer: ci, claims: {{pool: build}}, identity: "spiffe://example.org/agent/ci-{{runner}}",
     labels: {{role: "ci-r1"}}, ttl: {ttl}}}
  - {{name: nodes, evidence: kubernetes, cluster: a, service_accounts: [handclasp/agent], audience: handclasp,
     identity: "spiffe://example.org/agent/{{node}}", labels: {{role: "{{node}}"}}, ttl: {ttl}}}
  - name: racks
    evidence: x509
    ca: |
{indented(self.devices.pem)}
    identity: "spiffe://example.org/agent/{{common_name}}"
    labels: {{role: "{{common_name}}"}}
    ttl: {ttl}
  - name: instances
    evidence: aws
    accounts: ["{ACCOUNT}"]
    once: {str(once).lower()}
    certificates: |
{indented(self.cloud.pem)}
    identity: "spiffe://example.org/agent/{{instance}}"
    labels: {{role: "{{instance}}"}}
    ttl: {ttl}
workloads:
""" + "".join(
            f'  - {{name: {method}, agents: {{role: "{name}"}}, selectors: ["unix:uid:1"], ttl: 10s,\n'
            f"     identity: spiffe://example.org/prod/{method}}}\n"
            for method, name in NAMES.items()
        )
        with self.live.client(self.live.admin_token) as admin:
            admin("PUT", "/v1/policy", {"text": policy}).ok()

    @property
    def settings(self) -> ClientSettings:
        return ClientSettings(self.live.facts["https"], self.live.facts["ca_file"])

    def host(self, method: str) -> Path:
        """Write the configuration of an agent; return its path."""
        home = self.directory / f"host-{method}"
        home.mkdir(exist_ok=True)
        (home / "agent.yaml").write_text(
            f"version: 1\npoll: 1s\nidentities:\n  - {{identity: spiffe://example.org/prod/{method}, ttl: 10s}}\n"
        )
        return home / "agent.yaml"

    def enrol(self, method: str) -> AgentFile:
        return enroll(self.settings, None, self.host(method).parent / "state", enrolment=self.enrolment(method))

    def state(self, method: str) -> StateDirectory:
        return StateDirectory(self.host(method).parent / "state")

    def own_sha256(self, method: str) -> str:
        obtained = self.state(method).own.obtained()
        return obtained.sha256 if obtained is not None else ""

    def served(self, method: str) -> str:
        """Return the fingerprint of the workload's certificate while it is good, or nothing."""
        obtained = self.state(method).identity(f"spiffe://example.org/prod/{method}").obtained()
        return obtained.sha256 if obtained is not None and obtained.not_after > time.time() * 1000 else ""


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    issuer, cloud = Issuer(), Cloud(NOW)
    document = cloud.document()
    with (
        serving(tmp_path_factory.mktemp("live"), "--oidc-allow-http", "--rate-refused", "1000") as live,
        metadata_service(document, cloud.message(document)) as metadata,
    ):
        yield Estate(tmp_path_factory.mktemp("estate"), live, issuer, metadata, cloud)
    issuer.close()


@contextmanager
def agents(estate: Estate, *methods: str) -> Iterator[None]:
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(running(estate.host(method)))
        yield


def test_agents_enrol_by_evidence_and_again_when_every_credential_has_ended(estate: Estate) -> None:
    estate.apply()
    for method in METHODS:
        made = estate.enrol(method)
        assert made.identity == f"spiffe://example.org/agent/{NAMES[method]}"
        assert made.enrolment.again
        text = (estate.state(method).root / "agent.json").read_text()
        assert "eyJ" not in text  # where evidence is found is remembered, and not what it says
        assert "PRIVATE" not in text
    with agents(estate, *METHODS):
        for method in METHODS:
            eventually(lambda method=method: estate.served(method), what=f"{method} has its workload's certificate")
    # Everything ends: the agents' own certificates, those of their workloads, and the first tokens.
    before = {method: estate.own_sha256(method) for method in METHODS}
    held = [obtained for method in METHODS if (obtained := estate.state(method).own.obtained()) is not None]
    eventually(lambda: time.time() * 1000 > max(obtained.not_after for obtained in held) + 500, what="every certificate has ended")
    estate.renew_tokens()
    with agents(estate, *METHODS):
        for method in METHODS:
            eventually(lambda method=method: estate.own_sha256(method) != before[method], what=f"{method} enrolled again by itself")
            eventually(lambda method=method: estate.served(method), what=f"{method} serves again")
            eventually(lambda method=method: status(estate.state(method).root).healthy, what=f"{method} is well")


def test_an_agent_whose_evidence_serves_once_says_in_time_what_a_person_must_do(estate: Estate) -> None:
    estate.apply(once=True)
    document = estate.cloud.document(instanceId="i-00000000000000001")
    home = estate.host("aws-once").parent
    (home / "document").write_bytes(document)
    (home / "signature").write_bytes(b"-----BEGIN PKCS7-----\n" + _base64(estate.cloud.message(document)) + b"-----END PKCS7-----\n")
    how = Enrolment(method="aws", document_file=str(home / "document"), signature_file=str(home / "signature"))
    made = enroll(estate.settings, None, home / "state", enrolment=how)
    assert not made.enrolment.again
    with pytest.raises(HandclaspError) as refused:
        enroll(estate.settings, None, home / "other-state", enrolment=how)
    assert refused.value.kind is Kind.REPLAYED
    own = StateDirectory(home / "state").own.obtained()
    assert own is not None

    def said(at: int) -> str:
        return "\n".join(status(home / "state", clock=lambda: at).todo)

    assert "cannot enrol again by itself" not in said(own.renew_before - 1)
    assert "cannot enrol again by itself" in said(own.renew_before + 1)  # while there is still time
    assert "revoke its last certificate" in said(own.renew_before + 1)
    assert "handclasp agent enroll" in said(own.not_after + 1)


def test_a_renewal_that_a_copy_of_the_host_made_impossible_becomes_an_enrolment(estate: Estate, tmp_path: Path) -> None:
    estate.apply("1h")
    made = enroll(estate.settings, None, tmp_path / "state", enrolment=estate.enrolment("x509"))
    state = StateDirectory(tmp_path / "state")
    credential, held, own = state.own.read(), state.own.obtained(), own_identity(made.identity)
    assert held is not None
    with ApiClient(estate.settings.url, ca=estate.settings.ca) as client:
        taken, ahead = credential, held.sha256
        for _ in range(2):  # a copy renews, and renews what it got: the answer was not lost
            key, csr = new_request("p256", identity=made.identity)
            with client.with_credential(taken) as holder:
                issued = holder.renew(ahead, wire.RenewRequest(csr=csr))
            taken, ahead = Credential((issued.certificate + issued.chain).encode(), key), issued.sha256
        with pytest.raises(HandclaspError) as refused:
            renew(client, own, held, credential, own=True)
        assert refused.value.kind is Kind.SUPERSEDED
        again = reenrol(state, made, estate.settings.url, estate.settings.ca)
        _, issued, wanted = renew(client, own, held, credential, own=True, enrol=again)
        assert (issued.identity, wanted) == (made.identity, own.digest)


def test_a_revoked_agent_does_not_enrol_again_by_itself(estate: Estate) -> None:
    estate.apply()
    estate.renew_tokens()
    estate.enrol("kubernetes")
    with agents(estate, "kubernetes"):
        eventually(lambda: estate.served("kubernetes"), what="it serves")
        held = estate.own_sha256("kubernetes")
        with estate.live.client(estate.live.admin_token) as admin:
            admin("POST", f"/v1/certificates/{held}:revoke", {"reason": "superseded"}).ok()
        own = estate.state("kubernetes").own
        eventually(lambda: own.load().blocked == held, what="its renewal was refused")
        assert estate.own_sha256("kubernetes") == held  # whoever revoked it had a reason
        assert "enrol this host again" in "\n".join(status(estate.state("kubernetes").root).todo)


def test_an_agent_that_is_refused_tries_again_and_not_in_a_loop(estate: Estate) -> None:
    estate.apply()
    made = estate.enrol("oidc")
    held = estate.state("oidc").own.obtained()
    assert held is not None
    estate.file("ci.token").write_text(estate.issuer.token(sub="runner:1", pool="other", runner="r1"))
    eventually(lambda: time.time() * 1000 > held.not_after + 500, what="its certificate has ended")
    with estate.live.client(estate.live.admin_token) as admin:
        before = len(admin.get("/v1/log/entries", type="agent.refused", limit=1000)["items"])
        with agents(estate, "oidc"):
            state = estate.state("oidc")
            eventually(lambda: state.own.load().failures >= 2, what="it was refused twice")
            refusals = len(admin.get("/v1/log/entries", type="agent.refused", limit=1000)["items"]) - before
            assert refusals <= state.own.load().failures + 1
            assert not status(state.root).healthy
            estate.renew_tokens()
            eventually(lambda: estate.own_sha256("oidc") != held.sha256, 60, what="it enrols as soon as its evidence is good again")
    assert made.enrolment.again


def test_the_command_line_enrols_by_evidence(estate: Estate, tmp_path: Path) -> None:
    estate.apply("1h")
    shell = Shell(tmp_path, estate.live.environment)
    key, certificate = estate.devices.device("rack-9")
    (tmp_path / "d.key").write_bytes(keys.to_pem(key))
    (tmp_path / "d.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    options = ("--cert", tmp_path / "d.pem", "--key", tmp_path / "d.key", "--state-dir", tmp_path / "state", "--json")
    done = shell.run("agent", "enroll", "--method", "x509", *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["identity"], told["enrolment"]["method"]) == ("spiffe://example.org/agent/rack-9", "x509")
    wrong = shell.run("agent", "enroll", "--method", "kubernetes", "--state-dir", tmp_path / "state")
    assert wrong.returncode != 0
    assert "--cluster" in wrong.stderr


def test_many_machines_at_once_each_become_their_own_agent(estate: Estate, tmp_path: Path) -> None:
    estate.apply("1h")
    found: list[str] = []

    def one(number: int) -> None:
        key, certificate = estate.devices.device(f"rack-m{number}")
        files = tmp_path / f"{number}.key", tmp_path / f"{number}.pem"
        files[0].write_bytes(keys.to_pem(key))
        files[1].write_text(pem(certificate))
        how = Enrolment(method="x509", cert_file=str(files[1]), key_file=str(files[0]))
        found.append(enroll(estate.settings, None, tmp_path / f"state{number}", enrolment=how).identity)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"spiffe://example.org/agent/rack-m{number}" for number in range(8)]


def _base64(data: bytes) -> bytes:
    return base64.encodebytes(data)
