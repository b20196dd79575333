"""Agents that enrol by evidence, and what an agent may serve."""

from __future__ import annotations

from handclasp.access.evidence.verifier import EvidenceError
from handclasp.access.limits import network_key
from handclasp.access.principals import CertificatePrincipal, EvidencePrincipal
from handclasp.access.workloads import for_agent
from handclasp.api.handlers.certificates import to_issued
from handclasp.api.routes import Call, Plain, tagged
from handclasp.errors import HandclaspError, Kind
from handclasp.issuance.entries import evidence_entry
from handclasp.issuance.issue import NOT_DECISIONS
from handclasp.issuance.request import IssuanceRequest
from handclasp.pki.csr import Csr, parse_csr
from handclasp.store.writes import Write
from handclasp.wire import Challenge, Enrolled, EnrolRequest, WorkloadList, to_json


async def challenge(call: Call) -> Challenge:
    """Make a challenge. Nothing is stored of it."""
    call.services.principal_limit.check(_caller(call))
    return call.services.evidence.challenge()


async def enroll(call: Call) -> Enrolled:
    """Make an agent of who has evidence that a rule of the policy takes.

    Whoever calls is nobody yet, so both the attempts and the refusals of a network are limited, and a refusal is a log entry.
    """
    services, body = call.services, call.body
    assert isinstance(body, EnrolRequest)
    caller = _caller(call)
    services.principal_limit.check(caller)
    services.refused_limit.settle(caller)
    csr = parse_csr(body.csr)
    try:
        return await _enroll(call, csr, await _prove(call, body, csr))
    except HandclaspError as error:
        if error.kind not in NOT_DECISIONS:
            services.refused_limit.owe(caller)
        raise


async def _prove(call: Call, body: EnrolRequest, csr: Csr) -> EvidencePrincipal:
    services = call.services
    policy = (await services.rulebook.current()).policy
    try:
        return await services.evidence.verify(body.evidence, csr.sha256, policy, call.source.address)
    except HandclaspError as error:
        if error.kind not in NOT_DECISIONS:
            rule = error.rule if isinstance(error, EvidenceError) else ""
            entry = evidence_entry(call.source, body.evidence.method, rule, error, services.clock())
            await services.store.ledger.commit(Write([entry]))
        raise


async def _enroll(call: Call, csr: Csr, principal: EvidencePrincipal) -> Enrolled:
    rule = (await call.services.rulebook.current()).policy.enrolment_named(principal.rule)
    if rule is None:  # gone within this request
        raise HandclaspError(Kind.NOT_ALLOWED, f"there is no enrolment rule {principal.rule}")
    identity = rule.identity_for(principal.facts)
    request = IssuanceRequest(principal, csr, call.source, identity=identity, profile="agent")
    issued = to_issued(await call.services.issuance.issue(request))
    return Enrolled(**{name: getattr(issued, name) for name in issued.__struct_fields__}, again=not rule.once)


def _caller(call: Call) -> str:
    return f"enrolment from {network_key(call.source.address) if call.source.address else 'nowhere'}"


async def workloads(call: Call) -> Plain:
    """Return the workloads that the policy gives to the agent that asks, by its labels; the same answer has the same tag.

    Who has the scope without being an agent has no labels, and so no workloads.
    """
    principal = call.principal
    labels = principal.labels if isinstance(principal, CertificatePrincipal) and principal.is_agent else {}
    policy = (await call.services.rulebook.current()).policy
    return tagged(to_json(WorkloadList(items=for_agent(policy.workloads, labels))), "application/json")
