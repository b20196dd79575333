"""What handlers may call: the rooms below, put together by the server and handed in as one object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from handclasp.access.limits import Limiter
from handclasp.access.oidc import OidcVerifier
from handclasp.access.tokens import Tokens
from handclasp.authority.authorities import Authorities
from handclasp.authority.crls import CrlPublisher
from handclasp.clock import Clock
from handclasp.issuance.issue import Issuance
from handclasp.issuance.revoke import Revoker
from handclasp.issuance.rulebook import Rulebook
from handclasp.log.cosign import Cosignatures
from handclasp.log.notes import NoteSigner
from handclasp.log.tiles import TileStorage
from handclasp.store.database import Store


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
    clock: Clock
    tiles: TileStorage
    cosignatures: Cosignatures
    log_signer: NoteSigner
    """Signs checkpoints; here only the log's own earlier ones again, for proofs against a checkpoint that somebody kept."""
    oidc: OidcVerifier
    principal_limit: Limiter
    refused_limit: Limiter
    problems: Callable[[], Awaitable[list[str]]]
    """Says what keeps this process from being ready, one line each."""
    max_body: int = 1_048_576
    request_timeout: float = 30.0
