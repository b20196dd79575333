"""Reading the section ``enrolment:`` of a policy (see :mod:`handclasp.access.enrolment`): every mistake is told with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.access.enrolment import METHODS, PLACEHOLDER, AwsTakes, EnrolmentRule, KubernetesTakes, OidcTakes, Takes, X509Takes
from handclasp.access.patterns import ClaimPattern, DnsPatterns, Networks
from handclasp.access.workloads import labels_of
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, keys, names
from handclasp.pki.yamlshape import Part, each_once

MAX_RULES = 200
MAX_CERTIFICATES = 64
X509_FACTS = ("common_name", "organization", "organizational_unit", "serial_number", "serial", "fingerprint", "dns")
KUBERNETES_FACTS = ("cluster", "namespace", "service_account", "node", "node_uid", "pod", "pod_uid")
AWS_FACTS = ("account", "region", "zone", "instance", "image", "instance_type")

_FILLS: Mapping[str, tuple[str, ...]] = {"x509": X509_FACTS, "kubernetes": KUBERNETES_FACTS, "aws": AWS_FACTS}
# Of one form each, so that beside them one free value in a segment is told apart in one way only.
_FIXED: Mapping[str, frozenset[str]] = {
    "oidc": frozenset(),
    "x509": frozenset({"serial", "fingerprint"}),
    "kubernetes": frozenset({"cluster"}),
    "aws": frozenset({"account", "instance"}),
}
_KEYS: Mapping[str, tuple[str, ...]] = {
    "oidc": ("issuer", "claims"),
    "x509": ("ca", "subject", "dns"),
    "kubernetes": ("cluster", "service_accounts", "audience"),
    "aws": ("accounts", "regions", "certificates", "max_age"),
}
_CLAIM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}")
_SUBJECT = ("common_name", "organization", "organizational_unit", "serial_number")


def read_enrolment(top: Part, issuers: Mapping[str, str], clusters: frozenset[str]) -> tuple[EnrolmentRule, ...]:
    """Return the section ``enrolment`` of a policy; every mistake is noted at its line. ``issuers``: URLs by their name in the policy."""
    parts = top.parts("enrolment")
    if len(parts) > MAX_RULES:
        top.problem("enrolment", f"at most {MAX_RULES} rules")
    found = [rule for part in parts[:MAX_RULES] if (rule := _rule(part, issuers, clusters)) is not None]
    each_once(parts, "name")
    return tuple(found)


def _rule(part: Part, issuers: Mapping[str, str], clusters: frozenset[str]) -> EnrolmentRule | None:
    method = part.value.get("evidence")
    if method not in METHODS:
        part.problem("evidence", f"evidence is one of {', '.join(METHODS)}")
        return None
    part.keys("name", "evidence", "identity", "labels", "once", "from", "ttl", *_KEYS[method])
    takes = _takes(part, method, issuers, clusters)
    identity = part.text("identity")
    if identity:
        part.attempt("identity", lambda: _check_identity(identity, method))
    labels = labels_of(part, "labels", "the labels of the agent, as text: {role: web}") if "labels" in part.value else ()
    for label, text in labels:
        part.attempt(("labels", label), lambda text=text: _check_holes(text, method))  # type: ignore[misc]
    sources = part.attempt("from", lambda: Networks(part.texts("from")))
    return EnrolmentRule(
        part.name(), method, takes, identity, labels, part.flag("once", method == "aws"), sources or Networks(), part.duration("ttl")
    )


def _takes(part: Part, method: str, issuers: Mapping[str, str], clusters: frozenset[str]) -> Takes:
    if method == "oidc":
        return _oidc(part, issuers)
    if method == "x509":
        return _x509(part)
    return _kubernetes(part, clusters) if method == "kubernetes" else _aws(part)


def _oidc(part: Part, issuers: Mapping[str, str]) -> OidcTakes:
    provider = part.text("issuer")
    if provider and provider not in issuers:
        part.problem("issuer", f"{provider!r} is not under oidc: in this policy")
    claims = _claim_patterns(part, "claims")
    if not claims:
        part.problem("claims", "name at least one claim: without any, everybody with a token of this issuer is meant")
    return OidcTakes(provider, issuers.get(provider, ""), claims)


def _claim_patterns(part: Part, key: str) -> tuple[tuple[str, ClaimPattern], ...]:
    value = part.value.get(key, {})
    if not isinstance(value, dict):
        part.problem(key, f"{key} is a mapping")
        return ()
    compiled = []
    for name, wanted in value.items():
        pattern = part.attempt((key, name), lambda wanted=wanted: ClaimPattern(wanted))  # type: ignore[misc]
        if pattern is not None:
            compiled.append((name, pattern))
    return tuple(compiled)


def _x509(part: Part) -> X509Takes:
    anchors = _certificates(part, "ca")
    for anchor in anchors:
        part.attempt("ca", lambda anchor=anchor: _check_authority(anchor))  # type: ignore[misc]
    subject = _claim_patterns(part, "subject")
    for name, _ in subject:
        if name not in _SUBJECT:
            part.problem(("subject", name), f"{name!r} is not looked at; these are: {', '.join(_SUBJECT)}")
    dns = part.attempt("dns", lambda: DnsPatterns(part.texts("dns")))
    if dns is not None and dns.has_placeholders:
        part.problem("dns", "there is nothing here to fill placeholders with")
    return X509Takes(anchors, subject, dns or DnsPatterns())


def _check_authority(anchor: bytes) -> None:
    certificate = chains.load(anchor)
    keys.check_quality(certificate.public_key())


def _kubernetes(part: Part, clusters: frozenset[str]) -> KubernetesTakes:
    cluster = part.text("cluster")
    if cluster and cluster not in clusters:
        part.problem("cluster", f"{cluster!r} is not under clusters: in this policy")
    accounts = part.texts("service_accounts", required=True)
    for index, account in enumerate(accounts):
        if account.count("/") != 1 or account.startswith("/") or account.endswith("/"):
            part.problem(("service_accounts", index), "write it as NAMESPACE/NAME; * stands for all of one")
    pattern = part.attempt("service_accounts", lambda: ClaimPattern(accounts)) if accounts else None
    return KubernetesTakes(cluster, pattern or ClaimPattern(["x/x"]), part.text("audience") if "audience" in part.value else None)


def _aws(part: Part) -> AwsTakes:
    accounts, regions = part.texts("accounts", required=True), part.texts("regions")
    for index, account in enumerate(accounts):
        if _ACCOUNT.fullmatch(account) is None:
            part.problem(("accounts", index), 'an account is 12 digits, in quotes: "123456789012"')
    for index, region in enumerate(regions):
        if _REGION.fullmatch(region) is None:
            part.problem(("regions", index), "a region is written like eu-central-1")
    certificates = _certificates(part, "certificates", any_version=True)
    return AwsTakes(frozenset(accounts), certificates, frozenset(regions), part.duration("max_age"))


def _certificates(part: Part, key: str, *, any_version: bool = False) -> tuple[bytes, ...]:
    text = part.value.get(key)
    if not isinstance(text, str) or not text:
        part.problem(key, f"{key} is needed: one or more certificates as PEM")
        return ()
    read = _signers if any_version else chains.split_pem
    found = part.attempt(key, lambda: read(text)) or []
    if len(found) > MAX_CERTIFICATES:
        part.problem(key, f"at most {MAX_CERTIFICATES} certificates")
    return tuple(found[:MAX_CERTIFICATES])


def _signers(text: str) -> list[bytes]:
    """Return certificates (DER) that are looked at for their RSA key alone: those of a cloud can be of version 1.

    Raises ``bad_certificate``, ``weak_key``.
    """
    try:
        found = x509.load_pem_x509_certificates(text.encode())
        loaded = [(certificate.public_key(), certificate.public_bytes(Encoding.DER)) for certificate in found]
    except chains.UNREADABLE as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "there is no PEM certificate here that can be read") from error
    for key, _ in loaded:
        if not isinstance(key, rsa.RSAPublicKey):  # the cloud's DSA signatures are over SHA-1
            raise HandclaspError(Kind.WEAK_KEY, "one of the certificates has no RSA key: take those for RSA-2048 signatures")
        keys.check_quality(key)
    return [der for _, der in loaded]


def _check_holes(text: str, method: str) -> list[str]:
    """Return the placeholders of a text; raise ``bad_policy`` for one that this evidence never fills."""
    holes = PLACEHOLDER.findall(text)
    rest = PLACEHOLDER.sub("", text)
    if not text.isprintable() or "{" in rest or "}" in rest:
        raise _bad(f"{text[:200]!r}: a placeholder is written {{name}}")
    for hole in holes:
        known = _FILLS.get(method)
        if known is not None and hole not in known:
            raise _bad(f"{{{hole[:100]}}} is not a fact of {method} evidence; these are: {', '.join(known)}")
        if _CLAIM_NAME.fullmatch(hole) is None:
            raise _bad(f"{hole[:100]!r} is not the name of a claim")
    return holes


def _check_identity(text: str, method: str) -> None:
    head, slash, segment = text.rpartition("/")
    if not slash or not head.endswith("/agent") or head.count("/") != 3 or "{" in head:
        raise _bad(f"{text[:200]!r}: an agent's identity is spiffe://TRUST-DOMAIN/agent/NAME, with placeholders in NAME only")
    holes = _check_holes(segment, method)
    if sum(hole not in _FIXED[method] for hole in holes) > 1 or len(set(holes)) != len(holes):
        fixed = ", ".join(sorted(_FIXED[method])) or "none"
        raise _bad(f"{segment[:200]!r}: one placeholder, and besides it those of one form only ({fixed}): two could be cut in two ways")
    for between in PLACEHOLDER.split(segment)[2:-1:2]:
        if not between or between[0] not in "._-":
            raise _bad(f"{segment[:200]!r}: between two placeholders stands one of . _ -")
    names.check_spiffe_id(PLACEHOLDER.sub("x", text))


def _bad(detail: str) -> HandclaspError:
    return HandclaspError(Kind.BAD_POLICY, detail)
