"""Istio's CA clients, as far as a CA sees them: what pilot-agent and ztunnel send, and everything that they check in the answer."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from handclasp.pki import chains
from handclasp.proto.istio_pb2 import IstioCertificateRequest, IstioCertificateResponse

PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

RETRIED = frozenset(
    {Status.CANCELLED, Status.DEADLINE_EXCEEDED, Status.RESOURCE_EXHAUSTED, Status.ABORTED, Status.INTERNAL, Status.UNAVAILABLE}
)
"""What pilot-agent sends again; everything else is final until its next round."""

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_RSA = rsa.generate_private_key(65537, 2048)


def uri(identity: str) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), True


def request(key: Key, *extensions: tuple[x509.ExtensionType, bool], subject: x509.Name | None = None) -> str:
    """Return a CSR in PEM with any content."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def ztunnel_csr(identity: str, key: Key | None = None) -> tuple[Key, str]:
    """P-256, no subject, the SPIFFE ID."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return key, request(key, uri(identity))


def pilot_csr(identity: str, key: Key | None = None) -> tuple[Key, str]:
    """RSA-2048, a subject that is one empty organisation, the SPIFFE ID as a critical subjectAltName."""
    key = key or _new_rsa()
    empty = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "", _ASN1Type.PrintableString, _validate=False)])
    return key, request(key, uri(identity), subject=empty)


def _new_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


class MeshClient:
    """One connection to a CA."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.method = UnaryUnaryMethod(channel, PATH, IstioCertificateRequest, IstioCertificateResponse)

    async def create(
        self, csr: str, token: str | None = None, *, cluster: str | None = "Kubernetes", seconds: int = 86400,
        metadata: Mapping[str, Any] | None = None, impersonate: str = "", signer: str = "", timeout: float = 30,
    ) -> list[str]:  # fmt: skip
        """Ask for a certificate the way both clients do, and return the chain."""
        message = IstioCertificateRequest(csr=csr, validity_duration=seconds)
        message.metadata["CertSigner"] = signer  # always sent
        if impersonate:
            message.metadata["ImpersonatedIdentity"] = impersonate
        sent: dict[str, Any] = dict(metadata or {})
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        if cluster is not None:
            sent["clusterid"] = cluster
        return list((await self.method(message, timeout=timeout, metadata=sent)).cert_chain)

    async def refused(self, status: Status, *args: Any, says: str = "", **more: Any) -> GRPCError:
        """Demand a refusal with this status."""
        with pytest.raises(GRPCError) as caught:
            await self.create(*args, **more)
        assert caught.value.status is status, caught.value
        assert says in (caught.value.message or ""), caught.value
        return caught.value


@asynccontextmanager
async def connected(
    address: str, ca_file: str, *, cert_file: Path | None = None, key_file: Path | None = None
) -> AsyncIterator[MeshClient]:
    """Connect as both clients do: TLS by one root from a file, ALPN h2, with a client certificate or without."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    channel = Channel(host, int(port), ssl=context)
    try:
        yield MeshClient(channel)
    finally:
        if channel._protocol is not None and not channel._protocol.connection.is_closing():
            channel._protocol.connection._transport.abort()  # close() would go on after the event loop has ended
        channel.close()
        await asyncio.sleep(0.01)


def check_as_pilot_agent(chain: Sequence[str], key: Key) -> x509.Certificate:
    """Assert what pilot-agent asserts of an answer, and return the leaf."""
    assert len(chain) >= 2, "invalid empty CertChain"
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    assert leaf.not_valid_after_utc > datetime.datetime.now(datetime.UTC)
    raw = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    assert leaf.public_key().public_bytes(*raw) == key.public_key().public_bytes(*raw)
    everything = x509.load_pem_x509_certificates("".join(chain).encode())
    assert everything[0] == leaf
    roots = x509.load_pem_x509_certificates(chain[-1].encode())  # becomes ROOTCA
    assert all(root.issuer == root.subject for root in roots)
    return leaf


def check_as_ztunnel(chain: Sequence[str], key: Key, identity: str) -> x509.Certificate:
    """Assert what ztunnel asserts of an answer, and return the leaf."""
    leaf = check_as_pilot_agent(chain, key)
    for element in chain[:-1]:
        assert element.count("BEGIN CERTIFICATE") == 1  # of the others only the first would be read
        assert element.endswith("-----END CERTIFICATE-----\n")
    assert chain[-1].count("BEGIN CERTIFICATE") >= 1, "InvalidRootCert"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [identity], "SanError"
    assert len(list(names.value)) == 1
    assert names.critical
    assert not list(leaf.subject)
    parts = [chains.split_pem(element) for element in chain]
    now = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    for purpose in ("client_auth", "server_auth"):
        chains.verify_chain(parts[0][0], [one[0] for one in parts[1:-1]], parts[-1], now, purpose=purpose)
    return leaf
