"""A small server in this process that speaks the endpoints a client and an agent use, over real TLS with real certificates.

It checks what it is sent and keeps ``complaints``: a test that uses it ends with :meth:`FakeServer.assert_content`. It can be told to be
away, to refuse, to lose answers, to revoke, to change its anchors and to pull a renewal forward.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from handclasp import wire
from handclasp.clock import parse_duration, rfc3339, system_clock

DOMAIN = "example.org"
QUESTION = ":renewal-info"


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


class FakeAuthority:
    """A root and an issuing authority."""

    def __init__(self, name: str = "Test") -> None:
        self.root_key, self.key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = self._ca(f"{name} root", self.root_key, None)
        self.issuing = self._ca(f"{name} issuing", self.key, self.root)

    def _ca(self, name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0 if issuer else 1), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
            .sign(self.root_key, hashes.SHA256())
        )

    def issue(
        self,
        public_key: Any,
        *,
        spiffe: str | None = None,
        dns: list[str] | None = None,
        ip: list[str] | None = None,
        seconds: float = 3600,
    ) -> x509.Certificate:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe)] if spiffe else []
        names += [x509.DNSName(name) for name in dns or []] + [x509.IPAddress(ipaddress.ip_address(address)) for address in ip or []]
        now = datetime.datetime.now(datetime.UTC)
        end = datetime.datetime.fromtimestamp(int(now.timestamp() + seconds), datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.issuing.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=60))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def credential(
        self, *, spiffe: str | None = None, dns: list[str] | None = None, ip: list[str] | None = None, seconds: float = 3600
    ) -> tuple[bytes, bytes]:
        """Certificate chain and key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.issue(key.public_key(), spiffe=spiffe, dns=dns, ip=ip, seconds=seconds)
        return (pem(leaf) + pem(self.issuing)).encode(), key_pem(key)


@dataclass
class Record:
    identity: str
    spki: bytes
    not_after: int
    renew_after: int
    renew_before: int
    profile: str
    dns: list[str]
    superseded: bool = False
    revoked: bool = False


@dataclass
class Fault:
    """Answer the next ``count`` requests whose path contains ``path`` with a problem; ``status`` 0 closes the connection without a word."""

    path: str
    count: int = 1
    status: int = 503
    kind: str = "unavailable"
    retry_after: str = ""
    after_work: bool = False


@dataclass
class Seen:
    at: float
    method: str
    path: str
    peer: str
    token: str


@dataclass
class FakeServer:
    """Use as a context manager. ``ttl`` seconds; the window is a part of the lifetime, as the real server's."""

    ttl: float = 3600
    window: tuple[float, float] = (0.5, 0.6)
    authority: FakeAuthority = field(default_factory=FakeAuthority)
    tokens: dict[str, int] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    reports: list[tuple[str, wire.AgentReport]] = field(default_factory=list)
    partners: dict[str, str] = field(default_factory=dict)
    """What is below /v1/bundles/ besides our own, by name."""
    faults: list[Fault] = field(default_factory=list)
    extra_roots: list[x509.Certificate] = field(default_factory=list)
    crl: str = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    away: bool = False
    ahead: int = 0
    """Milliseconds by which this server's clock is ahead of the host's."""

    def __enter__(self) -> FakeServer:
        self._lock = threading.RLock()
        self._keys: set[bytes] = set()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=pem(self.authority.issuing))
        certificate, key = self.authority.credential(dns=["localhost"], ip=["127.0.0.1"])
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + key)
            file.flush()
            context.load_cert_chain(file.name)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True  # head and body go in two writes, and 40 ms would pass in between

            def setup(self) -> None:
                self.request = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
                self.request.settimeout(30)
                super().setup()

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            def finish(self) -> None:
                with suppress(OSError):
                    super().finish()
                self.request.close()

            def do_GET(self) -> None:
                server._handle(self)

            do_POST = do_PUT = do_GET  # noqa: N815

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(server._now() / 1000 if timestamp is None else timestamp)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass

        self._http = Server(("127.0.0.1", 0), Handler)
        self.port = self._http.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # --- for tests ------------------------------------------------------------------------------------------------------------------

    @property
    def bundle(self) -> str:
        return "".join(pem(root) for root in [self.authority.root, *self.extra_roots])

    @property
    def root_fingerprint(self) -> str:
        return f"sha256:{fingerprint(self.authority.root)}"

    def ca_file(self, directory: Path) -> str:
        path = directory / "ca.pem"
        path.write_text(self.bundle)
        return str(path)

    def token(self, uses: int = 1) -> str:
        token = f"hct_{len(self.tokens):016d}_secret"
        self.tokens[token] = uses
        return token

    def newest(self, identity: str) -> str:
        return [sha256 for sha256, record in self.records.items() if record.identity == identity][-1]

    def count(self, part: str, method: str = "") -> int:
        """Requests, but for questions about renewals: those are no business of a test that counts certificates."""
        return sum(part in seen.path and method in ("", seen.method) for seen in self.seen if not seen.path.endswith(QUESTION))

    def questions(self) -> int:
        """How often it was asked about renewals."""
        return sum(seen.path.endswith(QUESTION) for seen in self.seen)

    def assert_content(self) -> None:
        assert self.complaints == []

    # --- the endpoints --------------------------------------------------------------------------------------------------------------

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        peer = hashlib.sha256(der).hexdigest() if (der := handler.request.getpeercert(True)) else ""
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        path = handler.path
        with self._lock:
            if self.away:
                handler.close_connection = True
                return
            self.seen.append(Seen(time.monotonic(), handler.command, path, peer, token))
            fault = next((fault for fault in self.faults if fault.path in path and fault.count > 0), None)
            if fault:
                fault.count -= 1
            if fault is None or fault.after_work:
                status, answer, headers = self._answer(handler.command, path, body, peer, token, handler.headers.get("If-None-Match") or "")
            if fault:
                if not fault.status:
                    handler.close_connection = True
                    return
                status, answer, headers = self._problem(fault.status, fault.kind, "told to refuse")
                if fault.retry_after:
                    headers["Retry-After"] = fault.retry_after
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer)

    def _problem(self, status: int, kind: str, detail: str, hint: str = "") -> tuple[int, bytes, dict[str, str]]:
        problem = wire.Problem(type=f"about:{kind}", title=kind, status=status, kind=kind, detail=detail, hint=hint)
        return status, wire.to_json(problem), {"Content-Type": "application/problem+json"}

    def _json(self, value: Any, status: int = 200, etag: str = "") -> tuple[int, bytes, dict[str, str]]:
        return status, msgspec.json.encode(value), {"Content-Type": "application/json", **({"ETag": etag} if etag else {})}

    def _tagged(self, text: str, tag: str) -> tuple[int, bytes, dict[str, str]]:
        etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'
        return (304, b"", {"ETag": etag}) if tag == etag else (200, text.encode(), {"ETag": etag, "Content-Type": "application/x-pem-file"})

    def _answer(self, method: str, path: str, body: bytes, peer: str, token: str, tag: str) -> tuple[int, bytes, dict[str, str]]:
        try:
            if (method, path) == ("POST", "/v1/certificates"):
                return self._issue(msgspec.json.decode(body, type=wire.IssueRequest), peer, token)
            if method == "POST" and path.endswith(":renew"):
                return self._renew(path.split("/")[-1].removesuffix(":renew"), msgspec.json.decode(body, type=wire.RenewRequest), peer)
            if (method, path) == ("POST", "/v1/certificates:renewal-info"):
                return self._renewal_list(msgspec.json.decode(body, type=wire.RenewalQuery))
            if (method, path) == ("PUT", "/v1/agents/self"):
                if not self._is_agent(peer):
                    return self._problem(401, "not_authenticated", "that is not an agent")
                self.reports.append((peer, msgspec.json.decode(body, type=wire.AgentReport)))
                return self._json(wire.Reported(received_at="2026-01-01T00:00:00Z"))
        except msgspec.DecodeError as error:
            self.complaints.append(f"{method} {path}: {error}")
            return self._problem(400, "bad_request", str(error))
        if method == "GET" and path == "/v1/bundles":
            return self._json({"items": [{"trust_domain": DOMAIN, "pem": self.bundle}]})
        partner = path.removeprefix("/v1/bundles/")
        if method == "GET" and partner in self.partners:
            return self._tagged(self.partners[partner], tag)
        if method == "GET" and path == f"/v1/bundles/{DOMAIN}.pem":
            return self._tagged(self.bundle, tag)
        if method == "GET" and path == f"/v1/crls/{DOMAIN}.pem":
            return self._tagged(self.crl, tag)
        if method == "GET" and path.endswith(":renewal-info"):
            record = self.records.get(sha256 := path.split("/")[-1].removesuffix(":renewal-info"))
            if record is None:
                return self._problem(404, "not_found", "no such certificate")
            state = "revoked" if record.revoked else "superseded" if record.superseded else "valid"
            info = wire.RenewalInfo(
                sha256=sha256, renew_after=rfc3339(record.renew_after), renew_before=rfc3339(record.renew_before), state=state
            )
            text = wire.to_json(info).decode()
            return self._tagged(text, tag)
        return self._problem(404, "not_found", f"there is no {method} {path}", "look at the reference")

    def _renewal_list(self, query: wire.RenewalQuery) -> tuple[int, bytes, dict[str, str]]:
        items = [
            wire.RenewalInfo(
                sha256=sha256,
                renew_after=rfc3339(record.renew_after),
                renew_before=rfc3339(record.renew_before),
                state="revoked" if record.revoked else "superseded" if record.superseded else "valid",
            )
            for sha256 in query.certificates
            if (record := self.records.get(sha256))
        ]
        tag = hashlib.sha256(msgspec.json.encode(items)).hexdigest()[:16]
        return self._json(wire.RenewalList(tag=tag, items=[] if tag == query.tag else items))

    def _now(self) -> int:
        return system_clock() + self.ahead

    def _is_agent(self, peer: str) -> bool:
        record = self.records.get(peer)
        return record is not None and record.profile == "agent" and not record.revoked and record.not_after > self._now()

    def _issue(self, request: wire.IssueRequest, peer: str, token: str) -> tuple[int, bytes, dict[str, str]]:
        if token:
            if self.tokens.get(token, -1) == -1:
                return self._problem(401, "token_unknown", "no such token")
            if self.tokens[token] == 0:
                return self._problem(403, "token_spent", "the token is spent")
            self.tokens[token] -= 1
        elif not self._is_agent(peer):
            return self._problem(401, "not_authenticated", "a token or an agent's certificate is needed")
        return self._certify(request.csr, request.identity, request.dns, request.ip, request.profile or "workload", request.ttl)

    def _renew(self, sha256: str, request: wire.RenewRequest, peer: str) -> tuple[int, bytes, dict[str, str]]:
        record = self.records.get(sha256)
        if peer != sha256:
            self.complaints.append(f"renewal of {sha256[:8]} with {peer[:8] or 'no certificate'}")
            return self._problem(403, "not_allowed", "renew with the certificate itself")
        if record is None:
            return self._problem(404, "not_found", "no such certificate")
        if record.revoked:
            return self._problem(403, "revoked", "the certificate was revoked")
        if record.superseded:
            return self._problem(409, "superseded", "it is not the newest of its line")
        csr = x509.load_pem_x509_csr(request.csr.encode())
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        answer = self._certify(
            request.csr,
            next(iter(san.get_values_for_type(x509.UniformResourceIdentifier)), None),
            san.get_values_for_type(x509.DNSName),
            [str(address) for address in san.get_values_for_type(x509.IPAddress)],
            record.profile,
            request.ttl,
        )
        if answer[0] == 201:
            record.superseded = True
        return answer

    def _certify(
        self, text: str, identity: str | None, dns: list[str], ip: list[str], profile: str, ttl: str | None
    ) -> tuple[int, bytes, dict[str, str]]:
        csr = x509.load_pem_x509_csr(text.encode())
        spki = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if not csr.is_signature_valid:
            self.complaints.append("a CSR without proof of possession")
        if spki in self._keys:
            self.complaints.append("a key was used again")
        self._keys.add(spki)
        seconds = parse_duration(ttl) if ttl else self.ttl
        leaf = self.authority.issue(csr.public_key(), spiffe=identity, dns=dns, ip=ip, seconds=seconds + self.ahead / 1000)
        now, sha256 = self._now(), fingerprint(leaf)
        after, before = (now + int(seconds * 1000 * part) for part in self.window)
        name = identity or f"dns:{dns[0]}"
        not_after = int(leaf.not_valid_after_utc.timestamp() * 1000)
        self.records[sha256] = Record(name, spki, not_after, after, before, profile, dns)
        issued = wire.Issued(
            certificate=pem(leaf),
            chain=pem(self.authority.issuing),
            bundle=self.bundle,
            sha256=sha256,
            serial=f"{leaf.serial_number:x}",
            identity=name,
            not_before=rfc3339(int(leaf.not_valid_before_utc.timestamp() * 1000)),
            not_after=rfc3339(not_after),
            renew_after=rfc3339(after),
            renew_before=rfc3339(before),
            authority="test",
            log_entry=len(self.records),
        )
        return self._json(issued, 201)
