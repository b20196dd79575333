"""The rooms of one process, opened from the settings and put together: what handlers, doors and jobs may call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
from handclasp.clock import Clock
from handclasp.discovery.filescans import FileScans
from handclasp.discovery.reported import ReportedTargets
from handclasp.discovery.room import open_discovery
from handclasp.errors import HandclaspError, Kind
from handclasp.inventory.quota import Quota, Quotas
from handclasp.inventory.room import InventoryRoom, open_inventory
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
from handclasp.server.health import Readiness
from handclasp.server.kube import ApiConnection
from handclasp.server.settings import Settings
from handclasp.store.database import Store
from handclasp.trust.bundles import Bundles
from handclasp.trust.federation import Federation

LOG_KEY = "file:log.key"
BURST_SECONDS = 2
"""How much of a second's allowance may come at once, in seconds."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every room stands on."""

    settings: Settings
    store: Store
    keystore: KeyStore
    authorities: Authorities
    fetcher: Fetcher
    clock: Clock


@dataclass(frozen=True, slots=True)
class LogRoom:
    """The log's files, who signs its checkpoints, and who else is asked to."""

    signer: NoteSigner
    tiles: TileStorage
    cosignatures: Cosignatures
    witnesses: tuple[tuple[VerifierKey, str], ...]
    """Each with its URL."""


@dataclass(frozen=True, slots=True)
class _Issuing:
    rulebook: Rulebook
    tokens: Tokens
    issuance: Issuance
    jwt_keys: JwtKeys
    suggestions: Suggestions


@dataclass(frozen=True, slots=True)
class _Callers:
    oidc: OidcVerifier
    clusters: Clusters
    evidence: EvidenceVerifier


def log_directory(settings: Settings) -> Path:
    """Return where the log's files are."""
    return settings.data / "log"


def open_log(ground: Ground, origin: str) -> LogRoom:
    """Return the log of this origin. Raises ``bad_key`` for a key that cannot sign it, ``bad_setting`` for a witness that is none."""
    signer = NoteSigner(origin, _log_key(ground.keystore))
    tiles = TileStorage(log_directory(ground.settings))
    witnesses = tuple(_parse_witness(text) for text in ground.settings.witness)
    return LogRoom(signer, tiles, Cosignatures(tiles, signer.vkey, [vkey for vkey, _ in witnesses], ground.clock), witnesses)


def open_services(ground: Ground, log: LogRoom, readiness: Readiness, instance: int) -> Services:
    """Return everything over its ground. ``instance`` (0 to 127) is in the serial numbers of what this process issues."""
    settings, store, authorities, clock = ground.settings, ground.store, ground.authorities, ground.clock
    issuing, callers, inventory = _open_issuing(ground, instance), _open_callers(ground), _open_inventory(ground)
    return Services(
        store=store,
        authorities=authorities,
        crls=CrlPublisher(store, authorities, clock, validity=settings.crl_lifetime),
        rulebook=issuing.rulebook,
        tokens=issuing.tokens,
        issuance=issuing.issuance,
        revoker=Revoker(store, issuing.rulebook, clock),
        jwt_keys=issuing.jwt_keys,
        jwt=JwtIssuance(store, authorities, issuing.jwt_keys, issuing.rulebook, clock),
        bundles=Bundles(store, authorities, issuing.jwt_keys, refresh_hint=settings.bundle_refresh_hint),
        federation=_open_federation(ground),
        suggestions=issuing.suggestions,
        rotations=Rotations(store, authorities, issuing.suggestions, clock),
        progress=Progresses(store, clock),
        contacts=Contacts(store),
        discovery=open_discovery(store, clock, inventory.record, inventory.recorder.forget_source),
        file_scans=FileScans(store, clock, inventory.record_of_agents, inventory.confirmer),
        reported=ReportedTargets(store, clock, inventory.record_of_agents),
        ownership=open_ownership(store, clock, confirm_every=settings.confirm_every),
        inventory=inventory,
        clock=clock,
        tiles=log.tiles,
        cosignatures=log.cosignatures,
        log_signer=log.signer,
        oidc=callers.oidc,
        clusters=callers.clusters,
        evidence=callers.evidence,
        principal_limit=_limiter(settings.rate_principal, clock),
        refused_limit=_limiter(settings.rate_refused, clock),
        problems=readiness,
        warnings=readiness.warnings,
        max_body=int(settings.max_body),
        request_timeout=settings.request_timeout,
    )


def _open_issuing(ground: Ground, instance: int) -> _Issuing:
    settings, store, clock = ground.settings, ground.store, ground.clock
    rulebook, tokens = Rulebook(store, clock), Tokens(store, clock)
    grace = settings.renewal_grace
    issuance = Issuance(store, ground.authorities, rulebook, tokens, clock, instance=instance, renewal_grace=grace)
    jwt_keys = JwtKeys(store, ground.keystore, clock, refresh_hint=settings.bundle_refresh_hint, period=settings.jwt_key_period)
    return _Issuing(rulebook, tokens, issuance, jwt_keys, Suggestions(store))


def _open_callers(ground: Ground) -> _Callers:
    settings, fetcher, clock = ground.settings, ground.fetcher, ground.clock
    oidc = OidcVerifier((), fetcher.get, clock, insecure=settings.oidc_allow_http)
    tokens = settings.cluster_tokens or settings.data / "clusters"
    clusters = Clusters(fetcher.get, lambda review: ApiConnection(review, tokens), clock, insecure=settings.oidc_allow_http)
    challenges = Challenges(_log_key(ground.keystore).private_bytes_raw(), clock)
    return _Callers(oidc, clusters, EvidenceVerifier(oidc, clusters, challenges, clock))


def _open_inventory(ground: Ground) -> InventoryRoom:
    settings, store, clock = ground.settings, ground.store, ground.clock
    graces = Graces(*(round(1000 * seconds) for seconds in (settings.unseen_after, settings.old_after, settings.retention)))
    of_agents = Quota(int(settings.agent_locations), int(settings.agent_certificates))
    of_sources = Quota(int(settings.source_locations), int(settings.source_certificates))
    quotas = Quotas(store, clock, of_agents, of_sources)
    return open_inventory(store, ground.authorities, clock, graces=graces, agents=AgentFigures(store, clock), quotas=quotas)


def _open_federation(ground: Ground) -> Federation:
    local = ground.settings.federation_allow_local
    endpoints = EndpointFetcher(ground.fetcher, ca_file=ground.settings.federation_ca, local=local)
    return Federation(ground.store, ground.authorities, ground.clock, endpoints, local=local)


def _limiter(rate: float, clock: Clock) -> Limiter:
    return Limiter(rate, max(1, round(rate * BURST_SECONDS)), clock)


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
