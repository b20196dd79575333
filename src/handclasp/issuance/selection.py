"""Which certificates a rotation is about: all, those of identities that a pattern covers, or those of one authority."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.sql import ColumnElement, Select

from handclasp.access.patterns import DnsPatterns, EmailPatterns, IdentityPatterns, Networks, Patterns
from handclasp.authority.authorities import Authorities
from handclasp.errors import HandclaspError, Kind
from handclasp.store import tables

OF_THE_SERVER = "server"
"""``obtained_by`` of the certificates of our own listeners: each process replaces its own, see ``server/own.py``."""

_KINDS: tuple[tuple[str, Callable[[list[str]], Patterns | Networks]], ...] = (
    ("dns:", DnsPatterns),
    ("email:", EmailPatterns),
    ("ip:", Networks),
    ("", IdentityPatterns),
)


@dataclass(frozen=True, slots=True)
class Selection:
    """One selection, checked."""

    what: str
    """``all``, ``identity`` or ``authority``."""
    value: str = ""
    """The pattern, or the authority's name."""
    authority_id: int | None = None
    prefix: str = ""
    """What every identity name that is covered begins with."""
    patterns: Patterns | Networks | None = None
    pattern_prefix: str = ""

    def covers(self, identity: str) -> bool:
        """Tell whether the identity (as rows name it: a SPIFFE ID, or ``dns:NAME`` …) is meant, as a policy's patterns would."""
        if self.patterns is None:
            return True
        return identity.startswith(self.pattern_prefix) and self.patterns.covers(identity.removeprefix(self.pattern_prefix))

    @property
    def is_exact(self) -> bool:
        """Whether the database can tell by itself, without looking at names."""
        return self.patterns is None

    @property
    def public_value(self) -> str | bool:
        """Return the value for the log: without addresses of people."""
        return "email" if self.pattern_prefix == "email:" else self.value or True

    def to_json(self) -> str:
        """Return the form in which it is stored."""
        return json.dumps({self.what: self.value or True})

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.what} {self.value}" if self.value else "all certificates"

    def live(self, now: int, before_index: int | None) -> list[ColumnElement[bool]]:
        """Return the conditions on ``certificate`` joined with ``identity``: what is live ``now``, recorded before ``before_index`` of
        the log, and can be meant; names are to be compared with :meth:`covers` besides.
        """
        certificate = tables.certificate.c
        found: list[ColumnElement[bool]] = [
            certificate.not_after > now,
            certificate.superseded_at.is_(None),
            certificate.revoked_at.is_(None),
            certificate.obtained_by != OF_THE_SERVER,
        ]
        if before_index is not None:
            found.append(certificate.log_index < before_index)
        if self.authority_id is not None:
            found.append(certificate.authority_id == self.authority_id)
        if self.pattern_prefix == "" and self.prefix and self.prefix == self.value:  # one name: its index finds it
            found.append(tables.identity.c.name == self.value)
        elif self.prefix:
            found.append(tables.identity.c.name.startswith(self.prefix, autoescape=True))
        return found

    def query(self, now: int, before_index: int | None, after: tuple[int, bytes] | None, limit: int) -> Select[Any]:
        """Return the query of the next ``limit`` certificates after one (its end and fingerprint): those that end first come first."""
        certificate, identity = tables.certificate, tables.identity
        query = (
            select(
                certificate.c.sha256, certificate.c.not_after, certificate.c.renew_after, certificate.c.renew_before, identity.c.name
            )
            .join(identity, identity.c.id == certificate.c.identity_id)
            .where(*self.live(now, before_index))
        )  # fmt: skip
        if after is not None:
            not_after, sha256 = after
            query = query.where(
                certificate.c.not_after >= not_after,  # this one is what the index is used for
                (certificate.c.not_after > not_after) | (certificate.c.sha256 > sha256),
            )
        return query.order_by(certificate.c.not_after, certificate.c.sha256).limit(limit)


def select_all() -> Selection:
    """Return the selection of everything."""
    return Selection("all")


def select_identities(pattern: str) -> Selection:
    """Return the selection of identities by a policy's pattern: ``spiffe://td/prod/**``, ``dns:*.example.org``, ``email:…``, ``ip:…``.

    Raises ``bad_request`` for what is no pattern.
    """
    for prefix, make in _KINDS:
        if not pattern.startswith(prefix):
            continue
        text = pattern.removeprefix(prefix)
        try:
            patterns = make([text])
        except HandclaspError as error:
            hint = "write it as in policy: spiffe://example.org/prod/*, spiffe://example.org/**, dns:*.example.org"
            raise HandclaspError(Kind.BAD_REQUEST, error.detail, hint=error.hint or hint) from error
        if isinstance(patterns, Patterns) and patterns.has_placeholders:
            raise HandclaspError(Kind.BAD_REQUEST, "there is nothing here to fill placeholders with", hint="use * for one segment")
        fixed = prefix or text.partition("*")[0]  # other names are compared in another form than they may be written in
        return Selection("identity", pattern, prefix=fixed, patterns=patterns, pattern_prefix=prefix)
    raise AssertionError("the last kind takes every text")


def select_authority(name: str, authorities: Authorities) -> Selection:
    """Return the selection of what one issuing authority signed. Raises ``unknown_authority``."""
    found = next((one for one in authorities.all() if one.name == name and not one.is_root), None)
    if found is None:
        raise HandclaspError(Kind.UNKNOWN_AUTHORITY, f"issuing authority {name!r} does not exist", hint="`handclasp ca list` shows them")
    return Selection("authority", name, authority_id=found.id)


def stored_selection(text: str, authorities: Authorities) -> Selection:
    """Return what :meth:`Selection.to_json` wrote."""
    ((what, value),) = json.loads(text).items()
    if what == "identity":
        return select_identities(value)
    return select_authority(value, authorities) if what == "authority" else select_all()
