"""Making an installation: data directory, keys, database, root and issuing authority, log, admin token. Safe to repeat after any crash."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from handclasp.access.tokens import Tokens
from handclasp.authority.authorities import Authorities
from handclasp.authority.files import private_directory
from handclasp.authority.keystore import KeyStore
from handclasp.authority.passphrase import make_passphrase
from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.names import check_trust_domain
from handclasp.server.instance import LOG_KEY, log_directory, open_keystore, read_meta, set_meta
from handclasp.server.settings import Settings
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
    step records that all of it is there. Raises ``bad_setting`` for a trust domain that differs from the one that is there.
    """
    trust_domain = check_trust_domain(settings.trust_domain or DEFAULT_TRUST_DOMAIN)
    private_directory(settings.data)
    if settings.passphrase_file is None and "HANDCLASP_PASSPHRASE_FILE" not in os.environ and "CREDENTIALS_DIRECTORY" not in os.environ:
        make_passphrase(settings.data, secrets.token_bytes)
    keystore = open_keystore(settings)
    store = await Store.open(settings.database_url, clock)
    try:
        if await read_meta(store, "log_origin") is not None:
            await _check_same(settings, store, keystore, clock)
            return False
        if not settings.offline_root:
            await _make_authorities(settings, store, keystore, trust_domain, http_url, clock)
        await _make_admin_token(settings, store, clock)
        _make_log_key(keystore)
        private_directory(log_directory(settings))
        facts = [set_meta("instance", str(secrets.randbelow(128))), set_meta("log_origin", f"{trust_domain}/log")]
        await store.ledger.commit(Write([], [Change(statement) for statement in facts]))
        return True
    finally:
        await store.close()


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


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads (0600), whole or not at all."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _make_log_key(keystore: KeyStore) -> None:
    try:
        keystore.load(LOG_KEY)
    except HandclaspError:
        keystore.generate(LOG_KEY, "ed25519")
