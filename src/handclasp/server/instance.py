"""One process's instance of an installation: its database, its keys and every room over them, opened and closed together."""

from __future__ import annotations

import os
from dataclasses import dataclass

from handclasp.api.services import Services
from handclasp.authority.authorities import Authorities
from handclasp.authority.keystore import KeyStore
from handclasp.authority.passphrase import find_passphrase
from handclasp.clock import Clock, system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.notes import NoteSigner, VerifierKey
from handclasp.server.fetch import Fetcher
from handclasp.server.health import Health, Readiness
from handclasp.server.rooms import Ground, open_log, open_services
from handclasp.server.settings import Settings
from handclasp.store.database import Store


@dataclass(slots=True)
class Instance:
    """Everything one process has open."""

    settings: Settings
    store: Store
    keystore: KeyStore
    authorities: Authorities
    services: Services
    log_signer: NoteSigner
    witnesses: tuple[tuple[VerifierKey, str], ...]
    fetcher: Fetcher
    clock: Clock
    health: Health

    async def close(self) -> None:
        """Commit what is waiting and let go of everything."""
        await self.services.rotations.finish_telling()
        await self.services.reported.close()
        await self.services.contacts.close()
        await self.services.clusters.close()
        await self.fetcher.close()
        await self.store.close()


def open_keystore(settings: Settings, environ: dict[str, str] | None = None) -> KeyStore:
    """Return the installation's keys. Raises ``bad_setting`` when there is no passphrase for them."""
    passphrase = find_passphrase(settings.data, settings.passphrase_file, os.environ if environ is None else environ)
    return KeyStore(settings.data / "keys", passphrase, module=settings.pkcs11_module)


async def open_instance(settings: Settings, *, worker: int = 0, clock: Clock = system_clock, migrate: bool = True) -> Instance:
    """Open an installation that was initialised before. Raises ``bad_setting`` when it was not, and what the rooms raise."""
    keystore = open_keystore(settings)
    store = await Store.open(settings.database_url, clock, window=settings.commit_window, migrate=migrate)
    try:
        return await _open(settings, store, keystore, clock, worker)
    except BaseException:  # also when it is cancelled: no connection stays open behind what is raised on
        await store.close()
        raise


async def _open(settings: Settings, store: Store, keystore: KeyStore, clock: Clock, worker: int) -> Instance:
    health = Health()
    store.ledger.observe = health.committed
    origin = await store.meta("log_origin")
    if origin is None:
        raise HandclaspError(Kind.BAD_SETTING, f"nothing was initialised in {settings.data}", hint="run handclasp init, or handclasp up")
    authorities = Authorities(store, keystore, clock)
    await authorities.load()
    number = (int(await store.meta("instance") or "0") + worker) % 128
    fetcher = Fetcher(insecure=settings.oidc_allow_http)
    ground = Ground(settings, store, keystore, authorities, fetcher, clock)
    log = open_log(ground, origin)
    services = open_services(ground, log, Readiness(store, authorities, health, settings.data), number)
    return Instance(settings, store, keystore, authorities, services, log.signer, log.witnesses, fetcher, clock, health)
