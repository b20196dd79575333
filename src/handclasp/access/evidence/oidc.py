"""OIDC tokens as evidence: of a CI job, a cloud's workload identity, any issuer of the policy."""

from __future__ import annotations

from handclasp.access.enrolment import EnrolmentRule, OidcTakes
from handclasp.access.evidence.proven import Proven, facts_of, refused
from handclasp.access.patterns import claim_value
from handclasp.access.policy import Policy
from handclasp.access.principals import OidcPrincipal, Once


def prove(rule: EnrolmentRule, principal: OidcPrincipal, policy: Policy) -> Proven:
    """Return what a verified token proves to one rule: the claims that the rule looks at. Raises ``not_authenticated``."""
    assert isinstance(rule.takes, OidcTakes)
    if principal.issuer != rule.takes.issuer:
        raise refused("its issuer is not the rule's")
    facts = facts_of((name, claim_value(principal.claims, name)) for name in sorted(rule.wants))
    single_use = any(issuer.single_use for issuer in policy.oidc if issuer.issuer == principal.issuer)
    spends = (Once(principal.issuer, principal.jti, principal.expires_at),) if single_use and principal.jti else ()
    return Proven(f"{principal.issuer} {principal.subject}", facts | {"iss": principal.issuer}, principal.expires_at, spends)
