"""What is done on the server's own machine, with its keys and its database, and not through the API: making and importing authorities."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from handclasp.authority.authorities import Authorities
from handclasp.authority.crls import CrlPublisher
from handclasp.authority.facts import Authority, load_certificate
from handclasp.authority.files import read_small
from handclasp.authority.keystore import KeyStore
from handclasp.authority.offline import trust_domain_of_root
from handclasp.authority.passphrase import find_passphrase
from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.server.instance import open_keystore
from handclasp.server.run import DataLock, public_http
from handclasp.server.settings import Settings
from handclasp.server.setup import admin_token_file, new_admin_token
from handclasp.store.database import Store

BY = {"kind": "local", "id": "ca"}


async def create_issuing(settings: Settings, name: str, trust_domain: str, *, clock: Clock = system_clock) -> Authority:
    """Make another issuing authority under a root whose key is here; durable and logged on return.

    Raises ``unknown_authority`` where the trust domain has no root with its key here, ``conflict`` for a name that is taken or (SQLite)
    while a server runs.
    """
    async with _opened(settings, clock) as (_, authorities, _crls):
        roots = [one for one in authorities.all() if one.is_root and one.trust_domain == trust_domain and one.state == "active"]
        root = next((one for one in roots if one.key_uri is not None), None)
        if root is None:
            where = "its root's key is elsewhere" if roots else "there is no root for it"
            raise HandclaspError(
                Kind.UNKNOWN_AUTHORITY, f"{trust_domain}: {where}", hint="use handclasp ca request, ca sign-issuing and ca import"
            )
        return await authorities.create_issuing(
            name,
            root.name,
            by=BY,
            key_type=settings.key_type,
            key_uri=f"file:{name}.key",
            lifetime=settings.issuing_lifetime,
            dns_zones=settings.dns_zone,
            uri_constraint=settings.uri_constraint,
            crl_shards=int(settings.crl_shards),
            base_url=settings.http_url or public_http(settings, None),
        )


async def create_admin_token(settings: Settings, *, clock: Clock = system_clock) -> Path:
    """Make another admin token and return the file it is in; logged as made here, durable on return.

    For whoever has lost theirs, or let it end: whoever may write the data directory is the administrator anyway. The tokens before stay as
    they are. Raises ``bad_setting`` where nothing was initialised, ``conflict`` while a server runs on this data directory.
    """
    with DataLock(settings):
        await new_admin_token(settings, clock)
    return admin_token_file(settings)


async def import_issuing(
    settings: Settings, cert_file: Path, key_file: Path, *, name: str, root_file: Path | None, clock: Clock = system_clock
) -> Authority:
    """Take over an issuing authority that was signed elsewhere, and its root where that is not known yet; durable and logged on return.

    The key is kept under the installation's own passphrase. A ``root.crl`` beside the root's certificate is published. An import that was
    interrupted is simply repeated. Raises ``bad_certificate``, ``bad_key``, ``conflict``, ``unknown_authority``.
    """
    async with _opened(settings, clock) as (keystore, authorities, crls):
        certificate = read_small(cert_file, what="certificate")
        base_url = settings.http_url or public_http(settings, None)
        root = await _root(authorities, crls, root_file, base_url)
        uri = f"file:{name}.key"
        if not (settings.data / "keys" / f"{name}.key").exists():
            keystore.import_key(uri, read_small(key_file, what="key"), _passphrase_of(settings, key_file))
        return await authorities.import_issuing(
            name, root.name, certificate, by=BY, key_uri=uri, crl_shards=int(settings.crl_shards), base_url=base_url
        )


async def _root(authorities: Authorities, crls: CrlPublisher, root_file: Path | None, base_url: str) -> Authority:
    """Return the root to import under: the one in the file, recorded now unless it is there, or the only one that there is."""
    roots = [one for one in authorities.all() if one.is_root and one.state == "active"]
    if root_file is None:
        if len(roots) != 1:
            raise HandclaspError(Kind.UNKNOWN_AUTHORITY, f"under which root? There are {len(roots)} here", hint="give it with --root")
        return roots[0]
    data = read_small(root_file, what="root certificate")
    known = authorities.known(data)
    if known is None:
        name = "root" if all(one.name != "root" for one in authorities.all()) else f"root-{len(roots) + 1}"
        trust_domain = trust_domain_of_root(load_certificate(data))
        if not trust_domain:
            raise HandclaspError(
                Kind.BAD_CERTIFICATE, "the root names no trust domain as its organization", hint="make it with: handclasp ca root create"
            )
        known = await authorities.import_root(name, trust_domain, data, by=BY, base_url=base_url)
    crl_file = root_file.with_suffix(".crl")
    if crl_file.exists():
        await crls.import_crl(known.name, read_small(crl_file, what="CRL"), by=BY)
    return known


def _passphrase_of(settings: Settings, key_file: Path) -> bytes:
    """Return the passphrase that opens the key to import: the one kept beside it, else the installation's own."""
    beside = key_file.parent / "passphrase"
    if beside.exists() and settings.passphrase_file is None:
        return find_passphrase(key_file.parent, beside, {})
    return find_passphrase(settings.data, settings.passphrase_file, os.environ)


@contextlib.asynccontextmanager
async def _opened(settings: Settings, clock: Clock) -> AsyncIterator[tuple[KeyStore, Authorities, CrlPublisher]]:
    with contextlib.ExitStack() as stack:
        if settings.database_url.startswith("sqlite:"):
            stack.enter_context(DataLock(settings))
        keystore = open_keystore(settings)
        store = await Store.open(settings.database_url, clock)
        try:
            authorities = Authorities(store, keystore, clock)
            await authorities.load()
            yield keystore, authorities, CrlPublisher(store, authorities, clock, validity=settings.crl_lifetime)
        finally:
            await store.close()
