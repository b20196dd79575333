"""A small TLS server that requires client certificates and looks at the CRL, for machines without nginx."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509

from handclasp.cli.demo.service import wait_for_port
from handclasp.client import TLSContext


def revoked_serials(crls: Path) -> set[int]:
    """Return every serial in a file of CRLs."""
    found = x509.load_pem_x509_crl
    blocks = crls.read_bytes().split(b"-----END X509 CRL-----")[:-1]
    return {entry.serial_number for block in blocks for entry in found(block.strip() + b"\n-----END X509 CRL-----\n")}


class _Handler(BaseHTTPRequestHandler):
    tls: Path

    def do_GET(self) -> None:
        connection = self.connection
        assert isinstance(connection, ssl.SSLSocket)
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        serial = x509.load_der_x509_certificate(der).serial_number
        body = f"hello {serial:X}\n".encode()
        self.send_response(400 if serial in revoked_serials(self.tls / "current" / "crl.pem") else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name is the base class's)
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    context: ssl.SSLContext
    daemon_threads = True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread: a client that stalls must not hold up the others."""
        request.settimeout(10)
        with self.context.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An intruder's failed handshake is no event."""


def serve(home: Path, port: int) -> None:
    """Serve until ended."""
    _Handler.tls = home / "tls"
    server = _Server(("127.0.0.1", port), _Handler)
    server.context = TLSContext.from_directory(home / "tls").server_context()
    (home / "nginx.pid").write_text(str(os.getpid()))
    server.serve_forever()


def ensure(home: Path, port: int) -> None:
    """Start the server unless it runs; it follows its files by itself."""
    if not wait_for_port(port, 0.2):
        command = [
            sys.executable,
            "-m",
            __name__ if __name__ != "__main__" else "handclasp.cli.demo.fallback",
            "serve",
            str(home),
            str(port),
        ]
        with (home / "nginx.log").open("ab") as log:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        if not wait_for_port(port, 10):
            sys.exit("the server did not start")


if __name__ == "__main__":
    {"serve": serve, "ensure": ensure}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
