"""Policy and profiles: who may obtain what, and what kinds of certificates there are."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from handclasp.wire.base import Request, Response


class PolicyDocument(Request, kw_only=True):
    """A policy as its YAML text."""

    text: Annotated[str, Meta(max_length=1_000_000)]


class Policy(Response, kw_only=True):
    """The policy in force."""

    text: str
    sha256: str
    applied_at: str | None
    applied_by: str | None


class PolicyChange(Response, kw_only=True):
    """One difference between the policy in force and a proposed one: ``added``, ``removed`` or ``changed``."""

    change: str
    subject: str
    before: str | None = None
    after: str | None = None


class PolicyDiff(Response, kw_only=True):
    """What applying a policy would change; empty ``changes`` means nothing."""

    changes: list[PolicyChange]
    sha256: str
    applied: bool = False
    log_entry: int | None = None


class Profile(Response, kw_only=True):
    """What a kind of certificate looks like."""

    name: str
    description: str
    authority: str
    key_types: list[str]
    lifetime: str
    min_lifetime: str
    max_lifetime: str
    backdate: str
    usages: list[str]
    names: list[str]
    built_in: bool


class ProfileList(Response, kw_only=True):
    """Every profile."""

    items: list[Profile]


class ProfileDocument(Request, kw_only=True):
    """Profiles as their YAML text; replaces all profiles that are not built in."""

    text: Annotated[str, Meta(max_length=1_000_000)]
