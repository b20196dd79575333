"""Real servers that begin in plain text and go over to TLS: each on a free loopback port, with no more settings than that takes.

Some run as users of their own, who cannot enter pytest's directories: their files are below the directory of the test run.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from support.needs import needs, postgresql_bin
from support.network import answers
from support.postgres import run_directory
from support.programs import free_port, program
from support.servers import environment
from support.waiting import eventually

PROGRAMS = {"smtp": "exim", "imap": "dovecot", "ldap": "slapd", "postgresql": "postgresql", "mysql": "mariadb"}
"""Protocol -> what :data:`support.needs.PACKAGES` calls the server that speaks it here."""


@dataclass(frozen=True)
class Given:
    """What a server is given."""

    pairs: Sequence[tuple[bytes, bytes]] = ()
    """Certificates with their chains, and their keys: one, or two where the server takes two. Empty: it has no TLS."""
    clients: bytes = b""
    """Authorities whose client certificates it takes; empty: it asks for none."""


@contextmanager
def running(protocol: str, given: Given) -> Iterator[int]:
    """Run the server of a protocol while the block does, and yield its port; skips the test where that cannot be."""
    binary = needs(PROGRAMS[protocol])
    if protocol in ("smtp", "imap") and os.geteuid() != 0:
        pytest.skip(f"{PROGRAMS[protocol]} is started by root")
    home, port = Path(tempfile.mkdtemp(prefix="tls-", dir=run_directory())), free_port()
    home.chmod(0o755)
    files = {f"{name}{n}.pem": pem for n, pair in enumerate(given.pairs) for name, pem in zip(("cert", "key"), pair, strict=True)}
    for name, pem in (files | {"clients.pem": given.clients}).items():
        (home / name).write_bytes(pem)
    (home / "data").mkdir()
    try:
        argv = _STARTS[protocol](binary, home, port, given)
        with program(argv, home / "output", cwd=home) as process:
            eventually(lambda: answers(port) or process.poll() is not None, what=f"{binary} listens")
            assert process.poll() is None, (home / "output").read_text(errors="replace")[-3000:]
            yield port
    finally:
        shutil.rmtree(home)


def _exim(binary: Path, home: Path, port: int, given: Given) -> list[str | Path]:
    shutil.chown(home / "data", "Debian-exim")
    lines = [
        f"spool_directory = {home}/data", f"log_file_path = {home}/data/%slog", f"pid_file_path = {home}/data/pid",
        "local_interfaces = 127.0.0.1", f"daemon_smtp_ports = {port}", "primary_hostname = localhost",
        f"tls_advertise_hosts = {'*' if given.pairs else ''}",
    ]  # fmt: skip
    if given.pairs:
        lines += [f"tls_certificate = {_each(f'{home}/cert', given)}", f"tls_privatekey = {_each(f'{home}/key', given)}"]
    if given.clients:
        lines += ["tls_try_verify_hosts = *", f"tls_verify_certificates = {home}/clients.pem"]
    (home / "exim.conf").write_text("\n".join(lines) + "\n")
    return [binary, "-C", home / "exim.conf", "-bdf"]


def _each(path: str, given: Given) -> str:
    return " : ".join(f"{path}{number}.pem" for number in range(len(given.pairs)))


def _dovecot(binary: Path, home: Path, port: int, given: Given) -> list[str | Path]:
    lines = [
        f"base_dir = {home}/run", f"state_dir = {home}/data", f"log_path = {home}/output", "protocols = imap", "listen = 127.0.0.1",
        f"ssl = {'yes' if given.pairs else 'no'}",
        "service imap-login {", "inet_listener imap {", f"port = {port}", "}", "inet_listener imaps {", "port = 0", "}", "}",
        "passdb {", "driver = static", "args = nopassword=y", "}",
    ]  # fmt: skip
    for number, alt in zip(range(len(given.pairs)), ("", "alt_"), strict=False):
        lines += [f"ssl_{alt}cert = <{home}/cert{number}.pem", f"ssl_{alt}key = <{home}/key{number}.pem"]
    if given.clients:
        lines += [f"ssl_ca = <{home}/clients.pem", "ssl_verify_client_cert = yes"]
    (home / "dovecot.conf").write_text("\n".join(lines) + "\n")
    return [binary, "-F", "-c", home / "dovecot.conf"]


def _slapd(binary: Path, home: Path, port: int, given: Given) -> list[str | Path]:
    lines = [f"pidfile {home}/data/pid", f"argsfile {home}/data/args"]
    if given.pairs:
        lines += [f"TLSCertificateFile {home}/cert0.pem", f"TLSCertificateKeyFile {home}/key0.pem"]
    if given.clients:
        lines += [f"TLSCACertificateFile {home}/clients.pem", "TLSVerifyClient demand"]
    (home / "slapd.conf").write_text("\n".join(lines) + "\n")
    return [binary, "-h", f"ldap://127.0.0.1:{port}/", "-f", home / "slapd.conf", "-d", "0"]


def _mariadb(binary: Path, home: Path, port: int, given: Given) -> list[str | Path]:
    options = [f"--datadir={home}/data", f"--user={pwd.getpwuid(os.geteuid()).pw_name}", f"--port={port}", f"--socket={home}/s"]
    options += ["--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-name-resolve", "--innodb=OFF", "--default-storage-engine=MyISAM"]
    options += [f"--ssl-cert={home}/cert0.pem", f"--ssl-key={home}/key0.pem"] if given.pairs else []
    options += [f"--ssl-ca={home}/clients.pem"] if given.clients else []
    return [binary, "--no-defaults", *options]


def _postgresql(_binary: Path, home: Path, port: int, given: Given) -> list[str | Path]:
    binaries, prefix = postgresql_bin(), []
    assert binaries is not None
    if os.geteuid() == 0:  # it does not run as root
        account = pwd.getpwnam("postgres")
        prefix = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        for path in (home, *home.iterdir()):
            os.chown(path, account.pw_uid, -1)
    for key in home.glob("key*"):
        key.chmod(0o600)
    initdb = [*prefix, binaries / "initdb", "-D", home / "data", "-U", "postgres", "--auth=trust", "--locale=C.UTF-8", "--no-sync"]
    done = subprocess.run(initdb, cwd=home, env=environment() | {"LC_ALL": "C.UTF-8"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": str(home), "fsync": "off"}
    if given.pairs:
        settings |= {"ssl": "on", "ssl_cert_file": f"{home}/cert0.pem", "ssl_key_file": f"{home}/key0.pem"}
    if given.clients:
        settings |= {"ssl_ca_file": f"{home}/clients.pem"}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [*prefix, binaries / "postgres", "-D", home / "data", *options]


_Start: TypeAlias = Callable[[Path, Path, int, Given], list[str | Path]]
_STARTS: dict[str, _Start] = {"smtp": _exim, "imap": _dovecot, "ldap": _slapd, "postgresql": _postgresql, "mysql": _mariadb}
