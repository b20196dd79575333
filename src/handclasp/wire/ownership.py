"""Owners, the rules that find them, and what says who owns an identity.

Everything is as in :mod:`handclasp.wire`: times are RFC 3339, requests refuse unknown fields.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from handclasp.wire.base import Duration, Request, Response

OwnerName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$")]
OwnerKind = Annotated[str, Meta(pattern="^(team|person|service)$")]
Tier = Annotated[str, Meta(pattern="^[0-3]$")]
Environment = Annotated[str, Meta(max_length=64, pattern="^[a-z0-9][a-z0-9._-]*$")]
Line = Annotated[str, Meta(max_length=512)]
IdentityName = Annotated[str, Meta(min_length=1, max_length=2048)]


class OwnerEntry(Request, kw_only=True):
    """An owner as a directory has it, or as somebody adds it by hand."""

    name: OwnerName
    kind: OwnerKind = "team"
    title: Line = ""
    contact: Line = ""
    """Where it is reached: an address, a channel, a URL."""
    escalation: OwnerName | None = None
    """The owner to turn to when this one does not answer."""


class CatalogueEntry(Request, kw_only=True):
    """A component or a path with its owners, as a directory has it; rules of ownership lead identities to it."""

    kind: Annotated[str, Meta(pattern="^(component|path)$")]
    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    owners: Annotated[list[OwnerName], Meta(max_length=50)] = field(default_factory=list)
    tier: Tier | None = None
    environment: Environment | None = None


class OwnerImport(Request, kw_only=True):
    """Everything that a directory has now. What it had before and has no more is marked as left."""

    directory: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-z0-9][a-z0-9._-]*$")]
    owners: Annotated[list[OwnerEntry], Meta(max_length=50_000)] = field(default_factory=list)
    catalogue: Annotated[list[CatalogueEntry], Meta(max_length=100_000)] = field(default_factory=list)
    dry: bool = False
    """Say what would change, and change nothing."""


class OwnerChange(Response, kw_only=True):
    """What an import does to one owner."""

    change: str
    """``added``, ``changed``, ``left``, ``back``, or ``kept``: another directory has it, and nothing is done."""
    owner: str
    detail: str = ""


class OwnerImported(Response, kw_only=True):
    """What an import did, or would do."""

    directory: str
    changes: list[OwnerChange]
    owners: int
    """In this directory now."""
    components: int
    paths: int
    catalogue_changed: int
    """Components and paths that are new, gone or other than before."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    applied: bool = False
    log_entry: int | None = None


class Owner(Response, kw_only=True):
    """An owner, and how it stands with its identities."""

    name: str
    kind: str
    title: str
    contact: str
    escalation: str | None
    directory: str
    """Empty for one that was made by hand."""
    left_at: str | None
    """Since when its directory does not have it any more: its identities need a new owner."""
    created_at: str
    updated_at: str
    identities: int
    overdue: int = 0
    """Of those: their confirmation is over. Counted where one owner is shown."""


class OwnerList(Response, kw_only=True):
    """One page of owners, by name."""

    items: list[Owner]
    next_cursor: str | None = None


class OwnershipDocument(Request, kw_only=True):
    """Rules of ownership as their YAML text."""

    text: Annotated[str, Meta(max_length=1_000_000)]


class Sweep(Response, kw_only=True):
    """How far it is that every owner is derived again after a change of rules or owners."""

    done: int
    total: int


class Ownership(Response, kw_only=True):
    """The rules of ownership in force, and how the whole stands."""

    text: str
    sha256: str
    applied_at: str | None
    applied_by: str | None
    sweep: Sweep | None
    """None while nothing is being derived again."""
    waiting: int
    """Identities whose owner is to be derived again for their own sake."""
    unowned: int
    overdue: int
    contested: int


class OwnershipTest(Request, kw_only=True):
    """Ask who owns an identity under rules that need not be in force; ``facts`` stand for what would be seen of it."""

    identity: IdentityName
    text: Annotated[str, Meta(max_length=1_000_000)] | None = None
    """The rules to try; without it those in force."""
    facts: dict[str, Any] | None = None
    """Without it what is known of the identity, where there is one."""


class Assignment(Response, kw_only=True):
    """One thing that says who owns an identity."""

    evidence: str
    """``confirmed``, ``token``, ``workload``, ``namespace``, ``spiffe``, ``cloud``, ``catalogue``, ``host``, ``zone``, or ``denied``."""
    rule: str
    owner: str | None
    """None where it says tier or environment only."""
    tier: str | None
    environment: str | None
    detail: str
    confidence: int
    """Percent."""
    at: str | None
    """Since when it says so; None in a test."""
    confirm_by: str | None = None
    stands: str = ""
    """``owner``: gives the owner; ``disputed``: so too, though something weaker says otherwise; ``contested``: so too, though something as
    strong says otherwise; ``guess``: too weak to give it, and nothing else does."""


class Assignments(Response, kw_only=True):
    """Who owns an identity, and everything that says so or says otherwise, the strongest first."""

    identity: str
    owner: str | None
    tier: str | None
    environment: str | None
    owner_left: bool
    """The owner is in no directory any more."""
    known: bool
    """Whether there is such an identity; a test may be about one that is not there."""
    items: list[Assignment]


class AssignRequest(Request, kw_only=True):
    """Say who owns an identity; what is left out stays as it is confirmed."""

    owner: OwnerName | None = None
    tier: Tier | None = None
    environment: Environment | None = None
    reason: Annotated[str, Meta(min_length=1, max_length=512)]


class AskRequest(Request, kw_only=True):
    """Make a link by which an owner confirms what it owns."""

    identities: Annotated[list[IdentityName], Meta(max_length=500)] = field(default_factory=list)
    """Empty: those whose confirmation is over, or was never given."""
    expires: Duration = "14d"


class Asked(Response, kw_only=True):
    """The only answer that ever shows the secret."""

    owner: str
    contact: str
    secret: str
    path: str
    """Of the page for people: the link is the server's address and this."""
    identities: list[str]
    more: int
    """Identities that are left for another link."""
    expires_at: str
    log_entry: int


class AskedIdentity(Response, kw_only=True):
    """What is asked about, and no more than is needed to answer."""

    identity: str
    tier: str | None
    environment: str | None


class Confirmation(Response, kw_only=True):
    """What a link asks."""

    owner: str
    identities: list[AskedIdentity]
    expires_at: str
    answered_at: str | None


class ConfirmationAnswer(Request, kw_only=True):
    """What the owner says; an identity in neither list stays as it is. A link is answered once."""

    confirmed: Annotated[list[IdentityName], Meta(max_length=500)] = field(default_factory=list)
    denied: Annotated[list[IdentityName], Meta(max_length=500)] = field(default_factory=list)


class Confirmed(Response, kw_only=True):
    """What came of it."""

    confirmed: int
    denied: int
    changed: list[str]
    """Identities that somebody gave to another owner since the link was made; nothing was done about them."""
    log_entry: int


class OwnershipItem(Response, kw_only=True):
    """An identity that needs a person: nobody owns it, its confirmation is over, or evidence disagrees."""

    identity: str
    owner: str | None
    tier: str | None
    environment: str | None
    guesses: list[Assignment]
    """What could own it, the best first; or what disagrees."""
    confirm_by: str | None = None


class OwnershipItems(Response, kw_only=True):
    """One page of them."""

    items: list[OwnershipItem]
    next_cursor: str | None = None
