"""Source kind ``vault``: the certificates that PKI mounts of HashiCorp Vault or OpenBao have issued, and their issuers.

Both list serial numbers and give certificates one by one. OpenBao lists in pages (``after``, ``limit``); Vault passes both over and lists
everything at once, which is noticed and taken as it is. A serial that is known is not fetched again, but for one that was revoked since.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any
from urllib.parse import quote

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


class VaultSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, as whom, and which mounts."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    """Address of the server, https://vault.example.org:8200."""
    mounts: Annotated[list[Mount], Meta(max_length=500)] = field(default_factory=lambda: ["pki"])
    """PKI mounts, such as pki or pki-int."""
    token_file: str = ""
    """File with the token; it is read again for each request, as an agent of Vault's may replace it."""
    namespace: str = ""
    """Namespace, where there are such."""
    ca_file: str = ""
    """CA certificates to trust for this server, PEM; without it the public ones."""


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
                answer = await self._server.json(f"/v1/{quote(self._name)}/issuer/{quote(key, safe='')}/json")
                text, chain = _text(answer, "certificate"), _texts(answer, "ca_chain")
                seen = [Seen(der=der, role="anchor", chain=[one for one in chain if one != der]) for der in _certificates(text)[:1]]
                yield self._observed(f"issuer/{key}", self._issuer_unit, seen, {"issuer": key}, None if seen else "it has no certificate")
            except HandclaspError as error:
                whole = False
                yield self._observed(f"issuer/{key}", self._issuer_unit, [], {"issuer": key}, error.detail)
        if whole:
            yield Covered(unit=self._issuer_unit, began_at=self._tools.began_at)

    async def certificates(self, place: str) -> AsyncGenerator[Reading, None]:
        """Yield what was issued and is new, or was revoked, and what is listed no more."""
        known = await self._tools.known(self._unit) if self._tools.known is not None else frozenset()
        revoked = set(await self._revoked())
        listed: set[str] = set()
        async for page in self._pages(place):
            yield Count(total=len(page))
            listed.update(page)
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
            for key in known - {self._key(serial) for serial in listed}:
                yield Observed(key=key, kind="ca", shown=key.removeprefix(self._prefix), unit=self._unit, at=self._tools.clock())

    async def _fetch(self, serials: Sequence[str]) -> AsyncIterator[Reading]:
        for start in range(0, len(serials), TOGETHER):
            for item in await asyncio.gather(*(self._certificate(serial) for serial in serials[start : start + TOGETHER])):
                if item is not None:
                    yield item

    async def _certificate(self, serial: str) -> Observed | None:
        try:
            answer = await self._server.json(f"/v1/{quote(self._name)}/cert/{quote(serial, safe='')}")
            found = _certificates(_text(answer, "certificate"))
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:  # tidied up since it was listed
                return None
            if error.kind is Kind.NOT_ALLOWED:
                raise
            return self._observed(serial, self._unit, [], {"serial": serial}, error.detail)
        data = answer["data"]
        details = {"serial": serial, "issuer": str(data.get("issuer_id", ""))}
        if isinstance(data.get("revocation_time"), int) and data["revocation_time"] > 0:
            details["revoked_at"] = str(data.get("revocation_time_rfc3339") or data["revocation_time"])
        seen = [Seen(der=der, role="listed") for der in found[:1]]
        return self._observed(serial, self._unit, seen, details, None if seen else "what it gives is not a certificate")

    async def _pages(self, place: str) -> AsyncIterator[list[str]]:
        """Yield serials after ``place``, in the order in which they are stored."""
        while True:
            # Stored with hyphens and told with colons; ``after`` is held against what is stored, and "-" and ":" sort differently.
            keys = await self._list("certs", after=place.replace(":", "-"), limit=PAGE)
            serials = sorted((key.replace("-", ":") for key in keys if _is_serial(key)), key=lambda serial: serial.replace(":", "-"))
            is_whole = len(keys) > PAGE or (place and any(_stored(serial) <= _stored(place) for serial in serials))
            new = [serial for serial in serials if not place or _stored(serial) > _stored(place)]
            for start in range(0, len(new), PAGE):
                yield new[start : start + PAGE]
            if is_whole or len(keys) < PAGE or not new:
                return
            place = new[-1]

    async def _revoked(self) -> list[str]:
        try:
            return [key.replace("-", ":") for key in await self._list("certs/revoked")]
        except HandclaspError as error:
            if error.kind is Kind.NOT_ALLOWED:
                raise HandclaspError(
                    Kind.NOT_ALLOWED, f"the token may not list {self._name}/certs/revoked", hint="see `handclasp source kinds`"
                ) from error
            raise

    async def _list(self, what: str, *, after: str = "", limit: int = 0) -> list[str]:
        params = {"list": "true"} | ({"after": after} if after else {}) | ({"limit": limit} if limit else {})
        try:
            answer = await self._server.json(f"/v1/{quote(self._name)}/{what}", params=params)
        except HandclaspError as error:
            if error.kind is Kind.NOT_FOUND:  # this is how an empty list is said
                return []
            raise
        return _texts(answer, "keys", parse=False)

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


def _text(answer: Any, name: str) -> str:
    data = answer.get("data") if isinstance(answer, dict) else None
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise HandclaspError(Kind.UNAVAILABLE, f"its answer has no {name}")
    return value


def _texts(answer: Any, name: str, *, parse: bool = True) -> list[Any]:
    data = answer.get("data") if isinstance(answer, dict) else None
    value = data.get(name) if isinstance(data, dict) else None
    if value is None and parse:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise HandclaspError(Kind.UNAVAILABLE, f"its answer has no list of {name}")
    return [der for one in value for der in _certificates(one)] if parse else value
