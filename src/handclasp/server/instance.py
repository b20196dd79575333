"""One process's instance of an installation: every room below, opened from the settings and put together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Insert, insert

from handclasp.access.clusters import Clusters
from handclasp.access.evidence.challenge import Challenges
from handclasp.access.evidence.verifier import EvidenceVerifier
from handclasp.access.limits import Limiter
from handclasp.access.oidc import OidcVerifier
from handclasp.access.tokens import Tokens
from handclasp.api.contacts import Contacts
from handclasp.api.services import Services
from handclasp.authority.authorities import Authorities
from handclasp.authority.crls import CrlPublisher
from handclasp.authority.jwtkeys import JwtKeys
from handclasp.authority.keystore import KeyStore
from handclasp.authority.passphrase import find_passphrase
from handclasp.clock import Clock, system_clock
from handclasp.discovery.filescans import FileScans
from handclasp.discovery.reported import ReportedTargets
from handclasp.discovery.room import open_discovery
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.confirm import Confirmer
from handclasp.inventory.follow import Follower
from handclasp.inventory.reading import Reading
from handclasp.inventory.reconcile import Reconciler
from handclasp.inventory.record import Recorder
from handclasp.inventory.states import Graces
from handclasp.issuance.issue import Issuance
from handclasp.issuance.jwt import JwtIssuance
from handclasp.issuance.progress import Progresses
from handclasp.issuance.revoke import Revoker
from handclasp.issuance.rotate import Rotations
from handclasp.issuance.rulebook import Rulebook
from handclasp.issuance.suggestions import Suggestions
from handclasp.log.cosign import Cosignatures
from handclasp.log.notes import NoteSigner, VerifierKey, parse_vkey
from handclasp.log.tiles import TileStorage
from handclasp.ownership.room import open_ownership
from handclasp.server.endpoints import EndpointFetcher
from handclasp.server.fetch import Fetcher
from handclasp.server.fleet import AgentFigures
from handclasp.server.health import Health, Readiness
from handclasp.server.kube import ApiConnection
from handclasp.server.settings import Settings
from handclasp.store import tables
from handclasp.store.database import Store
from handclasp.trust.bundles import Bundles
from handclasp.trust.federation import Federation
from handclasp.wire.observations import Recorded, Sightings

LOG_KEY = "file:log.key"
BURST_SECONDS = 2
"""How much of a second's allowance may come at once, in seconds."""


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
        await self.services.clusters.close()
        await self.fetcher.close()
        await self.store.close()


def open_keystore(settings: Settings, environ: dict[str, str] | None = None) -> KeyStore:
    """Return the installation's keys. Raises ``bad_setting`` when there is no passphrase for them."""
    passphrase = find_passphrase(settings.data, settings.passphrase_file, os.environ if environ is None else environ)
    return KeyStore(settings.data / "keys", passphrase, module=settings.pkcs11_module)


def log_directory(settings: Settings) -> Path:
    """Return where the log's files are."""
    return settings.data / "log"


async def open_instance(settings: Settings, *, worker: int = 0, clock: Clock = system_clock, migrate: bool = True) -> Instance:
    """Open an installation that was initialised before. Raises ``bad_setting`` when it was not, and what the rooms raise."""
    keystore = open_keystore(settings)
    store = await Store.open(settings.database_url, clock, window=settings.commit_window, migrate=migrate)
    try:
        return await _assemble(settings, store, keystore, clock, worker)
    except BaseException:
        await store.close()
        raise


async def _assemble(settings: Settings, store: Store, keystore: KeyStore, clock: Clock, worker: int) -> Instance:
    health = Health()
    store.ledger.observe = health.committed
    origin = await store.meta("log_origin")
    if origin is None:
        raise HandclaspError(Kind.BAD_SETTING, f"nothing was initialised in {settings.data}", hint="run handclasp init, or handclasp up")
    authorities = Authorities(store, keystore, clock)
    await authorities.load()
    rulebook, tokens = Rulebook(store, clock), Tokens(store, clock)
    instance_byte = (int(await store.meta("instance") or "0") + worker) % 128
    issuance = Issuance(store, authorities, rulebook, tokens, clock, instance=instance_byte, renewal_grace=settings.renewal_grace)
    signer = NoteSigner(origin, _log_key(keystore))
    storage = TileStorage(log_directory(settings))
    witnesses = tuple(_parse_witness(text) for text in settings.witness)
    fetcher = Fetcher(insecure=settings.oidc_allow_http)
    oidc = OidcVerifier((), fetcher.get, clock, insecure=settings.oidc_allow_http)
    tokens_of_clusters = settings.cluster_tokens or settings.data / "clusters"
    clusters = Clusters(fetcher.get, lambda review: ApiConnection(review, tokens_of_clusters), clock, insecure=settings.oidc_allow_http)
    hint, local = settings.bundle_refresh_hint, settings.federation_allow_local
    jwt_keys = JwtKeys(store, keystore, clock, refresh_hint=hint, period=settings.jwt_key_period)
    graces = Graces(*(round(1000 * seconds) for seconds in (settings.unseen_after, settings.old_after, settings.retention)))
    reconciler = Reconciler(store, clock, graces)
    recorder = Recorder(store, authorities, clock, reconciler)

    async def record(source_id: int, sightings: Sightings, scan_id: str) -> Recorded:
        return await recorder.record(source_id, sightings, scan_id=scan_id or None)

    services = Services(
        store=store,
        authorities=authorities,
        crls=CrlPublisher(store, authorities, clock, validity=settings.crl_lifetime),
        rulebook=rulebook,
        tokens=tokens,
        issuance=issuance,
        revoker=Revoker(store, rulebook, clock),
        jwt_keys=jwt_keys,
        jwt=JwtIssuance(store, authorities, jwt_keys, rulebook, clock),
        bundles=Bundles(store, authorities, jwt_keys, refresh_hint=hint),
        federation=Federation(
            store, authorities, clock, EndpointFetcher(fetcher, ca_file=settings.federation_ca, local=local), local=local
        ),
        suggestions=(suggestions := Suggestions(store)),
        rotations=Rotations(store, authorities, suggestions, clock),
        progress=Progresses(store, clock),
        contacts=Contacts(store),
        discovery=open_discovery(store, clock, record, recorder.forget_source),
        file_scans=FileScans(store, clock, record, Confirmer(store)),
        reported=ReportedTargets(store, clock, record),
        ownership=open_ownership(store, clock, confirm_every=settings.confirm_every),
        reading=Reading(store, clock, AgentFigures(store, clock)),
        clock=clock,
        tiles=storage,
        cosignatures=Cosignatures(storage, signer.vkey, [vkey for vkey, _ in witnesses], clock),
        log_signer=signer,
        oidc=oidc,
        clusters=clusters,
        evidence=EvidenceVerifier(oidc, clusters, Challenges(_log_key(keystore).private_bytes_raw(), clock), clock),
        principal_limit=Limiter(settings.rate_principal, max(1, round(settings.rate_principal * BURST_SECONDS)), clock),
        refused_limit=Limiter(settings.rate_refused, max(1, round(settings.rate_refused * BURST_SECONDS)), clock),
        recorder=recorder,
        reconciler=reconciler,
        follower=Follower(store, clock, reconciler),
        problems=(readiness := Readiness(store, authorities, health, settings.data)),
        warnings=readiness.warnings,
        max_body=int(settings.max_body),
        request_timeout=settings.request_timeout,
    )
    return Instance(settings, store, keystore, authorities, services, signer, witnesses, fetcher, clock, health)


def set_meta(name: str, value: str) -> Insert:
    """Return the statement that records one of the installation's facts for the first time."""
    return insert(tables.meta).values(name=name, value=value)


def _log_key(keystore: KeyStore) -> Ed25519PrivateKey:
    key = keystore.load(LOG_KEY)
    if not isinstance(key, Ed25519PrivateKey):
        raise HandclaspError(Kind.BAD_KEY, "the log's key must be Ed25519")
    return key


def _parse_witness(text: str) -> tuple[VerifierKey, str]:
    vkey, _, url = text.strip().partition(" ")
    try:
        return parse_vkey(vkey), url.strip()
    except HandclaspError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"witness {text!r}: {error.detail}", hint="write: VKEY URL") from error
