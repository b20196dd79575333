"""Real programs as processes: the command line, whatever runs beside a test, an nginx; and somebody who makes requests all the time."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from support.needs import needs
from support.servers import environment

_PORTS = range(20_000, 32_000)
"""Below the range from which the kernel gives ports to clients: what was free a moment ago still is."""


def free_port() -> int:
    """Return a free loopback port, for a program that cannot say which one it took, or that has to have the same again."""
    for _ in range(100):
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("there is no free port")


@dataclass(frozen=True)
class Shell:
    """Runs ``handclasp …`` in a directory, with settings in its environment."""

    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def run(self, *args: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run it and return what became of it. ``settings`` are environment variables on top."""
        env = environment() | {"HOME": str(self.directory), "TZ": "UTC"} | dict(self.settings) | settings
        argv = [sys.executable, "-m", "handclasp", *map(str, args)]
        return subprocess.run(argv, cwd=self.directory, env=env, capture_output=True, text=True, timeout=60, check=False)

    def __call__(self, *args: str | Path, **settings: str) -> str:
        """Run it, demand that it succeeds, and return its stdout."""
        done = self.run(*args, **settings)
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *args: str | Path, **settings: str) -> Any:
        """The same with ``--json``: return what it says."""
        return json.loads(self(*args, "--json", **settings))

    def refused(self, *args: str | Path, **settings: str) -> dict[str, Any]:
        """Run it with ``--json``, demand that it is refused (exit code 1), and return the problem document."""
        done = self.run(*args, "--json", **settings)
        assert done.returncode == 1, f"{args}: {done.stdout}{done.stderr}"
        problem: dict[str, Any] = json.loads(done.stdout)
        return problem


class Child(subprocess.Popen[Any]):
    """A process that is killed when the block that it is used in fails: what waits for its end then would wait for ever."""

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


@contextmanager
def program(argv: Sequence[str | Path], output: Path, *, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block does, and end it after that; what it says is added to ``output``."""
    with output.open("ab") as log:
        process = subprocess.Popen(list(map(str, argv)), cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def handclasp(*args: str | Path) -> list[str]:
    """Return the command line of ``handclasp …``."""
    return [sys.executable, "-m", "handclasp", *map(str, args)]


_NGINX = """\
daemon off;
pid {home}/nginx.pid;
error_log {home}/nginx.log notice;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
  uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    ssl_certificate {home}/cert.pem;
    ssl_certificate_key {home}/key.pem;
    ssl_client_certificate {home}/clients.pem;
    ssl_verify_client on;
    ssl_verify_depth 2;
    location / {{ default_type text/plain; return 200 "$ssl_client_verify\\n"; }}
  }}
}}
"""


class Nginx:
    """An nginx that lets in who has a client certificate; it begins with a certificate of its own making, as one that has run for years."""

    def __init__(self, home: Path) -> None:
        self.binary = needs("nginx")
        needs("openssl")
        home.mkdir()
        self.home, self.port = home, free_port()
        self.conf, self.pidfile = home / "nginx.conf", home / "nginx.pid"
        self.text = _NGINX.format(home=home, port=self.port)
        self.conf.write_text(self.text)
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
        files = ["-subj", "/CN=old", "-keyout", str(home / "key.pem"), "-out", str(home / "cert.pem")]
        subprocess.run([*command, *files], check=True, capture_output=True)
        (home / "clients.pem").write_bytes((home / "cert.pem").read_bytes())

    def target(self) -> dict[str, Any]:
        """Return the target of ``agent.yaml`` that looks after it."""
        return {
            "paths": {"key": f"{self.home}/key.pem", "certificate": f"{self.home}/cert.pem", "bundle": f"{self.home}/clients.pem"},
            "validate": [str(self.binary), "-t", "-q", "-c", str(self.conf)],
            "reload": {"signal": "HUP", "pidfile": str(self.pidfile)},
            "look": {"connect": f"127.0.0.1:{self.port}", "server_name": "localhost"},
            "timeout": "10s",
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it while the block does."""
        with program([self.binary, "-c", self.conf], self.home / "output") as process:
            deadline = time.monotonic() + 20
            while not self.serves():
                assert process.poll() is None, (self.home / "output").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield

    def serves(self) -> str:
        """Return the fingerprint of the certificate that it serves now; empty while it does not."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), 10) as bare,
                context.wrap_socket(bare, server_hostname="localhost") as connection,
            ):
                return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()
        except OSError:
            return ""
