"""Source kind ``vault``: the certificates that PKI mounts of HashiCorp Vault or OpenBao have issued, and their issuers.

Both list serial numbers and give certificates one by one. OpenBao lists in pages (``after``, ``limit``); Vault passes both over and lists
everything at once, which is noticed and taken as it is. A serial that is known is not fetched again, but for one that was revoked since.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import pairwise
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct, field

from handclasp.discovery.http import Http
from handclasp.discovery.source import Count, Failed, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.contents import read_contents
from handclasp.wire.observations import Covered, Observed, Seen

PAGE = 1000
Mount = Annotated[str, Meta(min_length=1, max_length=256)]
TOGETHER = 8
"""Certificates that are fetched at once: a Vault has other work."""
_BATCH = 200
_LIST = 256 * 1024 * 1024
"""Bytes of a list without pages: some four million serials."""
_PIECE = 1024 * 1024
"""Bytes of such a list that are decoded at once, and _RUN serials that are sorted at once: a thread holds up everything else meanwhile."""
_RUN = 20_000


class VaultSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, as whom, and which mounts."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    """Address of the server, https://vault.example.org:8200."""
    mounts: Annotated[list[Mount], Meta(max_length=500)] = field(default_factory=lambda: ["pki"])
    """PKI mounts, such as pki or pki-int."""
    token_file: str = ""
    """File with the token, and beside it FILE.hosts with the servers that it may go to; read again for each request."""
    namespace: str = ""
    """Namespace, where there are such."""
    ca_file: str = ""
    """CA certificates to trust for this server, PEM; without it the public ones."""


class _Issuer(Struct):
    certificate: str
    ca_chain: list[str] | str | None = None


class _Issued(Struct):
    certificate: str
    issuer_id: str = ""
    revocation_time: int = 0
    revocation_time_rfc3339: str = ""


class _Keys(Struct):
    keys: msgspec.Raw


class _IssuerAnswer(Struct):
    data: _Issuer


class _IssuedAnswer(Struct):
    data: _Issued


class _KeysAnswer(Struct):
    data: _Keys


class Vault:
    """The kind."""

    name = "vault"
    summary = "HashiCorp Vault and OpenBao: what PKI mounts have issued, and their issuers; the scope's entries are mounts"
    privilege = (
        "A token with this policy, for each mount (here: pki): "
        'path "pki/certs" { capabilities = ["list"] } path "pki/certs/revoked" { capabilities = ["list"] } '
        'path "pki/cert/*" { capabilities = ["read"] } path "pki/issuers" { capabilities = ["list"] }. '
        "Certificates of issuers (pki/issuer/+/json) are open to everybody. No private key can be reached with it."
    )
    Settings: type[Struct] = VaultSettings
    runs: Runs = "server"

    def check(self, settings: VaultSettings, scope: Scope) -> None:
        """Raise ``bad_setting`` for mounts that are none, or that the scope denies."""
        for mount in settings.mounts:
            if mount != mount.strip("/") or ".." in mount or not mount.isprintable() or " " in mount:
                raise HandclaspError(Kind.BAD_SETTING, f"vault: {mount!r} is not a mount", hint="write it without slashes around it: pki")
        if not any(scope.admits(mount) for mount in settings.mounts):
            raise HandclaspError(Kind.BAD_SETTING, "vault: the scope admits none of the mounts")

    async def plan(self, settings: VaultSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield each mount."""
        for mount in settings.mounts:
            if scope.admits(mount):
                yield Part({"mount": mount})

    async def read(self, settings: VaultSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Yield issuers and certificates of one mount; ``place`` is the serial that was dealt with last."""
        headers = {"X-Vault-Request": "true"} | ({"X-Vault-Namespace": settings.namespace} if settings.namespace else {})
        server = tools.http(
            settings.url, ca_file=settings.ca_file or None, token_file=settings.token_file or None, headers=headers, max_answer=_LIST
        )
        async with server:
            mount = _Mount(server, settings, part.spec["mount"], tools)
            for items in [mount.certificates(place)] if place else [mount.issuers(), mount.certificates(place)]:
                async with contextlib.aclosing(items):
                    async for item in items:
                        yield item


VAULT = Vault()


class _Mount:
    """One PKI mount while it is read."""

    def __init__(self, server: Http, settings: VaultSettings, name: str, tools: Tools) -> None:
        self._server, self._tools, self._name = server, tools, name
        where = settings.url.partition("://")[2].rstrip("/") + (f"/{settings.namespace.strip('/')}" if settings.namespace else "")
        self._prefix = f"vault:{where}/{name}/"
        self._shown = f"{name}/"
        self._unit = self._prefix + "cert"
        self._issuer_unit = self._prefix + "issuer"

    async def issuers(self) -> AsyncGenerator[Reading, None]:
        """Yield the mount's own CA certificates."""
        try:
            keys = await self._list("issuers")
        except HandclaspError as error:
            yield Failed(f"issuers of {self._name}", error.detail)
            return
        whole = True
        for key in keys:
            try:
                path = f"/v1/{quote(self._name)}/issuer/{quote(key, safe='')}/json"
                issuer: _Issuer = (await self._server.json(path, type_=_IssuerAnswer)).data
                texts = [issuer.ca_chain] if isinstance(issuer.ca_chain, str) else issuer.ca_chain or []
                chain = [der for text in texts for der in _certificates(text)]
                found = _certificates(issuer.certificate)[:1]
                seen = [Seen(der=der, role="anchor", chain=[one for one in chain if one != der]) for der in found]
                yield self._observed(f"issuer/{key}", self._issuer_unit, seen, {"issuer": key}, None if seen else "it has no certificate")
            except HandclaspError as error:
                whole = False
                yield self._observed(f"issuer/{key}", self._issuer_unit, [], {"issuer": key}, error.detail)
        if whole:
            yield Covered(unit=self._issuer_unit, began_at=self._tools.began_at)

    async def certificates(self, place: str) -> AsyncGenerator[Reading, None]:
        """Yield what was issued and is new, or was revoked, and what is listed no more."""
        known = await self._tools.known(self._unit) if self._tools.known is not None else frozenset()
        revoked = await self._revoked()
        missing = set(known)
        async for page in self._pages(place):
            yield Count(total=len(page))
            missing.difference_update([self._key(serial) for serial in page])
            wanted = [serial for serial in page if self._key(serial) not in known or serial in revoked]
            yield Count(read=len(page) - len(wanted))
            for start in range(0, len(wanted), _BATCH):
                async for item in self._fetch(wanted[start : start + _BATCH]):
                    yield item
                yield Place(wanted[min(start + _BATCH, len(wanted)) - 1])
            yield Place(page[-1])
            if self._tools.stop.is_set():
                return
        if not place:  # else the list is not whole, and what is missing in it may be in its first part
            for key in missing:
                yield Observed(key=key, kind="ca", shown=key.removeprefix(self._prefix), unit=self._unit, at=self._tools.clock())

    async def _fetch(self, serials: Sequence[str]) -> AsyncIterator[Reading]:
        for start in range(0, len(serials), TOGETHER):
            for item in await asyncio.gather(*(self._certificate(serial) for serial in serials[start : start + TOGETHER])):
                if item is not None:
                    yield item

    async def _certificate(self, serial: str) -> Observed | None:
        try:
            path = f"/v1/{quote(self._name)}/cert/{quote(serial, safe='')}"
            data: _Issued = (await self._server.json(path, type_=_IssuedAnswer)).data
            found = _certificates(data.certificate)
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:  # tidied up since it was listed
                return None
            if error.kind is Kind.NOT_ALLOWED:
                raise
            return self._observed(serial, self._unit, [], {"serial": serial}, error.detail)
        details = {"serial": serial, "issuer": data.issuer_id}
        if data.revocation_time > 0:
            details["revoked_at"] = data.revocation_time_rfc3339 or str(data.revocation_time)
        seen = [Seen(der=der, role="listed") for der in found[:1]]
        return self._observed(serial, self._unit, seen, details, None if seen else "what it gives is not a certificate")

    async def _pages(self, place: str) -> AsyncIterator[list[str]]:
        """Yield serials after ``place``, in the order in which they are stored."""
        while True:
            # Stored with hyphens and told with colons; ``after`` is held against what is stored, and "-" and ":" sort differently.
            keys = await self._list("certs", after=place.replace(":", "-"), limit=PAGE)
            new, is_old = await asyncio.to_thread(_after, keys, place)
            is_whole = len(keys) > PAGE or is_old
            for start in range(0, len(new), PAGE):
                yield new[start : start + PAGE]
            if is_whole or len(keys) < PAGE or not new:
                return
            place = new[-1]

    async def _revoked(self) -> set[str]:
        try:
            return await asyncio.to_thread(_as_told, await self._list("certs/revoked"))
        except HandclaspError as error:
            if error.kind is Kind.NOT_ALLOWED:
                raise HandclaspError(
                    Kind.NOT_ALLOWED, f"the token may not list {self._name}/certs/revoked", hint="see `handclasp source kinds`"
                ) from error
            raise

    async def _list(self, what: str, *, after: str = "", limit: int = 0) -> list[str]:
        params = {"list": "true"} | ({"after": after} if after else {}) | ({"limit": limit} if limit else {})
        try:
            answer: _KeysAnswer = await self._server.json(f"/v1/{quote(self._name)}/{what}", params=params, type_=_KeysAnswer)
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:  # this is how an empty list is said
                return []
            raise
        return await asyncio.to_thread(_strings, bytes(answer.data.keys))

    def _key(self, serial: str) -> str:
        return self._prefix + serial

    def _observed(self, name: str, unit: str, seen: list[Seen], details: dict[str, Any], problem: str | None) -> Observed:
        return Observed(
            key=self._key(name), kind="ca", shown=self._shown + name, unit=unit, at=self._tools.clock(), certificates=seen, details=details,
            problem=problem,
        )  # fmt: skip


def _stored(serial: str) -> str:
    return serial.replace(":", "-")


def _is_serial(key: str) -> bool:
    return bool(key) and set(key.lower()) <= set("0123456789abcdef:-")


def _certificates(text: str) -> list[bytes]:
    found = read_contents(text.encode("utf-8", "replace"))
    return [der for entry in found.entries for der in (entry.der, *entry.chain)] if found is not None else []


def _strings(raw: bytes) -> list[str]:
    """Decode a list of strings, in pieces. Raises ``unavailable``."""
    found: list[str] = []
    try:
        if not (raw.startswith(b"[") and raw.endswith(b"]")):
            raise ValueError
        start, end = 1, len(raw) - 1
        while start < end:
            comma = raw.find(b'",', start + _PIECE, end) + 1 or end
            found += msgspec.json.decode(b"[" + raw[start:comma] + b"]", type=list[str])
            start = comma + 1
    except (msgspec.MsgspecError, ValueError) as error:
        raise HandclaspError(Kind.UNAVAILABLE, "its answer has no list of keys") from error
    return found


def _as_told(keys: Sequence[str]) -> set[str]:
    return {key.replace("-", ":") for key in keys}


def _after(keys: Sequence[str], place: str) -> tuple[list[str], bool]:
    """Return the serials after ``place`` in the order in which they are stored, and whether there were others."""
    stored = [key.replace(":", "-") for key in keys if _is_serial(key)]
    new = [serial for serial in stored if not place or serial > _stored(place)]
    if not all(one <= other for one, other in pairwise(new)):
        new = list(heapq.merge(*(sorted(new[start : start + _RUN]) for start in range(0, len(new), _RUN))))
    return [serial.replace("-", ":") for serial in new], len(new) < len(stored)
