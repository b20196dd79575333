"""What whoever acts for an owner may do with what is that owner's: the choke point for teams, pure, default deny.

A team reads everything and changes nothing by its role. On top of that it has, for one call about one identity, the scope that the call
takes, if the identity is its own beyond dispute. A copy of a certificate can lie anywhere, and where it lies is evidence of whose it is:
whoever put it there must not be able to act on the identity of somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from handclasp.access.principals import ConsoleUser, Principal

OWN_SCOPES = frozenset({"certificates:revoke", "certificates:rotate", "inventory:write", "owners:write"})
"""What whoever acts for an owner may do besides, with that owner's identities and their certificates alone."""

UNOPPOSED = "owner"
WINS = frozenset({UNOPPOSED, "disputed", "contested"})
"""How what gives an owner can stand beside what says otherwise; see ``store.tables.assignment``."""
SURE = frozenset({"confirmed", "token"})
"""Evidence that nobody makes by putting something somewhere: people said so, or the token that obtained the certificates did."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that says who owns an identity."""

    owner: str
    evidence: str
    stands: str


@dataclass(frozen=True, slots=True)
class Owned:
    """The one identity that a call is about: who owns it, and what says so."""

    owner: str | None
    said: Sequence[Said]


def undisputed_owner(identity: Owned) -> str | None:
    """Return who owns an identity if people said so, or the token that obtained its certificates, or nothing says otherwise."""
    for one in identity.said:
        if one.owner == identity.owner and one.stands in WINS and (one.stands == UNOPPOSED or one.evidence in SURE):
            return identity.owner
    return None


def may_act_for_owners(principal: Principal) -> bool:
    """Tell whether this caller acts for any owner, so that it is worth knowing what a call is about."""
    return isinstance(principal, ConsoleUser) and bool(principal.teams)


def acting_for_owner(principal: Principal, scope: str, identity: Owned | None) -> Principal:
    """Return the caller as it is to be judged in a call that takes ``scope``: with that scope where it acts for the owner, else as it is.

    ``identity`` is None where the call is about more than one identity, or about none that is known: that is nobody's own.
    """
    if scope not in OWN_SCOPES or identity is None or not isinstance(principal, ConsoleUser):
        return principal
    owner = undisputed_owner(identity)
    return replace(principal, scopes=principal.scopes | {scope}) if owner is not None and owner in principal.teams else principal
