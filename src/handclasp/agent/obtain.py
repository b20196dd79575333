"""How an identity comes to its next certificate: a new key, a request, the server's answer, and that made durable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

from handclasp import wire
from handclasp.agent.config import Managed
from handclasp.agent.state import IdentityStore, Kept, Obtained
from handclasp.client import renewal
from handclasp.client.api import ApiClient
from handclasp.client.csr import new_request
from handclasp.client.material import Credential, Material
from handclasp.clock import from_datetime, parse_rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("agent.keyed", "agent.answered")

_KEEP = 3
_REISSUE = frozenset({Kind.SUPERSEDED, Kind.NOT_FOUND})
"""Refusals of a renewal that an issuance gets around: an answer was lost on its way, or the server was restored from before it."""

_REENROL = _REISSUE | {Kind.NOT_AUTHENTICATED, Kind.NOT_ALLOWED, Kind.NAME_NOT_ALLOWED}
"""The same for the agent's own, where evidence makes it anew: also when the server does not know it any more, or its rule was renamed."""

Enrol: TypeAlias = Callable[[str], wire.Issued]
"""Obtains the agent's own certificate for a CSR (PEM), by the agent's evidence."""


def issue(client: ApiClient, managed: Managed, enrol: Enrol | None = None) -> tuple[bytes, wire.Issued]:
    """Obtain a certificate on the agent's own credential; return the new key (PEM) and the answer. Raises what the client raises.

    With ``enrol`` it is the agent's own, and obtained by its evidence.
    """
    key, csr = _request(managed)
    issued = enrol(csr) if enrol is not None else _issued(client, managed, csr)
    fault("agent.answered")
    return key, issued


def renew(
    client: ApiClient, managed: Managed, held: Obtained, credential: Credential, *, own: bool, enrol: Enrol | None = None
) -> tuple[bytes, wire.Issued, str]:
    """Renew as the holder of ``credential``; return the new key, the answer, and the digest of what the certificate is for.

    A renewal that is refused because it is not the newest of its line becomes an issuance; that of the agent's ``own``, which nothing but
    an enrolment can get around, becomes one where it can ``enrol`` by itself. Raises what the client raises.
    """
    key, csr = _request(managed)
    wanted = held.wanted
    try:
        with client.with_credential(credential) as holder:
            issued = holder.renew(held.sha256, wire.RenewRequest(csr=csr, ttl=managed.ttl))
    except HandclaspError as error:
        if error.kind not in (_REENROL if own else _REISSUE) or (own and enrol is None):
            raise
        issued, wanted = enrol(csr) if own and enrol is not None else _issued(client, managed, csr), managed.digest
    fault("agent.answered")
    return key, issued, wanted


def _request(managed: Managed) -> tuple[bytes, str]:
    made = new_request(managed.key_type, identity=managed.identity, dns=managed.dns, ip=managed.ip)
    fault("agent.keyed")
    return made


def _issued(client: ApiClient, managed: Managed, csr: str) -> wire.Issued:
    names = {"identity": managed.identity, "dns": list(managed.dns), "ip": list(managed.ip)}
    return client.issue(wire.IssueRequest(csr=csr, **names, profile=managed.profile, ttl=managed.ttl))  # type: ignore[arg-type]


def check_answer(managed: Managed, issued: wire.Issued) -> None:
    """Raise ``bad_certificate`` for an answer with other names than were asked for, or with times that are not its certificate's."""
    from cryptography import x509

    try:
        leaf = x509.load_pem_x509_certificate(issued.certificate.encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"the server's answer holds no certificate of ours: {error}") from error
    there = {str(name.value) for name in names}
    missing = {name for name in (managed.identity, *managed.dns, *managed.ip) if name} - there
    if missing:
        raise HandclaspError(Kind.BAD_CERTIFICATE, f"the server's answer is a certificate without {', '.join(sorted(missing))}")
    after, before, ends = (parse_rfc3339(text) for text in (issued.renew_after, issued.renew_before, issued.not_after))
    if abs(ends - from_datetime(leaf.not_valid_after_utc)) > 1000 or not after <= before <= ends:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the server's answer has times that its certificate does not have")


def keep(store: IdentityStore, key: bytes, issued: wire.Issued, wanted: str, now: int, random: Callable[[], float]) -> Obtained:
    """Make an answer durable as the generation that counts, with its renewal time drawn, and return its facts.

    Raises ``bad_key`` or ``bad_certificate`` for an answer that cannot be used, ``OSError`` when it cannot be written.
    """
    credential = Credential((issued.certificate.rstrip() + "\n" + issued.chain).encode(), key)
    Material(credential, issued.bundle.encode()).check()
    if hashlib.sha256(credential.leaf).hexdigest() != issued.sha256:
        raise HandclaspError(Kind.BAD_CERTIFICATE, "the server's answer names another certificate than it contains")
    after, before, not_after = (parse_rfc3339(text) for text in (issued.renew_after, issued.renew_before, issued.not_after))
    facts = Obtained(
        sha256=issued.sha256,
        identity=issued.identity,
        serial=issued.serial,
        authority=issued.authority,
        not_after=not_after,
        renew_after=after,
        renew_before=before,
        renew_at=renewal.draw_renewal(after, before, not_after, now, random),
        obtained_at=now,
        wanted=wanted,
    )
    store.keep(facts, Kept(facts, key, issued.certificate.encode(), issued.chain.encode(), issued.bundle.encode()), _KEEP)
    return facts
