"""The log entries of issuance: what is told of a certificate, an enrolment, a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handclasp.access.masking import masked
from handclasp.access.principals import EvidencePrincipal, TokenPrincipal
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError
from handclasp.issuance.request import IssuanceRequest, Source
from handclasp.log.entries import Entry, make_entry
from handclasp.pki.plan import Plan
from handclasp.store.writes import CertificateRow


def issued_entry(request: IssuanceRequest, plan: Plan, row: CertificateRow, grant: str, instead_of: bytes | None, now: int) -> Entry:
    """Return the entry of a certificate that was issued or renewed; ``instead_of`` is a successor whose answer was lost."""
    what: dict[str, Any] = {
        "sha256": row.sha256.hex(),
        "serial": f"{plan.serial:x}",
        "identity": row.identity,
        "profile": row.profile,
        "authority": plan.issuer.name,
        "key": row.spki_sha256.hex(),
        "key_type": row.key_type,
        "not_before": rfc3339(plan.not_before),
        "not_after": rfc3339(plan.not_after),
    }
    if plan.names.dns:
        what["dns"] = plan.names.dns
    if plan.names.ip:
        what["ip"] = plan.names.ip
    if plan.clamped:
        what["clamped"] = True
    if instead_of is not None:
        what["instead_of"] = instead_of.hex()
    if row.predecessor is not None:
        what |= {"predecessor": row.predecessor.hex(), "line": row.line.hex(), "generation": row.generation}
    personal = {"email": ",".join(plan.names.email)} if plan.names.email else None
    if row.identity.startswith("email:"):
        what["identity"] = "email"  # the address itself is personal, and stands in the salted part
    return make_entry(
        "certificate.renewed" if row.predecessor is not None else "certificate.issued",
        at=now, who=request.principal.to_log(), what=what, why={"grant": grant}, source=request.source.to_log(), personal=personal,
    )  # fmt: skip


def enrolled_entry(request: IssuanceRequest, labels: Mapping[str, str], row: CertificateRow, now: int) -> Entry:
    """Return the entry of an agent that enrolled; ``who`` says by which token, or by which rule and whose evidence."""
    principal = request.principal
    what = {"identity": row.identity, "labels": dict(labels)}
    subjects = [f"agent:{row.identity}"] + ([f"token:{principal.id}"] if isinstance(principal, TokenPrincipal) else [])
    return make_entry("agent.enrolled", at=now, who=principal.to_log(), what=what, source=request.source.to_log(), subjects=subjects)


def _refusal_type(request: IssuanceRequest) -> str:
    if isinstance(request.principal, EvidencePrincipal):
        return "agent.refused"
    return "renewal.refused" if request.predecessor is not None else "issuance.refused"


def evidence_entry(source: Source, method: str, rule: str, refusal: HandclaspError, now: int) -> Entry:
    """Return the entry of evidence that proved nobody; ``rule`` is the one that came nearest, if any was looked at."""
    # The method is what a stranger wrote, until it is known to be one of ours.
    what = {key: masked(value)[:64] for key, value in (("method", method), ("rule", rule)) if value}
    detail = masked(refusal.detail)[:500]
    why = {"kind": refusal.kind.value} | ({"reason": detail} if "@" not in detail else {})
    personal = {"reason": detail} if "@" in detail else None
    who = {"kind": "unknown"}
    return make_entry("agent.refused", at=now, who=who, what=what, why=why, source=source.to_log(), personal=personal)


def refusal_entry(request: IssuanceRequest, refusal: HandclaspError, now: int) -> Entry:
    """Return the entry of a request that was refused: what was wanted and why not, without secrets and without people's names."""
    wanted: dict[str, Any] = {
        "identity": masked(request.identity or ""),
        "dns": [masked(name) for name in request.dns[:20]],
        "ip": [masked(address) for address in request.ip[:20]],
        "profile": masked(request.profile or ""),
    }
    detail = masked(refusal.detail)[:500]
    # What was refused was mostly not even checked: somebody's address may stand anywhere in it.
    about_people = bool(request.email) or "@" in refusal.detail or any("@" in str(value) for value in wanted.values())
    what: dict[str, Any] = {key: value for key, value in wanted.items() if value and "@" not in str(value)}
    if request.predecessor is not None:
        what["predecessor"] = request.predecessor.hex()
    why = {"kind": refusal.kind.value} if about_people else {"kind": refusal.kind.value, "reason": detail}
    return make_entry(
        _refusal_type(request),
        at=now, who=request.principal.to_log(), what=what, why=why, source=request.source.to_log(),
        personal={"reason": detail} if about_people else None,
    )  # fmt: skip
