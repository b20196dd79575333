"""Who talks to the service: a client that follows its credentials, and an intruder with credentials from another CA."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from handclasp.cli.demo.intruder import foreign_credentials
from handclasp.client import TLSContext
from handclasp.client.material import Credential, load_credential

PAUSE = 0.04  # seconds between requests of the client: "many times a second", on two cores that also do everything else
INTRUSION_PAUSE = 0.5
TIMEOUT = 5.0


@dataclass
class Seen:
    """What was seen of one identity."""

    certificates: list[str] = field(default_factory=list)
    """Fingerprints in the order in which they were first seen."""
    since: float = 0.0
    requests: int = 0
    failed: int = 0
    last_failure: str = ""

    def certificate(self, sha256: str) -> None:
        """Note the certificate that was used or served just now."""
        if sha256 not in self.certificates:
            self.certificates.append(sha256)
            self.since = time.monotonic()

    @property
    def rotations(self) -> int:
        """How often the certificate has changed."""
        return max(0, len(self.certificates) - 1)


def ask(port: int, context: ssl.SSLContext) -> tuple[int, str]:
    """Make one request over a new connection; return the status and the fingerprint of the served certificate."""
    connection = http.client.HTTPSConnection("localhost", port, timeout=TIMEOUT, context=context)
    try:
        connection.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), TIMEOUT), server_hostname="localhost")
        served = connection.sock.getpeercert(binary_form=True) or b""
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        return answer.status, hashlib.sha256(served).hexdigest()
    finally:
        connection.close()


class Traffic:
    """Two threads that make requests, and what they saw. ``before_revocation`` ends when :meth:`revoked` is called."""

    def __init__(self, port: int, caller_files: Path) -> None:
        self.web, self.caller = Seen(), Seen()
        self.intrusions = 0
        self.accepted = 0
        self.refused = threading.Event()
        """Set when the service refuses the client after its revocation."""
        self._port = port
        self._files = caller_files
        self._stop = threading.Event()
        self._revoked = threading.Event()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        """Talk while the body runs."""
        work: tuple[Callable[[], None], ...] = (self._call, self._intrude)
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(TIMEOUT * 2)

    def revoke(self) -> None:
        """From now on a refusal of the client is what is hoped for, and no failure."""
        self._revoked.set()

    def _call(self) -> None:
        with TLSContext.from_directory(self._files) as tls:
            context = tls.client_context()
            while not self._stop.wait(PAUSE):
                revoked = self._revoked.is_set()
                own, problem = tls.sha256, ""
                try:
                    status, served = ask(self._port, context)
                    problem = "" if status == 200 else f"status {status}"
                    self.web.certificate(served)
                    self.caller.certificate(own)
                except OSError as error:
                    problem = f"{type(error).__name__}: {error}"
                if not revoked:
                    self._count(problem)
                elif problem:
                    self.refused.set()

    def _count(self, problem: str) -> None:
        for seen in (self.web, self.caller):
            seen.requests += 1
            if problem:
                seen.failed += 1
                seen.last_failure = problem

    def _intrude(self) -> None:
        attempts = foreign_credentials()
        while not self._stop.wait(INTRUSION_PAUSE):
            credential = attempts[self.intrusions % len(attempts)]
            self.intrusions += 1
            try:
                status, _ = ask(self._port, _careless(credential))
            except OSError:
                continue
            if status == 200:
                self.accepted += 1


def _careless(credential: Credential | None) -> ssl.SSLContext:
    """Return what an intruder uses: it does not care who the server is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if credential is not None:
        load_credential(context, credential)
    return context
