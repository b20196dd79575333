"""What may issue a certificate for an identity: the grants of the policy, and the tokens, that cover its name."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, or_, select

from handclasp.access.grants import AgentRule, CertificateRule, Grant, KubernetesRule, OidcRule, PrincipalRule
from handclasp.access.patterns import ANY_VALUE
from handclasp.access.policy import Policy
from handclasp.access.tokengrant import TokenGrant
from handclasp.clock import format_duration, rfc3339
from handclasp.errors import HandclaspError
from handclasp.pki.names import Names, make_names
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.wire import Certificate
from handclasp.wire.inventory import MayIssue

TOKENS = 2000
"""Active tokens that are looked through, newest first."""


def names_of(identity: str) -> Names | None:
    """Return the name that an identity is counted under; None for one that nobody could be issued."""
    kind, _, name = identity.partition(":")
    try:
        if identity.startswith("spiffe://"):
            return make_names(identity, (), (), ())
        return make_names(None, *([name] if kind == one else [] for one in ("dns", "ip", "email")))
    except HandclaspError:
        return None


async def may_issue(store: Store, policy: Policy, identity: str, now: int) -> list[MayIssue]:
    """Return the grants and the active tokens that allow certificates for ``identity``, as they are now; none where it is denied.

    Placeholders in a grant take any value: who comes with another one is refused when it asks.
    """
    names = names_of(identity)
    if names is None or names.is_empty or policy.denied(names) is not None:
        return []
    found = [_of_policy(grant) for grant in policy.all_grants if "issue" in grant.actions and grant.uncovered(names, ANY_VALUE) is None]
    return [*found, *await _tokens(store, names, now)]


def of_the_server(newest: Certificate | None) -> list[MayIssue]:
    """Return the one grant that no policy gives: this server obtains the certificate of its own listeners, and renews it by itself."""
    if newest is None or newest.obtained_by != "server":
        return []
    return [MayIssue(grant="server", who="this server itself: it is its own, and renewed by it", profiles=[newest.profile or ""],
                     max_ttl=None, renew=True)]  # fmt: skip


def denied_by(policy: Policy, identity: str) -> str | None:
    """Return the name of the deny rule that keeps everybody from this identity, or None."""
    names = names_of(identity)
    denied = policy.denied(names) if names is not None else None
    return denied[0].name if denied is not None else None


def _of_policy(grant: Grant) -> MayIssue:
    return MayIssue(
        grant=grant.name,
        who=_words(grant.principals),
        profiles=sorted(grant.profiles),
        max_ttl=_duration(grant.max_ttl),
        renew=grant.renew,
    )


async def _tokens(store: Store, names: Names, now: int) -> list[MayIssue]:
    token = tables.token.c
    left = or_(token.uses == 0, token.used < token.uses)
    query = select(tables.token).where(and_(token.revoked_at.is_(None), token.expires_at > now, left))
    found = []
    for row in await store.rows(query.order_by(token.created_at.desc(), token.id.desc()).limit(TOKENS)):
        grant = TokenGrant.from_json(row.grant).to_grant(row.id)
        if grant.has_names and grant.uncovered(names, ANY_VALUE) is None:
            found.append(
                MayIssue(
                    grant=grant.name,
                    who=f"who holds the token {row.name}",
                    profiles=sorted(grant.profiles),
                    max_ttl=_duration(grant.max_ttl),
                    renew=grant.renew,
                    ends=rfc3339(row.expires_at),
                    uses_left=row.uses - row.used if row.uses else None,
                )
            )
    return found


def _words(rules: Sequence[PrincipalRule]) -> str:
    return "; ".join(_rule(rule) for rule in rules) or "nobody"


def _rule(rule: PrincipalRule) -> str:
    if isinstance(rule, CertificateRule):
        return f"certificate {rule.prefix}{', '.join(rule.patterns.texts)}"
    if isinstance(rule, AgentRule):
        return f"agents with {', '.join(f'{name}={value}' for name, value in rule.labels)}"
    if isinstance(rule, OidcRule):
        return f"tokens of {rule.provider} with {', '.join(f'{claim}={pattern.value}' for claim, pattern in rule.claims)}"
    if isinstance(rule, KubernetesRule):
        places = (("namespace", rule.namespace), ("service account", rule.service_account))
        said = ", ".join(f"{what} {pattern.value}" for what, pattern in places if pattern is not None)
        return f"cluster {rule.cluster}{': ' + said if said else ''}"
    return f"the token {rule.name}"


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else format_duration(seconds)
