"""Making an installation: data directory, keys, database, root and issuing authority, log, admin token. Safe to repeat after any crash."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from sqlalchemy import insert

from handclasp.access.tokens import Tokens
from handclasp.authority.authorities import Authorities
from handclasp.authority.files import PRIVATE, private_directory, replace
from handclasp.authority.keystore import KeyStore
from handclasp.authority.passphrase import make_passphrase
from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import check_trust_domain
from handclasp.server.instance import open_keystore
from handclasp.server.rooms import LOG_KEY, log_directory
from handclasp.server.settings import Settings
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.store.writes import Change, Write
from handclasp.wire import TokenRequest

ADMIN_TOKEN_LIFETIME = "365d"  # noqa: S105  (a duration)
DEFAULT_TRUST_DOMAIN = "handclasp.internal"
BY = {"kind": "local", "id": "init"}


def admin_token_file(settings: Settings) -> Path:
    """Return where the admin token is kept."""
    return settings.data / "admin.token"


async def initialise(settings: Settings, *, http_url: str = "", clock: Clock = system_clock) -> bool:
    """Make an installation in ``settings.data`` and its database; return False when there was one already.

    Everything is durable on return. Each step looks at what is there first, so a call that was interrupted is simply repeated; the last
    step records that all of it is there. Raises ``bad_setting``, before anything is written, for settings that cannot be used, and for a
    trust domain that differs from the one that is there or was begun.
    """
    settings.check()
    private_directory(settings.data)
    if settings.passphrase_file is None and "HANDCLASP_PASSPHRASE_FILE" not in os.environ and "CREDENTIALS_DIRECTORY" not in os.environ:
        make_passphrase(settings.data, secrets.token_bytes)
    keystore = open_keystore(settings)
    store = await Store.open(settings.database_url, clock)
    try:
        if await store.meta("log_origin") is not None:
            await _check_same(settings, store, keystore, clock)
            return False
        trust_domain = await _trust_domain(settings, store, keystore, clock)
        if not settings.offline_root:
            await _make_authorities(settings, store, keystore, trust_domain, http_url, clock)
        await _make_admin_token(settings, store, clock)
        _make_log_key(keystore)
        private_directory(log_directory(settings))
        facts = {"instance": str(secrets.randbelow(128)), "log_origin": f"{trust_domain}/log"}
        await store.ledger.commit(Write([], [Change(insert(tables.meta).values(name=name, value=value)) for name, value in facts.items()]))
        return True
    finally:
        await store.close()


async def _trust_domain(settings: Settings, store: Store, keystore: KeyStore, clock: Clock) -> str:
    """Return the trust domain to make: the one that an interrupted call has begun, if any, which must be the one that is asked for."""
    await _check_same(settings, store, keystore, clock)
    authorities = Authorities(store, keystore, clock)
    await authorities.load()
    begun = next(iter(authorities.trust_domains), DEFAULT_TRUST_DOMAIN)
    return check_trust_domain(settings.trust_domain or begun)


async def _check_same(settings: Settings, store: Store, keystore: KeyStore, clock: Clock) -> None:
    authorities = Authorities(store, keystore, clock)
    await authorities.load()
    if settings.trust_domain and authorities.trust_domains and settings.trust_domain not in authorities.trust_domains:
        raise HandclaspError(
            Kind.BAD_SETTING,
            f"{settings.data} is an installation for {', '.join(authorities.trust_domains)}, not {settings.trust_domain}",
            hint="leave trust_domain out, use another data directory, or add one: handclasp ca root create, ca import",
        )


async def _make_authorities(settings: Settings, store: Store, keystore: KeyStore, trust_domain: str, http_url: str, clock: Clock) -> None:
    authorities = Authorities(store, keystore, clock)
    await authorities.load()
    names = {authority.name for authority in authorities.all()}
    base_url = settings.http_url or http_url
    if "root" not in names:
        await authorities.create_root(
            "root",
            trust_domain,
            by=BY,
            key_type=settings.key_type,
            key_uri="file:root.key",
            lifetime=settings.root_lifetime,
            base_url=base_url,
        )
    await authorities.load()
    if "issuing" not in names:
        await authorities.create_issuing(
            "issuing",
            "root",
            by=BY,
            key_type=settings.key_type,
            key_uri="file:issuing.key",
            lifetime=settings.issuing_lifetime,
            dns_zones=settings.dns_zone,
            uri_constraint=settings.uri_constraint,
            crl_shards=int(settings.crl_shards),
            base_url=base_url,
        )


async def _make_admin_token(settings: Settings, store: Store, clock: Clock) -> None:
    """Make the admin token, readable by the data directory's owner only. (After a crash here, the first one was never shown to anyone.)"""
    path = admin_token_file(settings)
    request = TokenRequest(name="admin", uses=0, expires=ADMIN_TOKEN_LIFETIME, scopes=["admin"])
    created = await Tokens(store, clock).create(request, "local:init")
    write_private(path, created.token + "\n")


async def new_admin_token(settings: Settings, clock: Clock = system_clock) -> None:
    """Make another admin token, into the admin token's file, for whoever has lost theirs or let it end. The ones before stay as they are.

    Logged, and durable on return. Raises ``bad_setting`` where nothing was initialised.
    """
    if settings.database_url.startswith("sqlite:///") and not await asyncio.to_thread(Path(settings.database_url[10:]).exists):
        raise _nothing(settings)
    store = await Store.open(settings.database_url, clock)
    try:
        if await store.meta("log_origin") is None:
            raise _nothing(settings)
        await _make_admin_token(settings, store, clock)
    finally:
        await store.close()


def _nothing(settings: Settings) -> HandclaspError:
    return HandclaspError(Kind.BAD_SETTING, f"nothing was initialised in {settings.data}", hint="run handclasp init, or handclasp up")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads (0600), whole or not at all, durable on return."""
    replace(path, text.encode(), PRIVATE)


def _make_log_key(keystore: KeyStore) -> None:
    try:
        keystore.load(LOG_KEY)
    except HandclaspError:
        keystore.generate(LOG_KEY, "ed25519")
