"""An agent's socket over a small agent that a test rules: it issues, rotates and fails when it is told to."""

from __future__ import annotations

import datetime
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handclasp import wire
from handclasp.agent.config import Managed
from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.content import Content
from handclasp.agent.socket.server import SocketServer
from handclasp.clock import rfc3339, system_clock
from handclasp.errors import HandclaspError, Kind

DOMAIN = "example.org"
WEB = f"spiffe://{DOMAIN}/prod/web"
_USAGES = dict.fromkeys(
    (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
        "encipher_only", "decipher_only",
    ),
    False,
)  # fmt: skip


def workload(name: str, identity: str, *selectors: str, **more: Any) -> wire.Workload:
    """Return a workload of the policy."""
    usual: dict[str, Any] = {"dns": [], "profile": "workload", "ttl": None, "hint": "", "federates_with": [], "jwt": False}
    return wire.Workload(name=name, identity=identity, selectors=list(selectors), **usual | more)


class Mint:
    """Root and issuing authority of one trust domain, whose certificates every SPIFFE library takes."""

    def __init__(self, domain: str = DOMAIN) -> None:
        self.domain = domain
        self.root_key, self.key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = self._authority("root", self.root_key, None)
        self.issuing = self._authority("issuing", self.key, self.root)

    def _builder(self, subject: x509.Name, issuer: x509.Name, key: Any, seconds: float) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=2))
            .not_valid_after(now + datetime.timedelta(seconds=seconds))
        )

    def _authority(self, name: str, key: Any, issuer: x509.Certificate | None) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.domain} {name}")])
        return (
            self._builder(subject, issuer.subject if issuer else subject, key, 86400)
            .add_extension(x509.BasicConstraints(True, 0 if issuer else 1), critical=True)
            .add_extension(x509.KeyUsage(**_USAGES | {"key_cert_sign": True, "crl_sign": True}), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{self.domain}")]), critical=False)
            .sign(self.root_key, hashes.SHA256())
        )

    @property
    def bundle(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    def content(self, identity: str, seconds: float = 3600) -> Content:
        """Return a new certificate with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = (
            self._builder(x509.Name([]), self.issuing.subject, key, seconds)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.KeyUsage(**_USAGES | {"digital_signature": True}), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Content(
            sha256=leaf.fingerprint(hashes.SHA256()).hex(),
            key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            certificate=leaf.public_bytes(Encoding.PEM),
            chain=self.issuing.public_bytes(Encoding.PEM),
            bundle=self.bundle,
        )

    def crl(self, *, issuing: bool = False, minutes: float = 60, partial: bool = False) -> bytes:
        """Return a CRL of the root or of the issuing authority."""
        now = datetime.datetime.now(datetime.UTC)
        issuer, key = (self.issuing, self.key) if issuing else (self.root, self.root_key)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(now - datetime.timedelta(hours=1))
            .next_update(now + datetime.timedelta(minutes=minutes))
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        if partial:
            builder = builder.add_extension(x509.IssuingDistributionPoint(None, None, True, False, None, False, False), critical=True)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class FakeKeeper:
    """Holds one certificate."""

    def __init__(self, managed: Managed) -> None:
        self.managed = managed
        self.held: Content | None = None
        self.not_after: int | None = None
        self.failure = ""

    def content(self) -> Content | None:
        return self.held

    @property
    def told(self) -> wire.AgentIdentity:
        return wire.AgentIdentity(
            identity=self.managed.name,
            state="failed" if self.failure else "ok",
            last_failure=self.failure or None,
            sha256=self.held.sha256 if self.held else None,
            not_after=rfc3339(self.not_after) if self.not_after else None,
        )


class FakeRoster:
    """Issues at once, in another thread, unless ``holds`` or ``failure`` say otherwise."""

    def __init__(self, mint: Mint) -> None:
        self.mint = mint
        self.keepers: dict[tuple[str, str], FakeKeeper] = {}
        self.listeners: dict[tuple[str, str], list[Callable[..., None]]] = {}
        self.issued: list[str] = []
        self.removed: list[str] = []
        self.holds = False
        self.failure = ""

    def add(self, managed: Managed, *, on_change: Callable[..., None] | None = None) -> FakeKeeper:
        key = (managed.slot, managed.name)
        keeper = self.keepers.get(key)
        if keeper is not None and keeper.managed != managed:
            raise HandclaspError(Kind.CONFLICT, "other settings")
        if keeper is None:
            keeper = self.keepers[key] = FakeKeeper(managed)
            keeper.failure = self.failure
            if not self.holds and not self.failure:
                threading.Thread(target=self.rotate, args=(managed.name,)).start()
        if on_change is not None:
            self.listeners.setdefault(key, []).append(on_change)
        return keeper

    def remove(self, name: str, slot: str = "") -> None:
        if self.keepers.pop((slot, name), None) is not None:
            self.removed.append(name)
        self.listeners.pop((slot, name), None)

    def rotate(self, name: str, seconds: float = 3600) -> Content:
        """Issue a certificate for whoever keeps ``name``."""
        content = self.mint.content(name, seconds)
        for key, keeper in list(self.keepers.items()):
            if key[1] == name:
                keeper.failure, keeper.held = "", content
                keeper.not_after = system_clock() + int(seconds * 1000)
                self.issued.append(name)
                for listener in self.listeners.get(key, []):
                    listener(keeper)
        return content


@dataclass
class FakeTrust:
    """Whom to trust, by trust domain."""

    bundles: dict[str, bytes] = field(default_factory=dict)
    crls: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    watched: list[str] = field(default_factory=list)

    def bundle(self, trust_domain: str) -> bytes:
        return self.bundles.get(trust_domain, b"")

    def crl(self, trust_domain: str) -> bytes:
        return self.crls.get(trust_domain, b"")

    def jwks(self, trust_domain: str) -> bytes:
        return self.keys.get(trust_domain, b"")

    def watch(self, trust_domain: str) -> None:
        self.watched.append(trust_domain)


class FakeApi:
    """The server."""

    def __init__(self, workloads: list[wire.Workload]) -> None:
        self.items = workloads
        self.away: HandclaspError | None = None
        self.asked = 0
        self.tokens: list[wire.JwtSvidRequest] = []
        self.sign: Callable[[wire.JwtSvidRequest], wire.JwtSvid] | None = None

    def workloads(self, *, etag: str = "") -> tuple[wire.WorkloadList, str] | None:
        self.asked += 1
        if self.away is not None:
            raise self.away
        tag = hashlib.sha256(repr(self.items).encode()).hexdigest()
        return None if tag == etag else (wire.WorkloadList(items=self.items), tag)

    def jwt_svid(self, request: wire.JwtSvidRequest) -> wire.JwtSvid:
        self.tokens.append(request)
        if self.away is not None:
            raise self.away
        assert self.sign is not None
        return self.sign(request)


AWAY = HandclaspError(Kind.UNAVAILABLE, "the server cannot be reached")


class World:
    """The fake agent, and the socket over it."""

    def __init__(self, home: Path, workloads: list[wire.Workload], **settings: Any) -> None:
        self.mint = Mint()
        self.roster, self.client, self.anchors = FakeRoster(self.mint), FakeApi(workloads), FakeTrust({DOMAIN: self.mint.bundle})
        self.poll = 0.1
        (home / "state").mkdir(exist_ok=True)
        self.state: Any = SimpleNamespace(root=home / "state")
        self.path = home / "w.sock"
        self.settings = SocketSettings(path=self.path, **{"wait": 3.0, **settings})
        self.server = SocketServer(self, self.settings)

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @contextmanager
    def running(self) -> Iterator[World]:
        self.server.start()
        try:
            yield self
        finally:
            self.server.stop()

    def policy(self, *workloads: wire.Workload) -> None:
        """Apply another policy, and wait until the agent has heard of it."""
        self.client.items = list(workloads)
        before = self.client.asked
        while self.client.asked < before + 2:
            time.sleep(0.01)


@contextmanager
def socket_of(home: Path, *workloads: wire.Workload, **settings: Any) -> Iterator[World]:
    """Run a socket for these workloads."""
    world = World(home, list(workloads), **settings)
    with world.running():
        yield world
