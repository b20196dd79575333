"""What handlers may call: the rooms below, put together by the server and handed in as one object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from handclasp.access.clusters import Clusters
from handclasp.access.evidence.verifier import EvidenceVerifier
from handclasp.access.limits import Limiter
from handclasp.access.oidc import OidcVerifier
from handclasp.access.tokens import Tokens
from handclasp.api.contacts import Contacts
from handclasp.authority.authorities import Authorities
from handclasp.authority.crls import CrlPublisher
from handclasp.authority.jwtkeys import JwtKeys
from handclasp.clock import Clock
from handclasp.discovery.filescans import FileScans
from handclasp.discovery.reported import ReportedTargets
from handclasp.discovery.room import DiscoveryRoom
from handclasp.inventory.room import InventoryRoom
from handclasp.issuance.issue import Issuance
from handclasp.issuance.jwt import JwtIssuance
from handclasp.issuance.progress import Progresses
from handclasp.issuance.revoke import Revoker
from handclasp.issuance.rotate import Rotations
from handclasp.issuance.rulebook import Rulebook
from handclasp.issuance.suggestions import Suggestions
from handclasp.log.cosign import Cosignatures
from handclasp.log.notes import NoteSigner
from handclasp.log.tiles import TileStorage
from handclasp.ownership.room import OwnershipRoom
from handclasp.store.database import Store
from handclasp.trust.bundles import Bundles
from handclasp.trust.federation import Federation


@dataclass(slots=True)
class Services:
    """One installation, as one process sees it."""

    store: Store
    authorities: Authorities
    crls: CrlPublisher
    rulebook: Rulebook
    tokens: Tokens
    issuance: Issuance
    revoker: Revoker
    jwt_keys: JwtKeys
    jwt: JwtIssuance
    bundles: Bundles
    federation: Federation
    suggestions: Suggestions
    rotations: Rotations
    progress: Progresses
    contacts: Contacts
    discovery: DiscoveryRoom
    file_scans: FileScans
    reported: ReportedTargets
    ownership: OwnershipRoom
    inventory: InventoryRoom
    clock: Clock
    tiles: TileStorage
    cosignatures: Cosignatures
    log_signer: NoteSigner
    """Signs checkpoints; here only the log's own earlier ones again, for proofs against a checkpoint that somebody kept."""
    oidc: OidcVerifier
    clusters: Clusters
    """Of the policy that was last given to its ``use``: callers do that first, with the policy in force."""
    evidence: EvidenceVerifier
    principal_limit: Limiter
    refused_limit: Limiter
    problems: Callable[[], Awaitable[list[str]]]
    """Says what keeps this process from being ready, one line each."""
    warnings: Callable[[], Awaitable[list[str]]]
    """Says what is not as it should be, and keeps nobody from work."""
    max_body: int = 1_048_576
    request_timeout: float = 30.0
