"""Source kind ``ct``: certificates for named domains in Certificate Transparency logs, old (RFC 6962) and new (static-ct).

A log has a billion entries and one place in it is like another, so reading begins at its end, and each scan goes on where the last one was:
a location with no certificates, whose key says how far the log is read, remembers that.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from handclasp.discovery.ctentries import TILE, LogEntry, read_checkpoint, read_leaf, read_tile, tile_path
from handclasp.discovery.http import Http
from handclasp.discovery.source import Count, Failed, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import check_dns
from handclasp.pki.reading import read_certificate
from handclasp.wire.observations import Covered, Observed, Seen

_PAGE = 1000
_RETRIES = 5


class CtSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which logs, and for which domains."""

    domains: Annotated[list[Annotated[str, Meta(min_length=1, max_length=253)]], Meta(max_length=1000)] = field(default_factory=list)
    """Domains; a certificate for one of them or for a name below it is kept."""
    logs: Annotated[list[Annotated[str, Meta(min_length=1, max_length=2048)]], Meta(max_length=100)] = field(default_factory=list)
    """Addresses (prefixes) of RFC 6962 logs, such as https://ct.example.com/logs/2026h2."""
    static_logs: Annotated[list[Annotated[str, Meta(min_length=1, max_length=2048)]], Meta(max_length=100)] = field(default_factory=list)
    """Monitoring prefixes of static-ct logs."""
    start: Annotated[int, Meta(ge=-1, le=2**60)] = -1
    """Entry at which to begin a log that was never read; -1 is its end."""
    most: Annotated[int, Meta(ge=256, le=100_000_000)] = 1_000_000
    """Entries of one log that one scan reads at most; the next goes on."""
    ca_file: str = ""
    """CA certificates to trust for the logs, PEM; without it the public ones."""


class _TreeHead(Struct):
    tree_size: Annotated[int, Meta(ge=0)]


class _Entries(Struct):
    entries: list[msgspec.Raw]


class _Item(Struct):
    leaf_input: str
    extra_data: str


class CertificateTransparency:
    """The kind."""

    name = "ct"
    summary = "Certificate Transparency logs, RFC 6962 and static-ct, for named domains; the scope's entries are domains"
    privilege = "None: logs are open to everybody. The server (or collector) must reach them over HTTPS."
    Settings: type[Struct] = CtSettings
    runs: Runs = "server"

    def check(self, settings: CtSettings, scope: Scope) -> None:
        """Raise ``bad_setting`` for domains that are none or that the scope denies, and without a log."""
        if not settings.logs and not settings.static_logs:
            raise HandclaspError(Kind.BAD_SETTING, "ct: no log is named", hint="give logs or static_logs")
        if not settings.domains:
            raise HandclaspError(Kind.BAD_SETTING, "ct: no domain is named")
        for domain in settings.domains:
            try:
                check_dns(domain)
            except HandclaspError as error:
                raise HandclaspError(Kind.BAD_SETTING, f"ct: {domain!r} is not a domain") from error
            if not scope.admits(domain):
                raise HandclaspError(Kind.BAD_SETTING, f"ct: the scope does not admit {domain}")

    async def plan(self, settings: CtSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield each log."""
        for url in settings.logs:
            yield Part({"log": url})
        for url in settings.static_logs:
            yield Part({"log": url, "static": True})

    async def read(self, settings: CtSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Yield the entries of one log that are for a domain; ``place`` is the next entry and where this scan ends."""
        url = str(part.spec["log"]).rstrip("/")
        async with tools.http(url, ca_file=settings.ca_file or None, max_answer=64 * 1024 * 1024) as server:
            log: _Log = _StaticLog(server) if part.spec.get("static") else _OldLog(server)
            reading = _Reading(url, settings, tools)
            size = await log.size()
            if place:
                at, end = (int(number) for number in place.split("-"))
            else:
                at = await reading.begin(size)
                end = min(size, at + settings.most)
                yield Count(total=max(0, end - at))
            while at < end and not tools.stop.is_set():
                entries = await log.entries(at, end)
                for item in reading.matching(at, entries):
                    yield item
                at += len(entries)
                yield Count(read=len(entries))
                yield Place(f"{at}-{end}")
            if at >= end:
                for item in reading.mark(max(at, end)):
                    yield item


CT = CertificateTransparency()


class _Log:
    """One log. Entries that cannot be read are None."""

    def __init__(self, server: Http) -> None:
        self._server = server

    async def size(self) -> int:
        raise NotImplementedError

    async def entries(self, at: int, end: int) -> Sequence[LogEntry | None]:
        """Return entries from ``at`` on: some, as many as the log likes to give, and not beyond ``end``."""
        raise NotImplementedError


class _OldLog(_Log):
    async def size(self) -> int:
        answer: _TreeHead = await self._server.json("/ct/v1/get-sth", type_=_TreeHead)
        return answer.tree_size

    async def entries(self, at: int, end: int) -> Sequence[LogEntry | None]:
        asked = {"start": at, "end": min(end, at + _PAGE) - 1}
        answer: _Entries = await self._server.json("/ct/v1/get-entries", params=asked, type_=_Entries)
        if not answer.entries:
            raise HandclaspError(Kind.UNAVAILABLE, f"the log gives no entry {at}")
        return [_entry(item) for item in answer.entries[: end - at]]


class _StaticLog(_Log):
    _known_size = 0

    async def size(self) -> int:
        answer = await self._server.get("/checkpoint")
        try:
            if answer.status != 200:
                raise ValueError(f"it answers {answer.status} for its checkpoint")
            self._known_size = read_checkpoint(answer.body.decode("utf-8", "replace"))
        except ValueError as error:
            raise HandclaspError(Kind.UNAVAILABLE, f"the log does not say how large it is: {error}") from error
        return self._known_size

    async def entries(self, at: int, end: int) -> Sequence[LogEntry | None]:
        number, inside = divmod(at, TILE)
        width = min(TILE, self._known_size - number * TILE)
        answer = await self._server.get(tile_path(number, width), headers={"accept": "*/*"})
        if answer.status == 404 and width < TILE:  # a partial tile may be gone once the full one is there
            answer = await self._server.get(tile_path(number), headers={"accept": "*/*"})
        if answer.status != 200:
            raise HandclaspError(Kind.UNAVAILABLE, f"the log answers {answer.status} for tile {number}")
        found: list[LogEntry | None] = []
        try:
            found.extend(read_tile(answer.body))
        except ValueError:  # where an entry ends is not known any more
            found += [None] * (width - len(found))
        if len(found) < width:
            raise HandclaspError(Kind.UNAVAILABLE, f"tile {number} has fewer entries than the log says")
        return found[inside : min(width, end - number * TILE)]


class _Reading:
    """What becomes of entries."""

    def __init__(self, url: str, settings: CtSettings, tools: Tools) -> None:
        self._name = url.partition("://")[2]
        self._settings, self._tools = settings, tools
        self._suffixes = tuple("." + domain.lower().strip(".") for domain in settings.domains)
        self._marks = f"ct:{self._name} read up to"

    async def begin(self, size: int) -> int:
        """Return the entry to begin with."""
        if self._tools.known is not None:
            marks = [key.rpartition("@")[2] for key in await self._tools.known(self._marks)]
            read = [int(mark) for mark in marks if mark.isdigit()]
            if read:
                return max(read)
        elif self._settings.start < 0:
            raise HandclaspError(
                Kind.BAD_SETTING, "ct: a collector cannot know how far a log was read", hint="set start, or let the server read it"
            )
        return min(size, self._settings.start) if self._settings.start >= 0 else size

    def matching(self, first: int, entries: Sequence[LogEntry | None]) -> list[Reading]:
        """Return the entries that are for one of the domains."""
        found: list[Reading] = []
        for index, entry in enumerate(entries, first):
            if entry is None:
                found.append(Failed(f"entry {index} of {self._name}", "it cannot be read"))
            elif self._concerns(entry.certificate):
                found.append(self._observed(index, entry))
        return found

    def mark(self, size: int) -> list[Reading]:
        """Return what remembers how far the log is read."""
        shown = f"{self._name}, read up to entry {size}"
        at = self._tools.clock()
        mark = Observed(key=f"ct:{self._name}@{size}", kind="ct", shown=shown, unit=self._marks, at=at, details={"read": size})
        return [mark, Covered(unit=self._marks, began_at=self._tools.began_at)]

    def _concerns(self, certificate: bytes) -> bool:
        reading = read_certificate(certificate)
        names = [name.lower() for name in (*reading.dns, reading.common_name) if name]
        return any(("." + name).endswith(self._suffixes) for name in names)

    def _observed(self, index: int, entry: LogEntry) -> Observed:
        details: dict[str, Any] = {"entry": index, "logged_at": entry.at, "precertificate": entry.is_precertificate}
        how = {"precertificate": True} if entry.is_precertificate else {}
        return Observed(
            key=f"ct:{self._name}/{index}",
            kind="ct",
            shown=f"{self._name} #{index}",
            unit=f"ct:{self._name}",
            at=self._tools.clock(),
            certificates=[Seen(der=entry.certificate, role="listed", chain=list(entry.chain), how=how)],
            details=details,
        )


def _entry(raw: msgspec.Raw) -> LogEntry | None:
    try:
        item = msgspec.json.decode(raw, type=_Item)
        return read_leaf(base64.b64decode(item.leaf_input, validate=True), base64.b64decode(item.extra_data, validate=True))
    except (msgspec.MsgspecError, ValueError, binascii.Error):
        return None
