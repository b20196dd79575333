"""Roles of the console: what each may do, and who has which.

A rule is written ``WHO=ROLE`` in the setting ``console_roles``. WHO is an identity of a client certificate (``spiffe://td/person/alice``,
with ``*`` for one path segment; ``email:alice@example.org``; ``dns:…``) or a claim of the OIDC issuer (``claim:groups:platform``). ROLE
is ``admin``, ``operator``, ``auditor``, or ``team:NAME``, with several teams as ``team:a+b``. Who matches several rules has the highest of
the roles, and all the teams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from handclasp.access.patterns import IdentityPatterns, claim_value
from handclasp.access.principals import SCOPES
from handclasp.errors import HandclaspError, Kind

ROLES = ("admin", "operator", "auditor", "team")
"""From the most to the least."""

_READS = frozenset(scope for scope in SCOPES if scope.endswith(":read"))

SCOPES_OF: Mapping[str, frozenset[str]] = {
    "admin": frozenset({"admin"}),
    "operator": _READS | {"certificates:revoke", "certificates:rotate", "inventory:write", "owners:write", "sources:write", "tokens:write"},
    "auditor": _READS,
    "team": _READS,
}
"""What each role may do. Whoever acts for an owner may do more with that owner's own: see :mod:`handclasp.access.owned`."""


@dataclass(frozen=True, slots=True)
class Role:
    """A role, and the owners for whom its holder acts."""

    name: str
    teams: frozenset[str] = frozenset()

    @property
    def scopes(self) -> frozenset[str]:
        """What of the API it may use."""
        return SCOPES_OF[self.name]


@dataclass(frozen=True, slots=True)
class _Rule:
    identity: Callable[[str], bool] | None
    claim: tuple[str, str] | None
    role: Role


class Roles:
    """The rules of one installation. Pure."""

    def __init__(self, rules: Iterable[str] = ()) -> None:
        """Raise ``bad_setting`` for a text that is no rule."""
        self._rules = tuple(_parse(text) for text in rules)

    def of_identity(self, identity: str) -> Role | None:
        """Return the role of the holder of a certificate; None for who has none, which is nobody's default."""
        return _highest(rule.role for rule in self._rules if rule.identity is not None and rule.identity(identity))

    def held(self, claims: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Return what an OIDC issuer says of somebody, as (claim, value), as far as rules ask for it.

        A claim has a value that it equals, or that it has in its list. An ``email`` has none unless the issuer says that it verified it:
        many let people write there what they like.
        """
        asked = dict.fromkeys(rule.claim for rule in self._rules if rule.claim is not None)
        return tuple(one for one in asked if _has(claims, *one))

    def of_held(self, held: Iterable[tuple[str, str]]) -> Role | None:
        """Return the role of whom an issuer said this about, by the rules as they are now; None for who has none."""
        said = set(held)
        return _highest(rule.role for rule in self._rules if rule.claim in said)

    @property
    def takes_certificates(self) -> bool:
        """Whether anybody can sign in with a client certificate."""
        return any(rule.identity is not None for rule in self._rules)


def _has(claims: Mapping[str, Any], name: str, wanted: str) -> bool:
    if name == "email" and claims.get("email_verified") is not True:
        return False
    value = claim_value(claims, name)
    return wanted in [one for one in value if isinstance(one, str)] if isinstance(value, list) else value == wanted


def _highest(found: Iterable[Role]) -> Role | None:
    roles = list(found)
    if not roles:
        return None
    best = min(roles, key=lambda role: ROLES.index(role.name))
    return Role(best.name, frozenset().union(*(role.teams for role in roles)))


def _parse(text: str) -> _Rule:
    who, equals, role = (part.strip() for part in text.rpartition("="))
    name, _, teams = role.partition(":")
    owners = frozenset(team.strip() for team in teams.split("+") if team.strip())
    if not equals or not who or name not in ROLES or (name == "team") != bool(owners):
        raise _bad(text, "write WHO=admin, =operator, =auditor or =team:NAME")
    parsed = Role(name, owners)
    if who.startswith("claim:"):
        _, claim, value = [*who.split(":", 2), "", ""][:3]
        if not claim or not value:
            raise _bad(text, "write claim:NAME:VALUE=ROLE")
        return _Rule(None, (claim, value), parsed)
    if who.startswith("spiffe://"):
        try:
            patterns = IdentityPatterns((who,))
        except HandclaspError as error:
            raise _bad(text, error.detail) from error
        if patterns.has_placeholders:
            raise _bad(text, "there are no claims to fill placeholders with")
        return _Rule(lambda identity: identity.startswith("spiffe://") and patterns.covers(identity, {}), None, parsed)
    if not who.startswith(("dns:", "email:", "ip:")):
        raise _bad(text, "WHO begins with spiffe://, dns:, email:, ip: or claim:")
    return _Rule(lambda identity: identity == who, None, parsed)


def _bad(text: str, why: str) -> HandclaspError:
    return HandclaspError(Kind.BAD_SETTING, f"console_roles: {text!r} is not a rule: {why}", hint="see docs/console.md")
