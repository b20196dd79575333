"""``handclasp agent discover``: what a scan would tell of this host, without a server and without a memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from handclasp.agent.config import load_config
from handclasp.agent.config.discover import DiscoverSettings
from handclasp.agent.discover.look import shown
from handclasp.agent.discover.rules import Rules, foreign_mounts, normal
from handclasp.agent.discover.scan import Heard, Order, Scan
from handclasp.agent.discover.work import read_passwords
from handclasp.agent.loop import state_directory
from handclasp.clock import Clock, rfc3339, system_clock
from handclasp.pki.reading import read_certificate
from handclasp.wire.filescans import FileScan, FileSightings
from handclasp.wire.observations import Observed


class FoundCertificate(msgspec.Struct, kw_only=True):
    """One certificate in a file."""

    sha256: str
    role: str
    """``stored``, or ``anchor``: a CA certificate that is trusted there."""
    subject: str
    identity: str
    not_after: str | None
    chain: int
    """Certificates that came with it."""
    alias: str = ""


class FoundKey(msgspec.Struct, kw_only=True):
    """A private key in a file: that it is there, and whose it is."""

    spki_sha256: str | None
    encrypted: bool
    others_read: bool
    """Whether its group or everybody may read it."""


class FoundFile(msgspec.Struct, kw_only=True):
    """One file in which something was found, or that could not be read."""

    path: str
    kind: str
    format: str
    mode: str
    owner: str
    group: str
    certificates: list[FoundCertificate]
    private_key: FoundKey | None
    problem: str | None
    references: list[str] = []


class Discovered(msgspec.Struct, kw_only=True):
    """All of it.

    ``unread`` is what was named and is not there, and directories that could not be listed; ``problem`` says why not everything was
    looked at, ``skipped`` what never is.
    """

    files: list[FoundFile]
    looked_at: int
    unread: dict[str, str]
    problem: str | None
    skipped: str | None = None


def discover(
    paths: Sequence[str], config: str | None = None, passwords_file: str | None = None, *, clock: Clock = system_clock
) -> Discovered:
    """Look through ``paths``. With a configuration its rules hold as for the server's scans; without one everything named is looked at.

    Raises ``bad_setting`` for a configuration that cannot be used.
    """
    roots = normal([str(Path(path).expanduser().absolute()) for path in paths])
    settings, own = DiscoverSettings(allow=tuple(os.path.realpath(root) for root in roots)), ""
    if config is not None:
        loaded = load_config(config)
        settings = loaded.section("discover") or DiscoverSettings()
        own = os.path.realpath(state_directory(loaded, None))
    told: list[FileSightings] = []

    def tell(chunk: FileSightings) -> Heard:
        told.append(chunk)
        return Heard()

    order = Order(scan=FileScan(scan="", source="", paths=list(roots)), identity="", host="", allow=[], deny=[], busy=1)
    rules = Rules(settings.allow, settings.deny, (), foreign_mounts(), own)
    passwords = read_passwords(passwords_file or str(settings.passwords_file or ""))
    Scan(order, rules, tell, clock=clock, passwords=passwords).run()
    observed = [one for chunk in told for one in chunk.observed]
    return Discovered(
        files=[_found(one) for one in observed],
        looked_at=sum(chunk.read for chunk in told) + len(observed),
        unread={shown(path): "it is not there" for path in roots if not os.path.lexists(path)}
        | {one.path: one.problem for chunk in told for one in chunk.unread},
        problem=told[-1].problem,
        skipped=told[-1].skipped,
    )


def _found(one: Observed) -> FoundFile:
    details: dict[str, Any] = one.details
    key = one.private_key
    return FoundFile(
        path=one.shown,
        kind=one.kind,
        format=details.get("format", ""),
        mode=details["mode"],
        owner=details["owner"],
        group=details["group"],
        certificates=[_certificate(seen.der or b"", seen.role, len(seen.chain), seen.how.get("alias", "")) for seen in one.certificates],
        private_key=FoundKey(
            spki_sha256=key.spki_sha256.hex() if key.spki_sha256 else None,
            encrypted=key.encrypted,
            others_read=bool(details.get("others_read")),
        )
        if key is not None
        else None,
        problem=one.problem,
        references=details.get("references", []),
    )


def _certificate(data: bytes, role: str, chain: int, alias: str) -> FoundCertificate:
    reading = read_certificate(data)
    return FoundCertificate(
        sha256=reading.sha256.hex(),
        role=role,
        subject=reading.subject,
        identity=reading.identity,
        not_after=None if reading.problem else rfc3339(reading.not_after),
        chain=chain,
        alias=alias,
    )
