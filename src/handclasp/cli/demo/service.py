"""The service of the demo: a real nginx that requires client certificates, or a Python server where there is no nginx."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

_NGINX = """\
daemon on;
pid {home}/nginx.pid;
error_log {home}/nginx.log warn;
worker_processes 2;
{user}
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    ssl_certificate {tls}/cert.pem;
    ssl_certificate_key {tls}/key.pem;
    ssl_client_certificate {tls}/bundle.pem;
    ssl_crl {tls}/crl.pem;
    ssl_verify_client on;
    ssl_verify_depth 2;
    location / {{ return 200 "hello $ssl_client_serial\\n"; }}
  }}
}}
"""

_RELOAD = """\
#!/bin/sh
# Reload when it runs, start it when it does not: what an init system does for services it looks after.
if read -r pid 2>/dev/null <{home}/nginx.pid && kill -0 "$pid" 2>/dev/null; then exec {nginx} -c {home}/nginx.conf -s reload; fi
exec {nginx} -c {home}/nginx.conf
"""


class Service:
    """What the agent delivers to. ``kind`` is ``nginx`` or ``python``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.tls = home / "tls"
        self._nginx = _find_nginx()
        self.kind = "nginx" if self._nginx else "python"
        home.mkdir()
        if self._nginx:
            self._write_nginx(self._nginx)

    def _write_nginx(self, nginx: str) -> None:
        # As root, nginx would otherwise drop its workers to a user that may not exist here.
        user = "user root;" if os.geteuid() == 0 else ""
        text = _NGINX.format(home=self.home, port=self.port, tls=self.tls / "current", user=user)
        (self.home / "nginx.conf").write_text(text)
        (self.home / "reload.sh").write_text(_RELOAD.format(home=self.home, nginx=nginx))

    def target(self) -> dict[str, object]:
        """Return the target of ``agent.yaml`` that keeps this service up to date."""
        if self._nginx:
            validate: list[str] = [self._nginx, "-t", "-q", "-c", str(self.home / "nginx.conf")]
            reload = ["sh", str(self.home / "reload.sh")]
        else:
            validate, reload = ["true"], [sys.executable, "-m", "handclasp.cli.demo.fallback", "ensure", str(self.home), str(self.port)]
        return {
            "type": "files",
            "directory": str(self.tls),
            "crl": True,
            "validate": validate,
            "reload": {"command": reload},
            "look": {"connect": f"127.0.0.1:{self.port}", "server_name": "localhost"},
            "timeout": "15s",
        }

    @property
    def pid(self) -> int | None:
        """The process id of the service, None while it was not started."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.home / "nginx.pid").read_text())
        return None

    def stop(self) -> None:
        """End the service."""
        pid = self.pid
        if pid is None:
            return
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
            for _ in range(50):
                os.kill(pid, 0)
                time.sleep(0.1)
            os.kill(pid, signal.SIGKILL)


def _find_nginx() -> str | None:
    """Return the path of nginx. Debian puts it into the ``sbin`` beside a ``bin``, which is not on every user's PATH."""
    places = [Path(place) for place in os.get_exec_path()]
    beside = [place.with_name("sbin") for place in places if place.name == "bin"]
    return shutil.which("nginx", path=os.pathsep.join(map(str, (*places, *beside))))


def free_port() -> int:
    """Return a loopback port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, seconds: float) -> bool:
    """Return whether something listens on a loopback port before ``seconds`` have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return True
        time.sleep(0.1)
    return False
