"""The policy section ``enrolment:``: which evidence makes an agent, under which name and with which labels.

.. code-block:: yaml

    enrolment:
      - name: nodes
        evidence: kubernetes
        cluster: prod-a                           # a name under clusters:
        service_accounts: [handclasp/agent]       # NAMESPACE/NAME
        audience: handclasp                       # of the token; left out: one of the cluster's
        identity: "spiffe://example.org/agent/{cluster}-{node}"
        labels: {cluster: "{cluster}"}
        from: [10.0.0.0/8]
        ttl: 12h                                  # of the agent's own certificate; left out: the profile's
        once: false                               # true: the same subject enrols again only after its certificate was revoked

    oidc:        issuer: (a name under oidc:), claims: {…}
    x509:        ca: (PEM), subject: {organization: …}, dns: [patterns]
    aws:         accounts: […], regions: […], certificates: (PEM), max_age: 15m

A rule names every value that it uses, and only verified facts fill its placeholders: letters, digits and ``. _ -``, so that a fact can
never lead into another segment (the same rule as for claims in :mod:`handclasp.access.patterns`). The facts are kept with the agent; its
renewals are judged by the rule as it is then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.access.grants import AGENT_PROFILE, Grant
from handclasp.access.patterns import ClaimPattern, DnsPatterns, IdentityPatterns, Networks
from handclasp.access.workloads import labels_of
from handclasp.access.yamlshape import Part
from handclasp.clock import format_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki import chains, keys, names

MAX_RULES = 200
MAX_CERTIFICATES = 64
PREFIX = "enrolment:"
METHODS = ("oidc", "x509", "kubernetes", "aws")

Facts = Mapping[str, Any]
"""What was verified, by name: texts, numbers, truth values, and lists of texts."""

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
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_CLAIM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_VALUE = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")
_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}")
_SUBJECT = ("common_name", "organization", "organizational_unit", "serial_number")


@dataclass(frozen=True, slots=True)
class OidcTakes:
    """Tokens of one issuer of the policy, with these claims."""

    provider: str
    issuer: str
    claims: tuple[tuple[str, ClaimPattern], ...]

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None."""
        if facts.get("iss") != self.issuer:
            return "the token is of another issuer"
        return next((f"the claim {claim} does not fit" for claim, pattern in self.claims if not pattern.matches(facts.get(claim))), None)

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {"issuer": self.provider, "claims": {claim: pattern.value for claim, pattern in self.claims}}


@dataclass(frozen=True, slots=True)
class X509Takes:
    """Certificates under these anchors."""

    anchors: tuple[bytes, ...]
    """DER."""
    subject: tuple[tuple[str, ClaimPattern], ...] = ()
    dns: DnsPatterns = field(default_factory=DnsPatterns)

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None."""
        if facts.get("anchor") not in {chains.fingerprint(anchor).hex() for anchor in self.anchors}:
            return "the certificate is under another authority"
        for name, pattern in self.subject:
            if not pattern.matches(facts.get(name)):
                return f"the certificate's {name} does not fit"
        if self.dns and facts.get("dns") is None:
            return "no one DNS name of the certificate fits"
        if self.dns and not self.dns.covers(str(facts["dns"])):
            return "the certificate's DNS name does not fit"
        return None

    def dns_of(self, listed: list[str]) -> str | None:
        """Return the one DNS name of a certificate that counts: the only one that fits; None where there is none, or a choice."""
        fitting = [name for name in listed if not self.dns or self.dns.covers(name)]
        return fitting[0] if len(fitting) == 1 else None

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        anchors = sorted(chains.fingerprint(anchor).hex() for anchor in self.anchors)
        return {"ca": anchors, "subject": {name: pattern.value for name, pattern in self.subject}, "dns": sorted(self.dns.texts)}


@dataclass(frozen=True, slots=True)
class KubernetesTakes:
    """Service accounts of one cluster of the policy."""

    cluster: str
    accounts: ClaimPattern
    audience: str | None = None

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None."""
        if facts.get("cluster") != self.cluster:
            return "the token is of another cluster"
        account = f"{facts.get('namespace')}/{facts.get('service_account')}"
        return None if self.accounts.matches(account) else f"the service account {account} is not one of the rule's"

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {"cluster": self.cluster, "service_accounts": self.accounts.value, "audience": self.audience}


@dataclass(frozen=True, slots=True)
class AwsTakes:
    """EC2 instances of these accounts."""

    accounts: frozenset[str]
    certificates: tuple[bytes, ...]
    """DER of the certificates that the cloud's signatures are checked with."""
    regions: frozenset[str] = frozenset()
    max_age: float | None = None
    """Seconds since the instance was started, at the enrolment."""

    def refusal(self, facts: Facts) -> str | None:
        """Return why the facts do not fit, or None. (The age is of the moment of the enrolment, and no fact.)"""
        if facts.get("account") not in self.accounts:
            return "the instance is of another account"
        return "the instance is in another region" if self.regions and facts.get("region") not in self.regions else None

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {
            "accounts": sorted(self.accounts),
            "regions": sorted(self.regions),
            "certificates": sorted(chains.fingerprint(certificate).hex() for certificate in self.certificates),
            "max_age": None if self.max_age is None else format_duration(self.max_age),
        }


Takes = OidcTakes | X509Takes | KubernetesTakes | AwsTakes


@dataclass(frozen=True, slots=True)
class EnrolmentRule:
    """One rule: this evidence makes an agent of this name."""

    name: str
    method: str
    takes: Takes
    identity: str
    labels: tuple[tuple[str, str], ...] = ()
    once: bool = False
    sources: Networks = field(default_factory=Networks)
    ttl: float | None = None
    """Seconds: how long the agent's own certificate lives at most."""

    @property
    def grant_name(self) -> str:
        """What is recorded in ``granted_by``."""
        return PREFIX + self.name

    @property
    def wants(self) -> frozenset[str]:
        """The names of all facts that it looks at."""
        found = {name for text in (self.identity, *(value for _, value in self.labels)) for name in _PLACEHOLDER.findall(text)}
        if isinstance(self.takes, OidcTakes):
            found |= {claim for claim, _ in self.takes.claims}
        return frozenset(found)

    def identity_for(self, facts: Facts) -> str:
        """Return the agent's identity. Raises ``not_allowed`` when the facts do not fit or fill it, which nothing but a fact decides."""
        refusal = self.takes.refusal(facts)
        if refusal is not None:
            raise HandclaspError(Kind.NOT_ALLOWED, f"{self.grant_name}: {refusal}")
        return self._filled(self.identity, facts)

    def labels_for(self, facts: Facts) -> dict[str, str]:
        """Return the agent's labels. Raises as :meth:`identity_for`."""
        return {label: self._filled(text, facts) for label, text in self.labels}

    def grant_for(self, facts: Facts) -> Grant | None:
        """Return what the rule, as it is, gives to an agent with these facts: its own certificate, and nothing else. None when nothing."""
        try:
            identity = self.identity_for(facts)
            self.labels_for(facts)
            patterns = IdentityPatterns([identity])
        except HandclaspError:
            return None
        return Grant(
            name=self.grant_name,
            identities=patterns,
            profiles=frozenset({AGENT_PROFILE}),
            max_ttl=self.ttl,
            sources=self.sources,
        )

    def meaning(self) -> dict[str, Any]:
        """Return what it says, for comparing two policies."""
        return {
            "evidence": self.method,
            **{key: value for key, value in self.takes.meaning().items() if value not in (None, [], {})},
            "identity": self.identity,
            "labels": dict(self.labels),
            "once": self.once,
            "from": sorted(self.sources.texts),
            "ttl": None if self.ttl is None else format_duration(self.ttl),
        }

    def _filled(self, text: str, facts: Facts) -> str:
        """Return a text with facts in the place of its placeholders; a fact is never more than a part of one segment."""

        def value_of(match: re.Match[str]) -> str:
            value = facts.get(match[1])
            if not isinstance(value, str) or _VALUE.fullmatch(value) is None:
                what = "is missing" if value is None else "has characters that a name cannot have"
                raise HandclaspError(Kind.NOT_ALLOWED, f"{self.grant_name}: {match[1]} {what}, and it is needed for {text}")
            return value

        return _PLACEHOLDER.sub(value_of, text)


# --- reading ----------------------------------------------------------------------------------------------------------------------------


def read_enrolment(top: Part, issuers: Mapping[str, str], clusters: frozenset[str]) -> tuple[EnrolmentRule, ...]:
    """Return the section ``enrolment`` of a policy; every mistake is noted at its line. ``issuers``: URLs by their name in the policy."""
    parts = top.parts("enrolment")
    if len(parts) > MAX_RULES:
        top.problem("enrolment", f"at most {MAX_RULES} rules")
    found = [rule for part in parts[:MAX_RULES] if (rule := _rule(part, issuers, clusters)) is not None]
    seen: set[str] = set()
    for part in parts:
        name = part.value.get("name")
        if isinstance(name, str) and name in seen:
            part.problem("name", f"name {name!r} is given twice")
        elif isinstance(name, str):
            seen.add(name)
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
    holes = _PLACEHOLDER.findall(text)
    rest = _PLACEHOLDER.sub("", text)
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
    for between in _PLACEHOLDER.split(segment)[2:-1:2]:
        if not between or between[0] not in "._-":
            raise _bad(f"{segment[:200]!r}: between two placeholders stands one of . _ -")
    names.check_spiffe_id(_PLACEHOLDER.sub("x", text))


def _bad(detail: str) -> HandclaspError:
    return HandclaspError(Kind.BAD_POLICY, detail)
