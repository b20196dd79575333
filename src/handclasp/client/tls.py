"""``TLSContext``: TLS for servers and clients whose credential and trust change while they run.

Make one, pass ``server_context()`` or ``client_context()`` wherever an ``ssl.SSLContext`` is wanted, once. New connections use what is
current; connections that are open stay open. Nothing is ever changed inside a context that is in use: a mutated one would go on trusting
an authority that has been removed, so each generation gets a context of its own.

* Servers: an ``sni_callback`` (called for clients without SNI too) puts the current context in place of the outer one at each handshake.
* Clients: the context that is handed out makes every new connection from the current one.

TLS 1.3 by default and no session tickets: a resumed session would outlive the removal of its authority.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

from handclasp.client.api import ApiClient
from handclasp.client.material import Credential, Material, file_signature, load_credential, load_trust, read_file
from handclasp.client.obtain import ApiSource
from handclasp.client.peers import checking_classes, peer_identity, require_peer
from handclasp.errors import HandclaspError, Kind

__all__ = ["FileSource", "TLSContext", "peer_identity", "require_peer"]

_MODES = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_RETRY = 0.2
Path_ = str | PathLike[str]


class Source(Protocol):
    """Where a credential and trust come from."""

    problem: str
    """Why the newest could not be used, or empty."""

    def current(self) -> Material:
        """Return what is current; cheap, never fails, may be called from any thread."""

    def close(self) -> None:
        """Stop whatever follows."""


class FileSource:
    """Follows three files, or one directory with a ``current`` link in it (what the agent writes).

    The files are looked at for each handshake by ``stat``. A set counts only when it did not change while it was read, the key
    belongs to the certificate and the bundle is whole; until then the previous set stays. Raises ``bad_setting``,
    ``bad_key`` or ``bad_certificate`` at construction, when there is no usable set to begin with.
    """

    def __init__(self, locate: Callable[[], tuple[Path, Path, Path]]) -> None:
        self.problem = ""
        self._locate = locate
        self._lock = threading.Lock()
        self._retry_at = 0.0
        paths = locate()
        self._seen: tuple[object, ...] = (paths, file_signature(paths))
        self._material = self._read(paths)

    @classmethod
    def directory(cls, directory: Path_) -> FileSource:
        """Follow ``key.pem``, ``cert.pem`` and ``bundle.pem`` in ``directory/current``, or in ``directory`` itself."""
        root = Path(directory)

        def locate() -> tuple[Path, Path, Path]:
            # The link is resolved once, so that all three files are of one generation.
            home = (root / "current").resolve() if (root / "current").exists() else root.resolve()
            return home / "cert.pem", home / "key.pem", home / "bundle.pem"

        return cls(locate)

    @classmethod
    def files(cls, certificate: Path_, key: Path_, bundle: Path_) -> FileSource:
        """Follow three files."""
        paths = (Path(certificate), Path(key), Path(bundle))
        return cls(lambda: paths)

    def current(self) -> Material:
        """Return the newest set that was whole."""
        paths = self._locate()
        state = (paths, file_signature(paths))
        changed = state != self._seen
        if (changed or (self.problem and time.monotonic() >= self._retry_at)) and self._lock.acquire(blocking=False):
            try:
                self._refresh(paths, state)
            finally:
                self._lock.release()
        return self._material

    def close(self) -> None:
        """Nothing runs in the background."""

    def _refresh(self, paths: tuple[Path, Path, Path], state: tuple[object, ...]) -> None:
        self._seen = state
        try:
            material = self._read(paths)
            if (paths, file_signature(paths)) != state:
                raise HandclaspError(Kind.UNAVAILABLE, "the files are being written")
        except HandclaspError as error:
            self.problem = error.detail
            self._retry_at = time.monotonic() + _RETRY  # two writes within one tick of the file system's clock look like one
        else:
            self._material, self.problem = material, ""

    def _read(self, paths: tuple[Path, Path, Path]) -> Material:
        certificate, key, bundle = paths
        material = Material(Credential.read(certificate, key), read_file(bundle))
        material.check()
        return material


class TLSContext:
    """Credential and trust that follow their source. Make it with :meth:`from_directory`, :meth:`from_files` or :meth:`from_api`."""

    def __init__(self, source: Source, *, minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        if minimum_version < ssl.TLSVersion.TLSv1_2:
            raise HandclaspError(Kind.BAD_SETTING, "TLS below 1.2 is broken")
        self._source = source
        self._minimum_version = minimum_version

    @classmethod
    def from_directory(cls, directory: Path_, *, minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> TLSContext:
        """Follow a directory that the agent delivers to (``current/key.pem``, ``cert.pem``, ``bundle.pem``)."""
        return cls(FileSource.directory(directory), minimum_version=minimum_version)

    @classmethod
    def from_files(
        cls, certificate: Path_, key: Path_, bundle: Path_, *, minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> TLSContext:
        """Follow three PEM files: chain (leaf first), private key, trust bundle."""
        return cls(FileSource.files(certificate, key, bundle), minimum_version=minimum_version)

    @classmethod
    def from_api(
        cls,
        client: ApiClient,
        *,
        identity: str | None = None,
        dns: Sequence[str] = (),
        ip: Sequence[str] = (),
        profile: str | None = None,
        ttl: str | None = None,
        key_type: str = "p256",
        minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> TLSContext:
        """Obtain a certificate from the server now and renew it in the background; keys stay in memory. Close it when done."""
        source = ApiSource(client, identity=identity, dns=dns, ip=ip, profile=profile, ttl=ttl, key_type=key_type)
        return cls(source, minimum_version=minimum_version)

    def __enter__(self) -> TLSContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following. Contexts that were handed out keep working with the last credential."""
        self._source.close()

    @property
    def sha256(self) -> str:
        """Fingerprint of the certificate that a connection made now would use."""
        return self._source.current().sha256

    @property
    def problem(self) -> str:
        """Why the newest credential could not be taken, or empty. The last good one is in use meanwhile."""
        return self._source.problem

    def server_context(self, *, clients: Literal["required", "optional", "none"] = "required", peers: Sequence[str] = ()) -> ssl.SSLContext:
        """Return a context for servers. ``peers``: patterns of the clients that are let in; others fail in the handshake."""
        if peers and clients != "required":
            raise HandclaspError(Kind.BAD_SETTING, "a list of peers needs clients to show a certificate")

        def make(material: Material) -> ssl.SSLContext:
            context = self._new(ssl.PROTOCOL_TLS_SERVER, material, peers)
            context.verify_mode = _MODES[clients]
            context.num_tickets = 0
            return context

        follower = _Follower(self._source, make)
        outer = make(self._source.current())

        def choose(ssl_object: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            ssl_object.context = follower.current()

        outer.sni_callback = choose
        return outer

    def client_context(self, *, peers: Sequence[str] = ()) -> ssl.SSLContext:
        """Return a context for clients. With ``peers`` the server's identity must match a pattern, and its host name does not matter."""

        def make(material: Material) -> ssl.SSLContext:
            context = self._new(ssl.PROTOCOL_TLS_CLIENT, material, peers)
            context.check_hostname = not peers
            return context

        outer = _FollowingContext(ssl.PROTOCOL_TLS_CLIENT)
        outer.check_hostname = not peers
        outer.minimum_version = self._minimum_version
        outer.follower = _Follower(self._source, make)
        outer.follower.current()
        return outer

    def _new(self, protocol: int, material: Material, peers: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = self._minimum_version
        load_credential(context, material.credential)
        load_trust(context, material.bundle)
        if peers:
            context.sslsocket_class, context.sslobject_class = checking_classes(require_peer(peers))
        return context


class _Follower:
    """One ready context for each generation; made when it is first needed."""

    def __init__(self, source: Source, make: Callable[[Material], ssl.SSLContext]) -> None:
        self._source, self._make = source, make
        self._ready: tuple[Material, ssl.SSLContext] | None = None

    def current(self) -> ssl.SSLContext:
        material = self._source.current()
        ready = self._ready  # one reference, replaced whole: threads may make a context twice, never see half of one
        if ready is None or ready[0] is not material:
            try:
                ready = self._ready = (material, self._make(material))
            except (HandclaspError, OSError):
                if ready is None:
                    raise  # otherwise (no descriptor left, say) the previous one goes on, and the next connection tries again
        return ready[1]


class _FollowingContext(ssl.SSLContext):
    """What a client is handed: every connection is made from the current context instead."""

    follower: _Follower
    _alpn: list[str] | None = None

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        self._alpn = list(alpn_protocols)

    def _current(self) -> ssl.SSLContext:
        context = self.follower.current()
        if self._alpn is not None:
            context.set_alpn_protocols(self._alpn)
        return context

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self._current().wrap_socket(*args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._current().wrap_bio(*args, **kwargs)
