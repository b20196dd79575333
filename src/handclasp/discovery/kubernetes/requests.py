"""What was signed through the API: CertificateSigningRequests and PodCertificateRequests.

The API deletes them after an hour, and after a quarter of one: an object that is no longer there says nothing about its certificate. So the
location is not the object but its issuer, who asked and for whom, it holds the newest certificate of these, and it is gone when nothing
was heard of it for longer than such a certificate can live.
"""

from __future__ import annotations

from collections.abc import Iterator

from handclasp.discovery.kubernetes.around import Around
from handclasp.discovery.kubernetes.content import as_chain, from_base64
from handclasp.discovery.kubernetes.shapes import Metadata, PodCertificateRequest, SigningRequest
from handclasp.pki.reading import read_certificate
from handclasp.wire.observations import Observed


def signing_request(one: SigningRequest, around: Around) -> Iterator[Observed]:
    """Observe what a CSR came to, when a certificate was issued for it."""
    encoded = one.status.certificate if one.status is not None else None
    found = as_chain(from_base64(encoded.encode()) or b"", "listed") if encoded else []
    if found:
        who = Metadata(name=f"{one.spec.signer_name}/{one.spec.username}"[:1000], labels=one.metadata.labels)
        reading = read_certificate(found[0].der or b"")
        yield around.observed(
            "signed",
            who,
            (reading.subject or reading.identity)[:1000],  # one who asks may ask for many
            certificates=found,
            kind="ca",
            details={"signer": one.spec.signer_name, "asked_by": one.spec.username, "usages": one.spec.usages or []},
        )


def pod_certificate(one: PodCertificateRequest, around: Around) -> Iterator[Observed]:
    """Observe what a pod was given."""
    chain = one.status.certificate_chain if one.status is not None else None
    found = as_chain(chain.encode(), "listed") if chain else []
    if found and one.status is not None:
        spec = one.spec
        who = Metadata(
            name=f"{spec.signer_name}/{spec.service_account_name}/{spec.pod_name}"[:1000],
            namespace=one.metadata.namespace,
            owner_references=one.metadata.owner_references,
        )
        yield around.observed(
            "podcertificate",
            who,
            certificates=found,
            kind="ca",
            details={"signer": spec.signer_name, "pod": spec.pod_name, "node": spec.node_name, "refresh_at": one.status.begin_refresh_at},
            facts={"service_account": spec.service_account_name},
        )
