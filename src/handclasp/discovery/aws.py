"""Source kind ``aws``: certificates in AWS Certificate Manager, and the CA certificates of AWS Private CA. Needs ``boto3``.

Credentials come from where boto3 finds them (the role of the machine, the environment of the process), never from settings. AWS Private CA
has no list of what it issued: what of it is in Certificate Manager is seen there, the rest only where it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from msgspec import Meta, Struct, field

from handclasp.discovery.source import Count, Failed, Part, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.contents import read_contents
from handclasp.wire.observations import Covered, Observed, Seen

SERVICES = ("acm", "acm-pca")
_KEY_TYPES = ["RSA_1024", "RSA_2048", "RSA_3072", "RSA_4096", "EC_prime256v1", "EC_secp384r1", "EC_secp521r1"]
"""All of them: ListCertificates leaves everything but RSA_1024 and RSA_2048 out unless it is told so."""
_NOT_YET = frozenset({"PENDING_VALIDATION", "FAILED", "VALIDATION_TIMED_OUT"})
_REFUSED = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException"}
)
_CONFIG = Config(connect_timeout=10, read_timeout=30, retries={"mode": "adaptive", "max_attempts": 8})


class AwsSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which regions and services."""

    regions: Annotated[list[Annotated[str, Meta(pattern="^[a-z0-9-]{4,32}$")]], Meta(max_length=100)] = field(default_factory=list)
    """Regions, such as eu-central-1; certificates for CloudFront are in us-east-1."""
    services: Annotated[list[str], Meta(max_length=2)] = field(default_factory=lambda: list(SERVICES))
    """acm, acm-pca."""
    profile: str = ""
    """Profile of the server's own AWS configuration; without it what boto3 finds first."""
    tags: bool = True
    """Whether tags are read too: they are evidence of who owns a certificate, and one request each."""


class Aws:
    """The kind."""

    name = "aws"
    summary = "AWS Certificate Manager, and the CAs of AWS Private CA; the scope's entries are regions"
    privilege = (
        "An IAM role with acm:ListCertificates, acm:GetCertificate and acm:ListTagsForCertificate, and for Private CA "
        "acm-pca:ListCertificateAuthorities and acm-pca:GetCertificateAuthorityCertificate; on * (the lists take nothing else). "
        "Not acm:ExportCertificate: it gives private keys."
    )
    Settings: type[Struct] = AwsSettings
    runs: Runs = "server"

    def check(self, settings: AwsSettings, scope: Scope) -> None:
        """Raise ``bad_setting`` for services that are none, and regions that are none or that the scope denies."""
        if not set(settings.services) <= set(SERVICES) or not settings.services:
            raise HandclaspError(Kind.BAD_SETTING, f"aws: services are {', '.join(SERVICES)}")
        if not any(scope.admits(region) for region in settings.regions):
            raise HandclaspError(Kind.BAD_SETTING, "aws: no region is named that the scope admits", hint="such as eu-central-1")

    async def plan(self, settings: AwsSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield each service of each region."""
        for region in settings.regions:
            if scope.admits(region):
                for service in settings.services:
                    yield Part({"region": region, "service": service})

    async def read(self, settings: AwsSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:  # noqa: ARG002
        """Yield what is in one service of one region; a successor begins it anew: there are thousands at most."""
        region, service = part.spec["region"], part.spec["service"]
        client = await _called(partial(_client, settings, service, region))
        items = _certificates(client, region, settings, tools) if service == "acm" else _authorities(client, region, tools)
        whole = True
        while (item := await _called(partial(next, items, None))) is not None:
            whole = whole and not isinstance(item, Failed)
            yield item
            if tools.stop.is_set():
                return
        if whole:
            yield Covered(unit=_unit(region, service), began_at=tools.began_at)


AWS = Aws()


def _client(settings: AwsSettings, service: str, region: str) -> Any:
    session = boto3.session.Session(profile_name=settings.profile or None, region_name=region)
    return session.client(service, config=_CONFIG)


async def _called(call: Callable[[], Any]) -> Any:
    """Call something of boto3's in a thread; raise ``not_allowed`` or ``unavailable`` for what goes wrong."""
    try:
        return await asyncio.to_thread(call)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise HandclaspError(
            Kind.NOT_ALLOWED if code in _REFUSED else Kind.UNAVAILABLE,
            f"AWS answers {code} to {error.operation_name}",
            hint="see `handclasp source kinds` for what the role needs" if code in _REFUSED else "",
        ) from error
    except BotoCoreError as error:
        raise HandclaspError(Kind.UNAVAILABLE, f"AWS cannot be asked: {str(error)[:300]}") from error


def _unit(region: str, service: str) -> str:
    return f"aws:{region}/{service}"


def _certificates(client: Any, region: str, settings: AwsSettings, tools: Tools) -> Iterator[Reading]:
    for page in client.get_paginator("list_certificates").paginate(Includes={"keyTypes": _KEY_TYPES}):
        summaries = page.get("CertificateSummaryList", [])
        yield Count(total=len(summaries))
        for summary in summaries:
            if summary.get("Status") in _NOT_YET:
                yield Count(read=1)
            else:
                yield _certificate(client, region, summary, settings, tools)


def _certificate(client: Any, region: str, summary: dict[str, Any], settings: AwsSettings, tools: Tools) -> Observed:
    arn = str(summary["CertificateArn"])
    told = {"status": "Status", "type": "Type", "in_use": "InUse", "exported": "Exported", "domain": "DomainName"}
    details = {name: summary[theirs] for name, theirs in told.items() if theirs in summary}
    observed = Observed(
        key=f"aws:{arn}", kind="cloud", shown=f"{region} {summary.get('DomainName', '')} {arn.rpartition('/')[2]}".replace("  ", " "),
        unit=_unit(region, "acm"), at=tools.clock(), details=details,
    )  # fmt: skip
    try:
        answer = client.get_certificate(CertificateArn=arn)
        if settings.tags:
            tags = client.list_tags_for_certificate(CertificateArn=arn).get("Tags", [])
            observed.facts = {"tags": {tag["Key"]: tag.get("Value", "") for tag in tags[:50]}} if tags else {}
    except ClientError as error:
        observed.problem = f"AWS answers {error.response.get('Error', {}).get('Code', '')} to {error.operation_name}"
        return observed
    ders, chain = _ders(answer.get("Certificate")), _ders(answer.get("CertificateChain"))
    role = "listed" if summary.get("InUse") is False else "stored"  # no load balancer or other service of AWS has it
    observed.certificates = [Seen(der=der, role=role, chain=[*ders[1:], *chain][:32]) for der in ders[:1]]
    if not ders:
        observed.problem = "what AWS gives is not a certificate"
    return observed


def _authorities(client: Any, region: str, tools: Tools) -> Iterator[Reading]:
    for page in client.get_paginator("list_certificate_authorities").paginate():
        found = page.get("CertificateAuthorities", [])
        yield Count(total=len(found))
        for authority in found:
            arn = str(authority["Arn"])
            details = {name.lower(): str(authority[name]) for name in ("Status", "Type", "UsageMode") if name in authority}
            shown = f"{region} Private CA {arn.rpartition('/')[2]}"
            observed = Observed(
                key=f"aws:{arn}", kind="cloud", shown=shown, unit=_unit(region, "acm-pca"), at=tools.clock(), details=details
            )
            try:
                answer = client.get_certificate_authority_certificate(CertificateAuthorityArn=arn)
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code == "InvalidStateException":  # it has none yet, or none any more
                    yield Count(read=1)
                    continue
                observed.problem = f"AWS answers {code} to {error.operation_name}"
                yield observed
                continue
            chain = _ders(answer.get("CertificateChain"))
            observed.certificates = [Seen(der=der, role="anchor", chain=chain) for der in _ders(answer.get("Certificate"))[:1]]
            yield observed


def _ders(text: Any) -> list[bytes]:
    found = read_contents(str(text or "").encode("utf-8", "replace"))
    return [der for entry in found.entries for der in (entry.der, *entry.chain)] if found is not None else []
