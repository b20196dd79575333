"""Source kind ``step``: what a step-ca shows of itself, and what it has issued where its database is PostgreSQL.

step-ca's API has no list of issued certificates; it tells its roots, its intermediates and those it federates with. What it issued stands
in its database, as DER by decimal serial: PostgreSQL is read here. With MySQL these are the same tables, which nothing here reads, and with
badger only the CA itself can open the files while it runs: for these two, export and use the kind ``import``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from handclasp.discovery.http import Http
from handclasp.discovery.source import Count, Part, Place, Reading, Runs, Scope
from handclasp.discovery.tools import Tools
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.contents import read_contents
from handclasp.wire.observations import Observed, Seen

if TYPE_CHECKING:
    import asyncpg

_PAGE = 500
_LISTS = (("roots", "/roots"), ("intermediates", "/intermediates"), ("federation", "/federation"))
_SERIALS = "SELECT nkey FROM x509_certs WHERE nkey > $1 ORDER BY nkey LIMIT $2"
_REVOKED = "SELECT nkey, nvalue FROM revoked_x509_certs WHERE nkey = ANY($1::bytea[])"
_CERTIFICATES = (
    "SELECT c.nkey, c.nvalue, d.nvalue AS data FROM x509_certs c LEFT JOIN x509_certs_data d ON d.nkey = c.nkey"
    " WHERE c.nkey = ANY($1::bytea[]) ORDER BY c.nkey"
)


class StepSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the CA is, and its database."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    """Address of the CA, https://ca.example.org:9000."""
    ca_file: str = ""
    """Its root, PEM; without it the public ones are trusted."""
    database_file: str = ""
    """File with the URL of its database, postgresql://reader:…@host/stepca; without it only the CA's own certificates are read."""


class Step:
    """The kind."""

    name = "step"
    summary = "step-ca: its roots and intermediates, and from its PostgreSQL database what it has issued; the scope has no entries"
    privilege = (
        "For the CA itself nothing: these lists are open. For what it issued, a role of its database that can do no more than read: "
        "GRANT SELECT ON x509_certs, x509_certs_data, revoked_x509_certs TO reader. No private key is in these tables."
    )
    Settings: type[Struct] = StepSettings
    runs: Runs = "server"

    def check(self, settings: StepSettings, scope: Scope) -> None:  # noqa: ARG002  (one CA is one source)
        """Raise ``bad_setting`` for an address that is none."""
        if urlsplit(settings.url).scheme not in ("https", "http") or not urlsplit(settings.url).hostname:
            raise HandclaspError(Kind.BAD_SETTING, "step: url is not an address", hint="write it like https://ca.example.org:9000")

    async def plan(self, settings: StepSettings, scope: Scope, tools: Tools) -> AsyncIterator[Part]:  # noqa: ARG002
        """Yield the CA, and its database."""
        yield Part({"what": "authority"})
        if settings.database_file:
            yield Part({"what": "database"})

    async def read(self, settings: StepSettings, part: Part, place: str, tools: Tools) -> AsyncIterator[Reading]:
        """Yield CA certificates, or what was issued after the serial ``place``."""
        where = settings.url.partition("://")[2].rstrip("/")
        if part.spec["what"] == "authority":
            async with tools.http(settings.url, ca_file=settings.ca_file or None) as server:
                for name, path in _LISTS:
                    for item in await _list(server, where, name, path, tools):
                        yield item
            return
        async with _connected(settings, tools) as connection, contextlib.aclosing(_issued(connection, where, place, tools)) as items:
            async for item in items:
                yield item


STEP = Step()


class _List(Struct):
    crts: list[str] | None = None


async def _list(server: Http, where: str, name: str, path: str, tools: Tools) -> list[Reading]:
    """Return one of the lists of CA certificates as one location: together they are a bundle."""
    key = f"step:{where}/{name}"
    details = {"list": name}
    observed = Observed(key=key, kind="ca", shown=f"{where} {name}", unit=f"step:{where} lists", at=tools.clock(), details=details)
    try:
        answer: _List = await server.json(path, type_=_List)
    except HandclaspError as error:
        if error.kind is Kind.NOT_FOUND and name == "intermediates":  # older ones have no such list
            return []
        observed.problem = error.detail
        return [observed]
    found = [read_contents(one.encode("utf-8", "replace")) for one in answer.crts or []]
    if not all(one is not None and one.entries for one in found):
        observed.problem = "one of its certificates cannot be read"
        return [observed]
    ders = dict.fromkeys(entry.der for one in found if one is not None for entry in one.entries)
    observed.certificates = [Seen(der=der, role="anchor") for der in ders]
    return [observed]


@contextlib.asynccontextmanager
async def _connected(settings: StepSettings, tools: Tools) -> AsyncIterator[asyncpg.Connection[Any]]:
    import asyncpg

    url = tools.secret(settings.database_file).decode("utf-8", "replace").strip()
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
        raise HandclaspError(
            Kind.BAD_SETTING, "step: the file does not hold the URL of a PostgreSQL database", hint="postgresql://reader:…@host:5432/stepca"
        )
    await tools.resolve(parts.hostname, parts.port or 5432)
    try:
        connection = await asyncpg.connect(url, timeout=10, command_timeout=60, server_settings={"default_transaction_read_only": "on"})
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise HandclaspError(Kind.UNAVAILABLE, f"the database cannot be reached: {_words(error)}") from error
    try:
        yield connection
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise HandclaspError(Kind.UNAVAILABLE, f"the database cannot be read: {_words(error)}") from error
    finally:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=5)


def _words(error: BaseException) -> str:
    lines = str(error).splitlines()  # only the first: details can quote what is in the database
    return lines[0][:200] if lines else type(error).__name__


async def _issued(connection: asyncpg.Connection[Any], where: str, place: str, tools: Tools) -> AsyncGenerator[Reading, None]:
    unit, prefix = f"step:{where} issued", f"step:{where}/"
    known = await tools.known(unit) if tools.known is not None else frozenset()
    listed: set[str] = set()
    at = place.encode()
    while not tools.stop.is_set():
        serials = [bytes(row["nkey"]) for row in await connection.fetch(_SERIALS, at, _PAGE)]
        if not serials:
            break
        yield Count(total=len(serials))
        revoked = {bytes(row["nkey"]): bytes(row["nvalue"]) for row in await connection.fetch(_REVOKED, serials)}
        keys = {serial: prefix + serial.decode("ascii", "replace") for serial in serials}
        listed.update(keys.values())
        wanted = [serial for serial in serials if keys[serial] not in known or serial in revoked]
        yield Count(read=len(serials) - len(wanted))
        for row in await _rows(connection, wanted):
            yield _observed(row, keys[bytes(row["nkey"])], unit, where, revoked, tools)
        at = serials[-1]
        yield Place(at.decode("ascii", "replace"))
    else:
        return
    if place:
        return
    for key in known - listed:
        yield Observed(key=key, kind="ca", shown=key.removeprefix("step:"), unit=unit, at=tools.clock())


async def _rows(connection: asyncpg.Connection[Any], serials: Sequence[bytes]) -> list[Any]:
    return list(await connection.fetch(_CERTIFICATES, serials)) if serials else []


def _observed(row: Any, key: str, unit: str, where: str, revoked: dict[bytes, bytes], tools: Tools) -> Observed:
    serial = bytes(row["nkey"])
    details: dict[str, Any] = {"serial": serial.decode("ascii", "replace")}
    provisioner = _json(row["data"]).get("provisioner")
    if isinstance(provisioner, dict):
        details["provisioner"] = {name: str(provisioner[name]) for name in ("name", "type") if name in provisioner}
    if serial in revoked:
        details["revoked_at"] = str(_json(revoked[serial]).get("RevokedAt", ""))
    der = bytes(row["nvalue"] or b"")
    return Observed(
        key=key, kind="ca", shown=f"{where} {details['serial']}", unit=unit, at=tools.clock(), details=details,
        certificates=[Seen(der=der, role="listed")] if der else [], problem=None if der else "there is no certificate in its row",
    )  # fmt: skip


def _json(data: Any) -> dict[str, Any]:
    try:
        found = json.loads(bytes(data or b"{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
