"""What is in AWS, told by botocore's own stubs, which check every request against the service's model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason="boto3 is the extra `aws`, and is not installed")
from botocore.stub import Stubber  # noqa: E402

from handclasp.discovery import aws  # noqa: E402
from handclasp.discovery.aws import AWS, AwsSettings  # noqa: E402
from handclasp.discovery.source import Scope  # noqa: E402
from handclasp.errors import HandclaspError, Kind  # noqa: E402
from support.certfiles import Maker, der, pem  # noqa: E402
from support.sources import covered, observed, read, tools  # noqa: E402

MAKER = Maker()
LEAF, _ = MAKER.leaf()
ARN = "arn:aws:acm:eu-central-1:123456789012:certificate/11111111-2222-3333-4444-555555555555"
CA = "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Stubber]]:
    clients: dict[str, Any] = {}
    for service in aws.SERVICES:
        clients[service] = boto3.client(service, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    stubs = {service: Stubber(client) for service, client in clients.items()}
    monkeypatch.setattr(aws, "_client", lambda settings, service, region: clients[service])
    for one in stubs.values():
        one.activate()
    yield stubs
    for one in stubs.values():
        one.assert_no_pending_responses()


@pytest.mark.parametrize(("in_use", "role"), [(True, "stored"), (False, "listed")])
def test_certificates_with_tags_page_by_page(stub: dict[str, Stubber], in_use: bool, role: str) -> None:
    acm, listed = stub["acm"], {"Includes": {"keyTypes": aws._KEY_TYPES}}
    other = ARN[:-1] + "6"
    summary = {"CertificateArn": ARN, "DomainName": "web.test", "Status": "ISSUED", "Type": "IMPORTED", "InUse": in_use}
    waiting = {"CertificateArn": other, "DomainName": "new.test", "Status": "PENDING_VALIDATION"}
    acm.add_response("list_certificates", {"CertificateSummaryList": [summary], "NextToken": "more"}, listed)
    acm.add_response(
        "get_certificate", {"Certificate": pem(LEAF).decode(), "CertificateChain": pem(MAKER.root).decode()}, {"CertificateArn": ARN}
    )
    acm.add_response("list_tags_for_certificate", {"Tags": [{"Key": "team", "Value": "web"}, {"Key": "bare"}]}, {"CertificateArn": ARN})
    acm.add_response("list_certificates", {"CertificateSummaryList": [waiting]}, {**listed, "NextToken": "more"})
    items = read(AWS, AwsSettings(regions=["eu-central-1"], services=["acm"]), tools())
    (found,) = observed(items).values()
    assert (found.key, found.kind, found.facts) == (f"aws:{ARN}", "cloud", {"tags": {"team": "web", "bare": ""}})
    assert [(one.der, one.role, one.chain) for one in found.certificates] == [(der(LEAF), role, [der(MAKER.root)])]
    assert found.details == {"status": "ISSUED", "type": "IMPORTED", "in_use": in_use, "domain": "web.test"}
    assert covered(items) == ["aws:eu-central-1/acm"]


def test_authorities(stub: dict[str, Stubber]) -> None:
    pca, other = stub["acm-pca"], CA[:-1] + "6"
    authorities = [{"Arn": CA, "Status": "ACTIVE", "Type": "ROOT"}, {"Arn": other, "Status": "PENDING_CERTIFICATE", "Type": "ROOT"}]
    pca.add_response("list_certificate_authorities", {"CertificateAuthorities": authorities}, {})
    pca.add_response("get_certificate_authority_certificate", {"Certificate": pem(MAKER.root).decode()}, {"CertificateAuthorityArn": CA})
    pca.add_client_error("get_certificate_authority_certificate", "InvalidStateException")
    (found,) = observed(read(AWS, AwsSettings(regions=["eu-central-1"], services=["acm-pca"]), tools())).values()
    assert [(one.der, one.role) for one in found.certificates] == [(der(MAKER.root), "anchor")]


def test_refusals(stub: dict[str, Stubber]) -> None:
    acm, settings = stub["acm"], AwsSettings(regions=["eu-central-1"], services=["acm"])
    acm.add_client_error("list_certificates", "AccessDeniedException")
    with pytest.raises(HandclaspError) as caught:
        read(AWS, settings, tools())
    assert caught.value.kind is Kind.NOT_ALLOWED
    acm.add_response("list_certificates", {"CertificateSummaryList": [{"CertificateArn": ARN, "Status": "ISSUED"}]})
    acm.add_client_error("get_certificate", "ThrottlingException")
    (found,) = observed(read(AWS, settings, tools())).values()
    assert found.problem == "AWS answers ThrottlingException to GetCertificate"
    for bad in (AwsSettings(), AwsSettings(regions=["eu-central-1"], services=["s3"])):
        with pytest.raises(HandclaspError):
            AWS.check(bad, Scope())
    with pytest.raises(HandclaspError):
        AWS.check(settings, Scope(deny=["eu-*"]))
