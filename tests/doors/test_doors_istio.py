"""Istio's CA over its real listener: everything that pilot-agent and ztunnel check, and everything that must be refused."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpclib.const import Status

from handclasp.doors.grpc import STATUS
from handclasp.errors import Kind
from support.kube import WEB, ZTUNNEL, Cluster
from support.mesh import (
    RETRIED,
    MeshClient,
    check_as_pilot_agent,
    check_as_ztunnel,
    connected,
    pilot_csr,
    request,
    uri,
    ztunnel_csr,
)
from support.meshes import Mesh

IDENTITY = "spiffe://example.org/ns/prod/sa/web"


def lifetime(leaf: x509.Certificate) -> float:
    return (leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).total_seconds()


# --- what both clients need -------------------------------------------------------------------------------------------------------------


def test_ztunnel_gets_what_it_checks(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        key, csr = ztunnel_csr(IDENTITY)
        leaf = check_as_ztunnel(await client.create(csr, mesh.cluster.token(WEB)), key, IDENTITY)
        assert 86_000 < lifetime(leaf) <= 86_400
        assert leaf.not_valid_before_utc < datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=110)  # for clocks behind
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca

    mesh.run(work)


def test_pilot_agent_gets_what_it_checks(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        key, csr = pilot_csr(IDENTITY)
        assert isinstance(key, rsa.RSAPrivateKey)
        check_as_ztunnel(await client.create(csr, mesh.cluster.token(WEB)), key, IDENTITY)
        for curve in (ec.SECP256R1(), ec.SECP384R1()):  # ECC_SIGNATURE_ALGORITHM, ECC_CURVE
            key, csr = pilot_csr(IDENTITY, ec.generate_private_key(curve))
            check_as_pilot_agent(await client.create(csr, mesh.cluster.token(WEB)), key)

    mesh.run(work)


def test_a_request_that_names_nothing_gets_the_identity_of_its_sender(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        check_as_ztunnel(await client.create(request(key), mesh.cluster.token(WEB)), key, IDENTITY)
        usual = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        key = ec.generate_private_key(ec.SECP256R1())
        csr = request(key, uri(IDENTITY), (usual, True), (both, False))
        check_as_ztunnel(await client.create(csr, mesh.cluster.token(WEB)), key, IDENTITY)

    mesh.run(work)


def test_what_was_issued_is_a_row_and_an_entry_with_its_grant_and_its_caller(mesh: Mesh) -> None:
    _, csr = ztunnel_csr(IDENTITY)
    chain = mesh.run(lambda client: client.create(csr, mesh.cluster.token(WEB)))
    sha256 = x509.load_pem_x509_certificate(chain[0].encode()).fingerprint(hashes.SHA256()).hex()
    with mesh.live.client(mesh.live.admin_token) as admin:
        row = admin.get(f"/v1/certificates/{sha256}")
    assert (row["identity"], row["profile"]) == (IDENTITY, "mesh")
    entry = next(entry for entry in mesh.entries("certificate.issued") if entry["what"]["sha256"] == sha256)
    assert entry["why"] == {"grant": "policy:mesh"}
    assert entry["from"]["door"] == "istio"
    assert entry["who"] == {
        "kind": "kubernetes", "cluster": "Kubernetes", "namespace": "prod", "service_account": "web", "pod": "web-1", "node": "node-1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "shortest", "longest"),
    [(0, 86_000, 86_400), (-5, 86_000, 86_400), (600, 590, 600), (2, 5, 10), (10**9, 86_000, 86_400), (2**63 - 1, 86_000, 86_400)],
)
def test_a_lifetime_is_brought_within_bounds_and_not_refused(mesh: Mesh, seconds: int, shortest: float, longest: float) -> None:
    key, csr = ztunnel_csr(IDENTITY)
    leaf = check_as_pilot_agent(mesh.run(lambda client: client.create(csr, mesh.cluster.token(WEB), seconds=seconds)), key)
    assert shortest < lifetime(leaf) <= longest


def test_the_grant_bounds_the_lifetime_too(mesh: Mesh) -> None:
    mesh.apply(max_ttl="30m")
    try:
        for seconds, most in ((0, 1800), (86_400, 1800), (900, 900)):
            key, csr = ztunnel_csr(IDENTITY)
            leaf = check_as_pilot_agent(mesh.run(lambda client: client.create(csr, mesh.cluster.token(WEB), seconds=seconds)), key)  # noqa: B023
            assert most - 20 < lifetime(leaf) <= most
    finally:
        mesh.apply()


def test_a_signer_is_a_profile_that_the_policy_must_allow(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        token = mesh.cluster.token(WEB)
        key, csr = ztunnel_csr(IDENTITY)
        assert lifetime(check_as_pilot_agent(await client.create(csr, token, signer="mesh-short"), key)) <= 3600
        await client.refused(Status.INVALID_ARGUMENT, ztunnel_csr(IDENTITY)[1], token, signer="nowhere.example.org/x", says="no profile")
        await client.refused(
            Status.PERMISSION_DENIED, ztunnel_csr(IDENTITY)[1], token, signer="workload", says="does not allow the profile"
        )

    mesh.run(work)


# --- asking for something else ----------------------------------------------------------------------------------------------------------


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes])


def san(*names: x509.GeneralName) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName(list(names)), True


OWN = x509.UniformResourceIdentifier(IDENTITY)


@pytest.mark.parametrize(
    ("extensions", "subject", "status"),
    [
        ([uri("spiffe://example.org/ns/prod/sa/admin")], None, Status.PERMISSION_DENIED),
        ([uri("spiffe://elsewhere.example/ns/prod/sa/web")], None, Status.PERMISSION_DENIED),
        ([san(OWN, x509.DNSName("web.example.org"))], None, Status.PERMISSION_DENIED),
        ([san(x509.DNSName("web.example.org"))], None, Status.PERMISSION_DENIED),
        ([san(OWN, x509.IPAddress(ipaddress.ip_address("10.0.0.1")))], None, Status.PERMISSION_DENIED),
        ([san(OWN, x509.RFC822Name("who@example.org"))], None, Status.PERMISSION_DENIED),
        ([san(OWN, x509.UniformResourceIdentifier("spiffe://example.org/ns/prod/sa/admin"))], None, Status.INVALID_ARGUMENT),
        ([san(x509.UniformResourceIdentifier("https://example.org/"))], None, Status.INVALID_ARGUMENT),
        ([uri(IDENTITY)], name((NameOID.COMMON_NAME, "web")), Status.INVALID_ARGUMENT),
        ([uri(IDENTITY)], name((NameOID.ORGANIZATION_NAME, "acme")), Status.INVALID_ARGUMENT),
        ([uri(IDENTITY), (x509.BasicConstraints(True, None), True)], None, Status.INVALID_ARGUMENT),
        ([uri(IDENTITY), (x509.BasicConstraints(False, None), True)], None, Status.INVALID_ARGUMENT),
        (
            [uri(IDENTITY), (x509.KeyUsage(True, False, False, False, False, True, False, False, False), True)],
            None,
            Status.INVALID_ARGUMENT,
        ),
        ([uri(IDENTITY), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)], None, Status.INVALID_ARGUMENT),
        (
            [uri(IDENTITY), (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False)],
            None,
            Status.INVALID_ARGUMENT,
        ),
    ],
)
def test_a_request_for_anything_else_is_refused(mesh: Mesh, extensions: Any, subject: x509.Name | None, status: Status) -> None:
    csr = request(ec.generate_private_key(ec.SECP256R1()), *extensions, subject=subject)
    mesh.run(lambda client: client.refused(status, csr, mesh.cluster.token(WEB)))


@pytest.mark.parametrize("csr", ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "A" * 20_000])
def test_what_is_no_request_is_an_invalid_argument(mesh: Mesh, csr: str) -> None:
    mesh.run(lambda client: client.refused(Status.INVALID_ARGUMENT, csr, mesh.cluster.token(WEB)))


def test_the_proof_of_possession_is_checked(mesh: Mesh) -> None:
    _, csr = ztunnel_csr(IDENTITY)
    lines = csr.splitlines()
    lines[-2] = lines[-2][:-8] + ("AAAAAAA=" if lines[-2].endswith("=") else "AAAAAAAA")
    mesh.run(lambda client: client.refused(Status.INVALID_ARGUMENT, "\n".join(lines), mesh.cluster.token(WEB)))


def test_a_key_of_another_identity_is_refused(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        key, csr = ztunnel_csr(IDENTITY)
        await client.create(csr, mesh.cluster.token(WEB))
        other = replace(WEB, account="api", uid="uid-api")
        again = ztunnel_csr("spiffe://example.org/ns/prod/sa/api", key)[1]
        await client.refused(Status.PERMISSION_DENIED, again, mesh.cluster.token(other))

    mesh.run(work)


# --- who is asking ----------------------------------------------------------------------------------------------------------------------


def test_who_is_not_known_is_unauthenticated(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        csr = ztunnel_csr(IDENTITY)[1]
        cluster = mesh.cluster
        foreign = Cluster()
        for token, more in (
            (None, {}),
            ("", {}),
            ("nonsense", {}),
            (mesh.live.admin_token, {}),
            (foreign.token(WEB), {}),
            (cluster.token(WEB, aud="handclasp"), {}),
            (cluster.token(WEB, lifetime=-100), {}),
            (cluster.token(WEB), {"cluster": "elsewhere"}),
            (cluster.token(WEB), {"cluster": None}),  # there are three
            (cluster.token(WEB), {"cluster": "other"}),  # the same issuer, other keys
            (cluster.token(WEB), {"cluster": "strict"}),
        ):
            await client.refused(Status.UNAUTHENTICATED, csr, token, **more)
        await client.refused(Status.UNAUTHENTICATED, csr, None, metadata={"authorization": "Basic eDp5"})

    before = len(mesh.entries("access.refused"))
    mesh.run(work)
    found = mesh.entries("access.refused")  # newest first
    entries = found[: len(found) - before]
    assert len(entries) == 12
    assert all(entry["what"]["path"].endswith("/CreateCertificate") and entry["from"]["door"] == "istio" for entry in entries)
    assert any("clusterid is not a cluster of the policy" in entry["why"]["reason"] for entry in entries), "the mesh's operator is told why"


def test_several_clusters_each_have_their_own_accounts(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        for cluster, id_ in ((mesh.cluster, "Kubernetes"), (mesh.other, "other"), (mesh.strict, "strict")):
            key, csr = ztunnel_csr(IDENTITY)
            check_as_ztunnel(await client.create(csr, cluster.token(WEB), cluster=id_), key, IDENTITY)

    mesh.run(work)


def test_what_the_policy_does_not_grant_is_denied_and_logged_once(mesh: Mesh) -> None:
    mesh.apply(principals=[{"kubernetes": "Kubernetes", "namespace": ["prod", "dev"]}])
    try:
        before = len(mesh.entries("issuance.refused")), len(mesh.entries("access.refused"))
        pod = replace(WEB, namespace="secret")
        csr = ztunnel_csr("spiffe://example.org/ns/secret/sa/web")[1]
        mesh.run(lambda client: client.refused(Status.PERMISSION_DENIED, csr, mesh.cluster.token(pod), says="no grant of the policy"))
        assert (len(mesh.entries("issuance.refused")), len(mesh.entries("access.refused"))) == (before[0] + 1, before[1])
        mesh.run(lambda client: client.create(ztunnel_csr(IDENTITY)[1], mesh.cluster.token(WEB)))
    finally:
        mesh.apply()


def test_a_review_is_required_where_the_policy_says_so(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        gone = replace(WEB, uid="uid-gone")
        mesh.strict_api.deleted.add("uid-gone")
        csr = ztunnel_csr(IDENTITY)[1]
        await client.refused(Status.UNAUTHENTICATED, csr, mesh.strict.token(gone), cluster="strict", says="does not take it")
        await client.create(csr, mesh.strict.token(replace(WEB, uid="uid-here")), cluster="strict")

    mesh.run(work)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_outage_of_the_api_server_is_tried_again_and_makes_nobody_a_stranger(mesh: Mesh, status: int) -> None:
    token = mesh.strict.token(replace(WEB, uid=f"uid-{status}"))
    csr = ztunnel_csr(IDENTITY)[1]
    mesh.strict_api.status = status
    try:
        error = mesh.run(lambda client: client.refused(Status.UNAVAILABLE, csr, token, cluster="strict"))
        assert error.status in RETRIED
    finally:
        mesh.strict_api.status = None
    mesh.run(lambda client: client.create(csr, token, cluster="strict"))


# --- a client certificate in the place of a token ---------------------------------------------------------------------------------------


def test_a_workload_renews_with_its_certificate(mesh: Mesh) -> None:
    """As on a virtual machine: the first certificate from elsewhere (PROV_CERT), each further one by the one before (OUTPUT_CERTS)."""
    vm = "spiffe://example.org/ns/vms/sa/db"
    holder = mesh.live.holder(vm)

    async def work(client: MeshClient) -> None:
        key, csr = pilot_csr(vm)
        leaf = check_as_ztunnel(await client.create(csr, seconds=600), key, vm)
        assert 500 < lifetime(leaf) <= 600
        await client.refused(Status.PERMISSION_DENIED, pilot_csr(IDENTITY)[1])
        await client.refused(Status.PERMISSION_DENIED, pilot_csr(vm)[1], signer="mesh", says="keeps the profile")
        await client.refused(Status.UNAUTHENTICATED, pilot_csr(vm)[1], impersonate=IDENTITY)

    mesh.run(work, cert_file=holder.cert_file, key_file=holder.key_file)
    with mesh.live.client(mesh.live.admin_token) as admin:
        assert admin.get(f"/v1/certificates/{holder.sha256}")["superseded_by"] is not None


def test_a_certificate_that_is_revoked_or_an_agents_renews_nothing(mesh: Mesh) -> None:
    vm = "spiffe://example.org/ns/vms/sa/gone"
    holder = mesh.live.holder(vm)
    with mesh.live.client(mesh.live.admin_token) as admin:
        admin("POST", f"/v1/certificates/{holder.sha256}:revoke", {"reason": "superseded"}).ok()
    csr = ztunnel_csr(vm)[1]
    mesh.run(
        lambda client: client.refused(Status.PERMISSION_DENIED, csr, says="revoked"), cert_file=holder.cert_file, key_file=holder.key_file
    )
    agent = mesh.live.holder("spiffe://example.org/agent/here", profile="agent")
    csr = ztunnel_csr("spiffe://example.org/agent/here")[1]
    mesh.run(lambda client: client.refused(Status.PERMISSION_DENIED, csr), cert_file=agent.cert_file, key_file=agent.key_file)


# --- speaking for the pods of a node ----------------------------------------------------------------------------------------------------


def test_ztunnel_obtains_for_the_pods_of_its_node_and_for_no_others(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        token = mesh.cluster.token(ZTUNNEL)
        key, csr = ztunnel_csr(IDENTITY)
        check_as_ztunnel(await client.create(csr, token, impersonate=IDENTITY), key, IDENTITY)
        own = "spiffe://example.org/ns/istio-system/sa/ztunnel"
        key, csr = ztunnel_csr(own)
        check_as_ztunnel(await client.create(csr, token), key, own)
        refused = Status.UNAUTHENTICATED
        for wanted in (
            "spiffe://example.org/ns/prod/sa/nobody",
            "spiffe://example.org/ns/dev/sa/web",
            "spiffe://elsewhere.example/ns/prod/sa/web",
            "spiffe://example.org/ns/prod/sa/web/x",
            "spiffe://example.org/ns/prod/sa/*",
            "spiffe://example.org/ns//sa/web",
            "web",
        ):
            await client.refused(refused, ztunnel_csr(IDENTITY)[1], token, impersonate=wanted)
        elsewhere = replace(ZTUNNEL, node="node-2", name="ztunnel-2", uid="uid-ztunnel-2")
        await client.refused(refused, csr, mesh.cluster.token(elsewhere), impersonate=IDENTITY, says="does not run on that node")
        await client.refused(refused, csr, mesh.cluster.token(WEB), impersonate=own, says="node_accounts")
        await client.refused(refused, csr, mesh.other.token(ZTUNNEL), impersonate=IDENTITY, cluster="other", says="node_accounts")
        unbound = mesh.cluster.token(ZTUNNEL, bound=False)
        await client.refused(refused, csr, unbound, impersonate=IDENTITY, says="bound to a pod")
        await client.refused(Status.PERMISSION_DENIED, ztunnel_csr(own)[1], token, impersonate=IDENTITY)

    mesh.run(work)


def test_an_outage_while_the_pods_of_a_node_are_asked_for_is_tried_again(mesh: Mesh) -> None:
    proxy = replace(ZTUNNEL, node="node-9", name="ztunnel-9", uid="uid-ztunnel-9")
    mesh.api.pods += [proxy, replace(WEB, node="node-9", uid="uid-web-9")]
    token, csr = mesh.cluster.token(proxy), ztunnel_csr(IDENTITY)[1]
    mesh.api.status = 503
    try:
        mesh.run(lambda client: client.refused(Status.UNAVAILABLE, csr, token, impersonate=IDENTITY))
    finally:
        mesh.api.status = None
    mesh.run(lambda client: client.create(csr, token, impersonate=IDENTITY))


# --- the same request again -------------------------------------------------------------------------------------------------------------


def test_the_same_request_gets_the_same_certificate(mesh: Mesh) -> None:
    async def work(client: MeshClient) -> None:
        token = mesh.cluster.token(WEB)
        _, csr = ztunnel_csr(IDENTITY)
        at_once = await asyncio.gather(*(client.create(csr, token) for _ in range(8)))
        assert all(chain == at_once[0] for chain in at_once)
        async with connected(mesh.address, mesh.ca_file) as another:
            assert await another.create(csr, token) == at_once[0]
        assert await client.create(csr, mesh.cluster.token(ZTUNNEL), impersonate=IDENTITY) != at_once[0]  # another caller
        assert await client.create(csr, token, signer="mesh-short") != at_once[0]  # another profile
        assert await client.create(ztunnel_csr(IDENTITY)[1], token) != at_once[0]  # another key

    mesh.run(work)


def test_a_certificate_that_was_revoked_is_not_given_out_again(mesh: Mesh) -> None:
    token = mesh.cluster.token(WEB)
    _, csr = ztunnel_csr(IDENTITY)
    first = mesh.run(lambda client: client.create(csr, token))
    leaf = x509.load_pem_x509_certificate(first[0].encode())
    with mesh.live.client(mesh.live.admin_token) as admin:
        admin("POST", f"/v1/certificates/{leaf.fingerprint(hashes.SHA256()).hex()}:revoke", {"reason": "superseded"}).ok()
    assert mesh.run(lambda client: client.create(csr, token)) != first


# --- the table --------------------------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_status_and_only_strangers_are_unauthenticated() -> None:
    assert set(STATUS) == set(Kind)
    strangers = {kind for kind, status in STATUS.items() if status is Status.UNAUTHENTICATED}
    assert strangers == {Kind.NOT_AUTHENTICATED, Kind.TOKEN_UNKNOWN, Kind.TOKEN_EXPIRED, Kind.TOKEN_SPENT, Kind.TOKEN_REVOKED}
    again = {kind for kind, status in STATUS.items() if status in RETRIED}
    assert {Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.RATE_LIMITED, Kind.CONFLICT} <= again
    final = {Kind.BAD_CSR, Kind.BAD_PROOF, Kind.NAME_NOT_ALLOWED, Kind.NOT_ALLOWED, Kind.PROFILE_NOT_ALLOWED, Kind.TOO_LARGE, Kind.WEAK_KEY}
    assert not final & again
