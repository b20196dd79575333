"""Replacing many certificates within a time."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from handclasp.wire.base import Duration, Name, Request, Response


class RotationRequest(Request, kw_only=True):
    """Have every certificate that matches replaced, with new keys, spread over ``within``. Exactly one of the first three is given."""

    all: bool = False
    identity: Annotated[str, Meta(max_length=2048)] | None = None
    """An identity pattern, as in policy."""
    authority: Name | None = None
    within: Duration = "10m"
    reason: Annotated[str, Meta(max_length=1000)] = ""
    dry_run: bool = False


class RotationPending(Response, kw_only=True):
    """A certificate that has not been replaced yet, and who has it."""

    sha256: str
    identity: str
    not_after: str
    renew_before: str
    agent: str | None = None
    agent_last_contact: str | None = None
    state: str
    """``waiting``, or ``late`` when its time is over."""


class Rotation(Response, kw_only=True):
    """How far a rotation is. ``pending`` holds the first ones (at most 1,000) of those that have not answered."""

    id: str
    what: str
    reason: str
    by: str
    created_at: str
    begins_at: str
    """When the first certificate is due: a little later, so that agents have asked before."""
    ends_at: str
    state: str
    """``planned`` (a dry run), ``running``, ``done``, or ``late``: the time is over and something has not answered."""
    total: int
    replaced: int
    gone: int
    """Revoked or expired meanwhile."""
    late: int
    pending: list[RotationPending]
    log_entry: int | None = None
    notes: list[str] = field(default_factory=list)
    """What whoever starts it should know, in words."""


class RotationList(Response, kw_only=True):
    """Rotations, newest first, without their pending certificates."""

    items: list[Rotation]
    next_cursor: str | None = None
