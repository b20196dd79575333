"""Evidence of machines that never were: device certificates, signed instance documents, a metadata service, service-account tokens."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handclasp import wire
from handclasp.clock import rfc3339, to_datetime
from handclasp.pki import der, keys
from handclasp.pki.possession import enrolment_text

ACCOUNT, REGION, INSTANCE = "123456789012", "eu-central-1", "i-0123456789abcdef0"
DAY = datetime.timedelta(days=1)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@cache
def _key(key_type: str, number: int = 0) -> keys.PrivateKey:
    return keys.generate(key_type)


class DeviceAuthority:
    """An authority that certifies devices, at a given moment."""

    def __init__(self, now: int, name: str = "Devices") -> None:
        self.now, self.key = to_datetime(now), keys.generate("p256")
        self.certificate = self._make(self.key.public_key(), name, ca=True)

    @property
    def pem(self) -> str:
        return pem(self.certificate)

    def device(
        self,
        name: str = "rack-1",
        *,
        dns: list[str] | None = None,
        key_type: str = "p256",
        subject: list[tuple[x509.ObjectIdentifier, str]] | None = None,
        begins: datetime.timedelta = -DAY,
        lasts: datetime.timedelta = 2 * DAY,
        ca: bool = False,
        usage: bool = True,
        purpose: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> tuple[keys.PrivateKey, x509.Certificate]:
        """Return a device's key and certificate."""
        key = keys.generate(key_type)
        certificate = self._make(
            key.public_key(), name, ca=ca, dns=dns, subject=subject, begins=begins, lasts=lasts, usage=usage, purpose=purpose
        )
        return key, certificate

    def _make(
        self,
        key: Any,
        name: str,
        *,
        ca: bool,
        dns: list[str] | None = None,
        subject: list[tuple[x509.ObjectIdentifier, str]] | None = None,
        begins: datetime.timedelta = -DAY,
        lasts: datetime.timedelta = 2 * DAY,
        usage: bool = True,
        purpose: x509.ObjectIdentifier | None = None,
    ) -> x509.Certificate:
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        attributes += [x509.NameAttribute(oid, value) for oid, value in subject or []]
        own = x509.Name(attributes)
        bits = dict.fromkeys(
            ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only", "key_encipherment"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(own if ca and not hasattr(self, "certificate") else self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + begins)
            .not_valid_after(self.now + begins + lasts)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=usage, key_cert_sign=ca, crl_sign=ca, **bits), critical=True)
        )
        if dns:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in dns]), critical=False)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return builder.sign(self.key, hashes.SHA256())  # type: ignore[arg-type]


def signed(key: keys.PrivateKey, chain: str, challenge: str, csr_sha256: bytes) -> wire.Evidence:
    """Return x509 evidence as an agent makes it."""
    signature = base64.b64encode(keys.sign(key, enrolment_text(challenge, csr_sha256))).decode()
    return wire.Evidence(method="x509", chain=chain, challenge=challenge, signature=signature)


class Cloud:
    """Signs instance identity documents, in each form that the real one has."""

    def __init__(self, now: int, number: int = 0) -> None:
        self.now = now
        self.key = _key("rsa2048", number)
        assert isinstance(self.key, rsa.RSAPrivateKey)
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"Cloud {number}")])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(to_datetime(now) - DAY)
            .not_valid_after(to_datetime(now) + 2 * DAY)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return pem(self.certificate)

    def document(self, **changes: Any) -> bytes:
        """Return a document, laid out as the metadata service lays it out."""
        fields = {
            "accountId": ACCOUNT,
            "architecture": "x86_64",
            "availabilityZone": REGION + "a",
            "imageId": "ami-0123456789abcdef0",
            "instanceId": INSTANCE,
            "instanceType": "t3.micro",
            "pendingTime": rfc3339(self.now - 60_000),
            "privateIp": "10.0.0.7",
            "region": REGION,
            "version": "2017-09-30",
        }
        return json.dumps({key: value for key, value in {**fields, **changes}.items() if value is not None}, indent=2).encode()

    def bare(self, document: bytes) -> bytes:
        assert isinstance(self.key, rsa.RSAPrivateKey)
        return self.key.sign(document, padding.PKCS1v15(), hashes.SHA256())

    def message(self, document: bytes, *, detached: bool = False, attributes: bool = True) -> bytes:
        """Return a signed message (CMS), DER, made by OpenSSL's rules."""
        options = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoCapabilities if attributes else pkcs7.PKCS7Options.NoAttributes]
        options += [pkcs7.PKCS7Options.DetachedSignature] if detached else []
        assert isinstance(self.key, rsa.RSAPrivateKey)
        builder = pkcs7.PKCS7SignatureBuilder().set_data(document).add_signer(self.certificate, self.key, hashes.SHA256())
        return builder.sign(Encoding.DER, options)

    def evidence(self, document: bytes, signature: bytes, *, alone: bool = False) -> wire.Evidence:
        shown = "" if alone else base64.b64encode(document).decode()
        return wire.Evidence(method="aws", document=shown, signature=base64.b64encode(signature).decode())


def to_ber(data: bytes) -> bytes:
    """Return DER as a Java service writes it: constructed elements without a length, octet strings of the content in two pieces."""
    tag, start, end = der.read(data)
    if not tag & 0x20 or tag == 0x31:  # the attributes stay as they were signed
        content = data[start:end]
        if tag == 0x04 and len(content) > 100 and content[:1] == b"{":
            half = len(content) // 2
            return b"\x24\x80" + der.octet_string(content[:half]) + der.octet_string(content[half:]) + b"\0\0"
        return data
    if tag == 0xA0 and data[start : start + 1] == b"\x30" and b"\x2a\x86\x48\x86\xf7\x0d\x01\x09" in data[start : start + 16]:
        return data
    return bytes((tag, 0x80)) + b"".join(to_ber(part) for part in der.elements(data, start, end)) + b"\0\0"


@contextmanager
def metadata_service(document: bytes, signature: bytes) -> Iterator[str]:
    """Serve a document and its signature by version 2 of the metadata protocol; yields the address."""
    text = base64.encodebytes(signature)

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            fine = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
            self._answer(200 if fine else 400, b"session-token")

        def do_GET(self) -> None:
            found = {"document": document, "rsa2048": text}.get(self.path.removeprefix("/latest/dynamic/instance-identity/"))
            known = self.headers.get("X-aws-ec2-metadata-token") == "session-token"
            self._answer(200 if found and known else 401, found or b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def indented(text: str, spaces: int = 6) -> str:
    """Return text as a YAML block below a key."""
    return "".join(" " * spaces + line + "\n" for line in text.strip().splitlines())


def csr_digest(csr: bytes) -> bytes:
    return hashlib.sha256(csr).digest()
