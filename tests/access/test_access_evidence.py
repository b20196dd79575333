"""Evidence, really verified: each method with its own authorities and signers, and a table of what is refused for each."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handclasp import wire
from handclasp.access.evidence import cms
from handclasp.access.evidence.challenge import LIFETIME, Challenges
from handclasp.access.evidence.verifier import EvidenceError, EvidenceVerifier
from handclasp.access.oidc import OidcVerifier
from handclasp.access.policy import parse_policy
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import keys
from support.access import NOW
from support.evidence import ACCOUNT, INSTANCE, REGION, Cloud, DeviceAuthority, pem, signed, to_ber
from support.evidence_scene import AGENT, CSR, OIDC_ISSUER, Scene
from support.kube import WEB, Cluster, Pod


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def refused(scene: Scene, evidence: wire.Evidence, *words: str, kind: Kind = Kind.NOT_AUTHENTICATED, csr: bytes = CSR) -> EvidenceError:
    with pytest.raises(EvidenceError) as found:
        scene.verify(evidence, csr)
    assert found.value.kind is kind, found.value
    for word in words:
        assert word in found.value.detail
    return found.value


# --- what is taken ----------------------------------------------------------------------------------------------------------------------


def test_an_oidc_token(scene: Scene) -> None:
    found = scene.verify(scene.runner())
    assert (found.rule, found.subject) == ("runners", f"{OIDC_ISSUER} runner:7")
    assert found.facts == {"iss": OIDC_ISSUER, "pool": "build", "runner": "r7"}
    assert [(once.issuer, once.key) for once in found.spends] == [(OIDC_ISSUER, "j1")]


def test_a_service_account_token_bound_to_its_node(scene: Scene) -> None:
    found = scene.verify(scene.pod())
    assert (found.rule, found.subject, found.spends) == ("nodes", "prod-a/handclasp/agent@n1", ())
    assert found.facts["node"] == "n1"
    assert found.facts["pod_uid"] == "uid-x1"
    other = scene.verify(scene.pod(Pod("handclasp", "agent", "agent-x2", "uid-x2", node="n1")))
    assert other.subject == found.subject  # a pod that was replaced goes on as the same agent


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048"])
def test_a_certificate_whose_key_signs_challenge_and_request(scene: Scene, key_type: str) -> None:
    evidence = scene.device(key_type=key_type)
    found = scene.verify(evidence)
    assert found.rule == "racks"
    assert found.facts["dns"] == "r1.rack.example.org"
    assert "CN=rack-1" in found.subject
    assert [once.issuer for once in found.spends] == ["challenge"]
    again = scene.verify(scene.device(key_type="p256"))
    assert again.subject == found.subject  # whatever its key and serial are
    assert again.spends != found.spends


def test_a_certificate_under_an_intermediate(scene: Scene) -> None:
    key, certificate = scene.devices.device(ca=True, name="Site", purpose=None)
    site = DeviceAuthority.__new__(DeviceAuthority)
    site.now, site.key, site.certificate = scene.devices.now, key, certificate
    own, leaf = site.device(dns=["r2.rack.example.org"])
    evidence = signed(own, pem(leaf) + pem(certificate), scene.challenges.make()[0], CSR)
    assert scene.verify(evidence).facts["dns"] == "r2.rack.example.org"
    alone = signed(own, pem(leaf), scene.challenges.make()[0], CSR)
    refused(scene, alone, "no issuer of rack-1 is known")


FORMS: dict[str, Callable[[Cloud, bytes], wire.Evidence]] = {
    "message with the document": lambda cloud, document: cloud.evidence(document, cloud.message(document)),
    "message alone": lambda cloud, document: cloud.evidence(document, cloud.message(document), alone=True),
    "message beside the document": lambda cloud, document: cloud.evidence(document, cloud.message(document, detached=True)),
    "message without attributes": lambda cloud, document: cloud.evidence(document, cloud.message(document, attributes=False)),
    "message in BER": lambda cloud, document: cloud.evidence(document, to_ber(cloud.message(document))),
    "bare signature": lambda cloud, document: cloud.evidence(document, cloud.bare(document)),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_an_instance_document_in_each_form(scene: Scene, form: str) -> None:
    found = scene.verify(FORMS[form](scene.cloud, scene.cloud.document()))
    assert (found.rule, found.subject) == ("instances", f"{ACCOUNT}/{REGION}/{INSTANCE}")
    assert found.facts == {
        "account": ACCOUNT, "region": REGION, "instance": INSTANCE, "zone": REGION + "a", "image": "ami-0123456789abcdef0",
        "instance_type": "t3.micro",
    }  # fmt: skip


def test_ber_is_brought_into_the_very_der_that_it_says(scene: Scene) -> None:
    message = scene.cloud.message(scene.cloud.document())
    ber = to_ber(message)
    assert ber != message
    assert b"\x24\x80" in ber
    assert cms.to_der(ber) == cms.to_der(message) == message


# --- what is refused --------------------------------------------------------------------------------------------------------------------

OIDC_REFUSED: list[tuple[dict[str, Any], Kind, str]] = [
    ({"iss": "https://other.example.org"}, Kind.NOT_AUTHENTICATED, "issuer"),
    ({"aud": "other"}, Kind.NOT_AUTHENTICATED, "audience"),
    ({"exp": NOW // 1000 - 31}, Kind.NOT_AUTHENTICATED, "expired"),
    ({"iat": NOW // 1000 + 600}, Kind.NOT_AUTHENTICATED, "future"),
    ({"jti": None}, Kind.NOT_AUTHENTICATED, "jti"),
    ({"pool": "prod"}, Kind.NOT_ALLOWED, "the claim pool"),
    ({"pool": None}, Kind.NOT_ALLOWED, "the claim pool"),
    ({"runner": "a/b"}, Kind.NOT_ALLOWED, "characters"),
    ({"runner": "*"}, Kind.NOT_ALLOWED, "characters"),
    ({"runner": {"a": 1}}, Kind.NOT_ALLOWED, "missing"),
    ({"runner": "x" * 2000}, Kind.NOT_ALLOWED, "missing"),
    ({"runner": None}, Kind.NOT_ALLOWED, "missing"),
]


@pytest.mark.parametrize(("claims", "kind", "words"), OIDC_REFUSED)
def test_oidc_tokens_that_prove_nobody(scene: Scene, claims: dict[str, Any], kind: Kind, words: str) -> None:
    error = refused(scene, scene.runner(**claims), words, kind=kind)
    assert error.rule == "runners"


def test_a_token_signed_by_another_key(scene: Scene) -> None:
    forged = Scene(devices=scene.devices, cloud=scene.cloud, cluster=scene.cluster)
    refused(scene, forged.runner(), "signature is wrong")
    refused(scene, wire.Evidence(method="oidc", token="hct_x"), "not a signed JWT")


KUBERNETES_REFUSED: list[tuple[Callable[[Scene], wire.Evidence], Kind, str]] = [
    (lambda s: s.pod(cluster="prod-b"), Kind.NOT_AUTHENTICATED, "cluster"),
    (lambda s: s.pod(aud="istio-ca"), Kind.NOT_AUTHENTICATED, "audience"),
    (lambda s: s.pod(now=NOW / 1000 - 7200), Kind.NOT_AUTHENTICATED, "expired"),
    (lambda s: s.pod(WEB), Kind.NOT_ALLOWED, "prod/web is not one of the rule's"),
    (lambda s: s.pod(Pod("handclasp", "agent2", "a", "u")), Kind.NOT_ALLOWED, "handclasp/agent2"),
    (lambda s: s.pod(bound=False), Kind.NOT_ALLOWED, "node is missing"),
    (
        lambda s: wire.Evidence(method="kubernetes", cluster="prod-a", token=Cluster().token(AGENT, aud="handclasp", now=NOW / 1000)),
        Kind.NOT_AUTHENTICATED,
        "signature is wrong",
    ),
    (lambda s: wire.Evidence(method="kubernetes", cluster="prod-a", token=s.runner().token), Kind.NOT_AUTHENTICATED, ""),
]


@pytest.mark.parametrize(("made", "kind", "words"), KUBERNETES_REFUSED)
def test_service_account_tokens_that_prove_nobody(scene: Scene, made: Callable[[Scene], wire.Evidence], kind: Kind, words: str) -> None:
    refused(scene, made(scene), words, kind=kind)


DAY = datetime.timedelta(days=1)
X509_REFUSED: list[tuple[Callable[[Scene], wire.Evidence], Kind, str]] = [
    (lambda s: _other_authority(s), Kind.NOT_AUTHENTICATED, "the signature of rack-1 is not by Devices"),
    (lambda s: s.device(key=keys.generate("p256")), Kind.NOT_AUTHENTICATED, "not by the certificate's key"),
    (lambda s: s.device(csr=bytes(32)), Kind.NOT_AUTHENTICATED, "not by the certificate's key"),
    (lambda s: s.device(begins=-2 * DAY, lasts=DAY), Kind.NOT_AUTHENTICATED, "is not valid"),
    (lambda s: s.device(begins=DAY), Kind.NOT_AUTHENTICATED, "is not valid"),
    (lambda s: s.device(ca=True), Kind.NOT_AUTHENTICATED, "an authority's"),
    (lambda s: s.device(usage=False), Kind.NOT_AUTHENTICATED, "not for signatures"),
    (lambda s: s.device(purpose=ExtendedKeyUsageOID.SERVER_AUTH), Kind.NOT_AUTHENTICATED, "not for clients"),
    (lambda s: s.device(dns=["r1.example.org"]), Kind.NOT_ALLOWED, "no one DNS name"),
    (lambda s: s.device(dns=["a.rack.example.org", "b.rack.example.org"]), Kind.NOT_ALLOWED, "no one DNS name"),
    (lambda s: s.device(dns=["*.rack.example.org"]), Kind.NOT_ALLOWED, "no one DNS name"),
    (lambda s: s.device(dns=None), Kind.NOT_ALLOWED, "no one DNS name"),
    (lambda s: s.device(challenge=Challenges(b"other", lambda: NOW).make()[0]), Kind.NOT_AUTHENTICATED, "not one of this server"),
    (lambda s: s.device(challenge="AAAA"), Kind.NOT_AUTHENTICATED, "not one of this server"),
    (lambda s: s.device(challenge="not base64!"), Kind.NOT_AUTHENTICATED, "not one of this server"),
    (lambda s: signed(keys.generate("p256"), "no PEM", s.challenges.make()[0], CSR), Kind.NOT_AUTHENTICATED, "no PEM certificate"),
]


def _other_authority(scene: Scene) -> wire.Evidence:
    own, certificate = DeviceAuthority(NOW).device(dns=["r1.rack.example.org"])  # of the same name, with another key
    return signed(own, pem(certificate), scene.challenges.make()[0], CSR)


@pytest.mark.parametrize(("made", "kind", "words"), X509_REFUSED)
def test_certificates_that_prove_nobody(scene: Scene, made: Callable[[Scene], wire.Evidence], kind: Kind, words: str) -> None:
    refused(scene, made(scene), words, kind=kind)


def test_a_challenge_ends_and_is_bound_to_its_request(scene: Scene) -> None:
    evidence = scene.device()
    refused(scene, evidence, "not by the certificate's key", csr=bytes(32))
    late = Scene(devices=scene.devices, cloud=scene.cloud, cluster=scene.cluster, ci=scene.ci)
    evidence = late.device()
    late.now += round(LIFETIME * 1000)
    refused(late, evidence, "challenge has ended")
    late.now = NOW - 1  # a clock that was set back makes none that lasts longer
    refused(late, late.device(challenge=scene.challenges.make()[0]), "challenge has ended")
    text = scene.challenges.make()[0]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    written = text[:-1] + letters[letters.index(text[-1]) ^ 1]  # the last letter has two bits that say nothing
    assert written != text
    assert scene.challenges.check(text).key == scene.challenges.check(written).key


def test_a_subject_can_be_demanded() -> None:
    scene = Scene()
    scene.policy = scene.parse(
        **{'    dns: ["*.rack.example.org"]\n': "    subject: {organization: Example, common_name: [rack-1, rack-2]}\n"}
    )
    example = [(NameOID.ORGANIZATION_NAME, "Example")]
    assert scene.verify(scene.device(subject=example)).facts["organization"] == "Example"
    refused(scene, scene.device(), "organization does not fit", kind=Kind.NOT_ALLOWED)
    refused(scene, scene.device(subject=example, name="rack-3"), "common_name does not fit", kind=Kind.NOT_ALLOWED)
    refused(scene, scene.device(subject=[*example, (NameOID.ORGANIZATION_NAME, "Other")]), "organization", kind=Kind.NOT_ALLOWED)


def _changed(data: bytes, part: bytes, by: bytes) -> bytes:
    assert data.count(part) == 1
    return data.replace(part, by)


AWS_REFUSED: list[tuple[Callable[[Scene], wire.Evidence], Kind, str]] = [
    (lambda s: s.instance(accountId="210987654321"), Kind.NOT_ALLOWED, "another account"),
    (lambda s: s.instance(accountId=123456789012), Kind.NOT_AUTHENTICATED, "account, region and instance"),
    (lambda s: s.instance(instanceId="i-1/../x"), Kind.NOT_AUTHENTICATED, "account, region and instance"),
    (lambda s: s.instance(instanceId=None), Kind.NOT_AUTHENTICATED, "account, region and instance"),
    (lambda s: s.instance(region="*"), Kind.NOT_AUTHENTICATED, "account, region and instance"),
    (lambda s: s.instance(pendingTime="2026-01-01T00:00:00Z"), Kind.NOT_AUTHENTICATED, "started more than 15m ago"),
    (lambda s: s.instance(pendingTime="2030-01-01T00:00:00Z"), Kind.NOT_AUTHENTICATED, "in the future"),
    (lambda s: s.instance(pendingTime="yesterday"), Kind.NOT_AUTHENTICATED, "when the instance was started"),
    (lambda s: s.instance(pendingTime=None), Kind.NOT_AUTHENTICATED, "when the instance was started"),
    (lambda s: _aws(s, Cloud(NOW, 2).message), Kind.NOT_AUTHENTICATED, "not by a certificate of the rule"),
    (lambda s: _aws(s, Cloud(NOW, 2).bare), Kind.NOT_AUTHENTICATED, "not by a certificate of the rule"),
    (lambda s: _aws(s, lambda d: s.cloud.message(d + b" ")), Kind.NOT_AUTHENTICATED, "another one than the one shown"),
    (lambda s: _aws(s, lambda d: s.cloud.message(d + b" ", detached=True)), Kind.NOT_AUTHENTICATED, "over another document"),
    (lambda s: _aws(s, lambda d: s.cloud.bare(d + b" ")), Kind.NOT_AUTHENTICATED, "not by a certificate"),
    (
        lambda s: _aws(s, lambda d: _changed(s.cloud.message(d), ACCOUNT.encode(), b"210987654321"), b""),
        Kind.NOT_AUTHENTICATED,
        "over another",
    ),
    (lambda s: _aws(s, lambda d: s.cloud.message(d)[:-1]), Kind.NOT_AUTHENTICATED, "cannot be read"),
    (lambda s: _aws(s, lambda d: s.cloud.message(d) + b"\0"), Kind.NOT_AUTHENTICATED, "cannot be read"),
    (lambda s: _aws(s, lambda d: s.cloud.message(d, detached=True), b""), Kind.NOT_AUTHENTICATED, "without the document"),
    (lambda s: _aws(s, lambda d: s.cloud.bare(d), b""), Kind.NOT_AUTHENTICATED, "no document"),
    (lambda s: _aws(s, lambda d: b""), Kind.NOT_AUTHENTICATED, "no signature"),
    (lambda s: wire.Evidence(method="aws", document="!", signature="AAAA"), Kind.NOT_AUTHENTICATED, "not base64"),
    (lambda s: _signed_anew(s, b"[1]"), Kind.NOT_AUTHENTICATED, "not an identity document"),
    (lambda s: _signed_anew(s, b"\xff"), Kind.NOT_AUTHENTICATED, "not JSON"),
]


def _aws(scene: Scene, sign: Callable[[bytes], bytes], shown: bytes | None = None) -> wire.Evidence:
    document = scene.cloud.document()
    return scene.cloud.evidence(document if shown is None else shown, sign(document))


def _signed_anew(scene: Scene, document: bytes) -> wire.Evidence:
    return scene.cloud.evidence(document, scene.cloud.bare(document))


@pytest.mark.parametrize(("made", "kind", "words"), AWS_REFUSED)
def test_documents_that_prove_no_instance(scene: Scene, made: Callable[[Scene], wire.Evidence], kind: Kind, words: str) -> None:
    refused(scene, made(scene), words, kind=kind)


def test_signed_attributes_cannot_pass_for_a_document(scene: Scene) -> None:
    """Without its attributes a message's signature is over them; they are no document, whatever stands around them."""
    message = scene.cloud.message(scene.cloud.document())
    parsed = cms._read(message)
    assert parsed.attributes is not None
    bare = scene.cloud.evidence(parsed.attributes, parsed.signature)
    refused(scene, bare, "not JSON")


def test_a_certificate_of_the_cloud_that_has_ended_signs_nothing(scene: Scene) -> None:
    later = Scene(devices=scene.devices, cloud=scene.cloud, cluster=scene.cluster, ci=scene.ci)
    later.now = NOW + 2 * 86_400_000 + 1000
    document = scene.cloud.document(pendingTime="2027-01-16T23:59:00Z")
    refused(later, scene.cloud.evidence(document, scene.cloud.message(document)), "not by a certificate of the rule")


def test_what_no_rule_takes(scene: Scene) -> None:
    refused(scene, wire.Evidence(method="tpm"), "not known")
    only = Scene(devices=scene.devices, cloud=scene.cloud, cluster=scene.cluster, ci=scene.ci)
    only.policy = parse_policy("version: 1\n")
    error = refused(only, scene.runner(), "no enrolment rule", kind=Kind.NOT_ALLOWED)
    assert error.rule == ""
    assert only.fetched == 0  # strangers make us ask nobody
    text = scene.policy.text.replace("claims: {pool: build}", "claims: {pool: build}, from: [192.0.2.0/24]")
    only.policy = parse_policy(text)
    refused(only, scene.runner(), "from here", kind=Kind.NOT_ALLOWED)


def test_the_first_rule_that_is_satisfied_counts_and_the_nearest_miss_is_told() -> None:
    scene = Scene()
    rules = (
        '  - {name: late, evidence: oidc, issuer: ci, claims: {pool: prod}, identity: "spiffe://td/agent/prod-{runner}"}\n'
        '  - {name: last, evidence: oidc, issuer: ci, claims: {pool: "*"}, identity: "spiffe://td/agent/any-{runner}"}\n'
    )
    scene.policy = scene.parse(rules)
    assert scene.verify(scene.runner()).rule == "runners"
    assert scene.verify(scene.runner(pool="prod")).rule == "late"
    assert scene.verify(scene.runner(pool="dev")).rule == "last"
    refused(scene, scene.runner(pool=None), "the claim pool", kind=Kind.NOT_ALLOWED)


def test_keys_that_cannot_be_had_are_no_refusal(scene: Scene) -> None:
    async def fail(_url: str) -> bytes:
        raise OSError("away")

    verifier = EvidenceVerifier(OidcVerifier((), fail, lambda: NOW), None, scene.challenges, lambda: NOW)  # type: ignore[arg-type]
    with pytest.raises(HandclaspError) as found:
        asyncio.run(verifier.verify(scene.runner(), CSR, scene.policy, None))
    assert found.value.kind is Kind.UNAVAILABLE
