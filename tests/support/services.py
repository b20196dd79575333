"""Real services with client certificates, each with the preset that looks after it: start one, and make requests to it.

Only what a test host does not have is written over the preset: where things lie, and systemd. What they serve is judged by ``openssl``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import pwd
import shutil
import ssl
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from handclasp.agent.presets import load_preset
from support.envoy import envoy_binary
from support.fake_server import FakeAuthority, key_pem, pem
from support.needs import needs, postgresql_bin
from support.postgres import run_directory
from support.programs import free_port, program
from support.servers import environment
from support.traffic import Busy
from support.waiting import eventually

USER = "app.example.org"


@dataclass(frozen=True)
class Visitor:
    """Who makes the requests: a client certificate of its own with the common name :data:`USER`, and the root it trusts, as files."""

    cert: Path
    key: Path
    ca: Path

    @classmethod
    def of(cls, authority: FakeAuthority, home: Path) -> Visitor:
        home.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = authority.issue(key.public_key(), dns=[USER])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, USER)])
        builder = x509.CertificateBuilder(extensions=list(leaf.extensions)).subject_name(subject).issuer_name(leaf.issuer)
        builder = builder.public_key(key.public_key()).serial_number(leaf.serial_number)
        builder = builder.not_valid_before(leaf.not_valid_before_utc).not_valid_after(leaf.not_valid_after_utc)
        named = builder.sign(authority.key, hashes.SHA256())
        made = cls(home / "cert.pem", home / "key.pem", home / "ca.pem")
        made.cert.write_text(pem(named) + pem(authority.issuing))
        made.key.write_bytes(key_pem(key))
        made.key.chmod(0o600)
        made.ca.write_text(pem(authority.root))
        return made

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.cert, self.key)
        return context


class Service:
    """One service below ``home``. Its files are there when it starts: :meth:`target` is delivered to first."""

    preset: ClassVar[str]
    starttls: ClassVar[str] = ""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.home, self.tls, self.port = home, home / "tls", free_port()
        self.user = "root" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.prepare()

    def prepare(self) -> None:
        """Write its configuration."""

    def overrides(self) -> dict[str, Any]:
        """What is written over the preset."""
        return {}

    def argv(self) -> list[str | Path]:
        """How it is started, in the foreground."""
        raise NotImplementedError

    def request(self, visitor: Visitor) -> None:
        """Make one request on a connection of its own; raise for anything but success."""
        raise NotImplementedError

    def target(self) -> dict[str, Any]:
        """The target of ``agent.yaml`` for it."""
        look = {"connect": f"127.0.0.1:{self.port}", "server_name": "localhost"}
        return {"preset": self.preset, "directory": str(self.tls), "look": look, "timeout": "15s", **self.overrides()}

    @contextmanager
    def running(self, visitor: Visitor) -> Iterator[None]:
        """Run it while the block does."""
        with program(self.argv(), self.home / "output", cwd=self.home) as process:

            def answers() -> bool:
                assert process.poll() is None, self.output()
                # Python leaves a socket open that is reset before its handshake (SSLSocket._create): that is not what is tested here.
                with warnings.catch_warnings(), contextlib.suppress(Exception):
                    warnings.simplefilter("ignore", ResourceWarning)
                    self.request(visitor)
                    return True
                return False

            try:
                eventually(answers, what="it answers")
            except AssertionError as error:
                raise AssertionError(self.output()) from error
            yield

    def output(self) -> str:
        return (self.home / "output").read_text(errors="replace")[-4000:]

    def serves(self) -> str:
        """The fingerprint of the certificate that it serves now; empty while it serves none."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-servername", "localhost"]
        command += ["-starttls", self.starttls] if self.starttls else []
        done = subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False)
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        if begin not in done.stdout:
            return ""
        block = begin + done.stdout.partition(begin)[2].partition(end)[0] + end
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(block)).hexdigest()


class _Web(Service):
    def request(self, visitor: Visitor) -> None:
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=20, context=visitor.context())
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or b"hello" not in body:
                raise AssertionError(f"{answer.status} {body[:100]!r}")
        finally:
            connection.close()


class Nginx(_Web):
    """nginx; it signals itself through its pid file."""

    preset = "nginx"

    def prepare(self) -> None:
        self.binary = needs("nginx")
        self.conf = self.home / "nginx.conf"
        self.text = (
            f"daemon off; user {self.user}; pid {self.home}/pid; error_log stderr;\n"
            "worker_processes 1; events { worker_connections 64; }\n"
            f"http {{ access_log off; client_body_temp_path {self.home}/t1; proxy_temp_path {self.home}/t2;\n"
            f"fastcgi_temp_path {self.home}/t3; uwsgi_temp_path {self.home}/t4; scgi_temp_path {self.home}/t5;\n"
            f"server {{ listen 127.0.0.1:{self.port} ssl; ssl_certificate {self.tls}/current/cert.pem;"
            f" ssl_certificate_key {self.tls}/current/key.pem; ssl_client_certificate {self.tls}/current/bundle.pem;"
            f' ssl_verify_client on; ssl_verify_depth 2; location / {{ return 200 "hello\\n"; }} }} }}\n'
        )
        self.conf.write_text(self.text)

    def overrides(self) -> dict[str, Any]:
        command = [str(self.binary), "-c", str(self.conf)]
        return {"validate": [*command, "-t", "-q"], "reload": {"command": [*command, "-s", "reload"]}}

    def argv(self) -> list[str | Path]:
        return [self.binary, "-c", self.conf]


class HAProxy(_Web):
    """HAProxy with a master."""

    preset = "haproxy"

    def prepare(self) -> None:
        self.binary = needs("haproxy")
        self.conf, self.pidfile = self.home / "haproxy.cfg", self.home / "pid"
        self.conf.write_text(
            "global\n  maxconn 200\n"
            "defaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  timeout connect 5s\n"
            "frontend web\n"
            f"  bind 127.0.0.1:{self.port} ssl crt {self.tls}/current/combined.pem ca-file {self.tls}/current/bundle.pem verify required\n"
            "  http-request return status 200 content-type text/plain string hello\n"
        )

    def overrides(self) -> dict[str, Any]:
        return {
            "validate": [str(self.binary), "-c", "-q", "-f", str(self.conf)],
            "reload": {"signal": "USR2", "pidfile": str(self.pidfile)},
        }

    def argv(self) -> list[str | Path]:
        return [self.binary, "-W", "-p", self.pidfile, "-f", self.conf]


class Apache(_Web):
    """Apache with modules from where Debian has them."""

    preset = "apache"

    def prepare(self) -> None:
        self.binary = needs("apache2")
        self.conf = self.home / "apache.conf"
        # Not below pytest's own directory, which the user that it runs its workers as cannot enter.
        self.www = Path(tempfile.mkdtemp(prefix="www-", dir=run_directory()))
        self.www.chmod(0o755)
        (self.www / "index.html").write_text("hello\n")
        account = "User www-data\nGroup www-data\n" if self.user == "root" else ""
        modules = ["mpm_event", "authz_core", "dir", "ssl", "socache_shmcb"]
        loads = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in modules)
        self.conf.write_text(
            f"ServerRoot {self.home}\nServerName localhost\nPidFile {self.home}/pid\nErrorLog {self.home}/output\n"
            f"DefaultRuntimeDir {self.home}\n{loads}{account}Listen 127.0.0.1:{self.port}\nStartServers 1\n"
            f"DocumentRoot {self.www}\nDirectoryIndex index.html\n"
            f"SSLEngine on\nSSLCertificateFile {self.tls}/current/cert.pem\nSSLCertificateKeyFile {self.tls}/current/key.pem\n"
            f"SSLCACertificateFile {self.tls}/current/bundle.pem\nSSLVerifyClient require\nSSLVerifyDepth 2\n"
        )

    def overrides(self) -> dict[str, Any]:
        command = [str(self.binary), "-f", str(self.conf)]
        return {"validate": [*command, "-t"], "reload": {"command": [*command, "-k", "graceful"]}}

    def argv(self) -> list[str | Path]:
        return [self.binary, "-f", self.conf, "-D", "FOREGROUND"]


class Envoy(_Web):
    """Envoy, which watches the files itself."""

    preset = "envoy"

    def prepare(self) -> None:
        self.binary = envoy_binary()
        self.conf = self.home / "envoy.yaml"
        for name, text in zip(("server", "clients"), load_preset("envoy").snippet_for(str(self.tls)).split("---\n"), strict=True):
            (self.home / f"{name}.yaml").write_text(text)
        sources = {
            name: f"{{name: {name}, sds_config: {{path_config_source: {{path: {self.home}/{name}.yaml}}, resource_api_version: V3}}}}"
            for name in ("server", "clients")
        }
        self.conf.write_text(_ENVOY.format(port=self.port, **sources))

    def overrides(self) -> dict[str, Any]:
        return {"group": os.getgid()}

    def argv(self) -> list[str | Path]:
        return [self.binary, "-c", self.conf, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]


_ENVOY = """\
node: {{id: test, cluster: test}}
static_resources:
  listeners:
    - name: web
      address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              require_client_certificate: true
              common_tls_context:
                tls_certificate_sds_secret_configs: [{server}]
                validation_context_sds_secret_config: {clients}
          filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: web
                route_config:
                  virtual_hosts:
                    - name: web
                      domains: ["*"]
                      routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: hello}}}}}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"""


class Redis(Service):
    """Redis; it is told through itself."""

    preset = "redis"

    def prepare(self) -> None:
        self.binary = needs("redis")
        self.conf = self.home / "redis.conf"
        self.conf.write_text(
            f'bind 127.0.0.1\nport 0\ntls-port {self.port}\ndir {self.home}\nsave ""\ntls-auth-clients yes\n'
            f"tls-cert-file {self.tls}/current/cert.pem\ntls-key-file {self.tls}/current/key.pem\n"
            f"tls-ca-cert-file {self.tls}/current/bundle.pem\n"
        )

    def overrides(self) -> dict[str, Any]:
        command = list(load_preset("redis").fill(str(self.tls))["reload"]["command"])
        return {"group": os.getgid(), "reload": {"command": [command[0], "-p", str(self.port), *command[1:]]}}

    def argv(self) -> list[str | Path]:
        return [self.binary, self.conf]

    def request(self, visitor: Visitor) -> None:
        import socket

        with (
            socket.create_connection(("127.0.0.1", self.port), 20) as plain,
            visitor.context().wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"PING\r\n")
            said = connection.recv(100)
        if said != b"+PONG\r\n":
            raise AssertionError(repr(said))


class PostgreSQL(Service):
    """PostgreSQL, in a place that its user can enter; it lets in who has a certificate with its user's name (``verify-full``)."""

    preset = "postgresql"
    starttls = "postgres"

    def __init__(self, home: Path) -> None:
        needs("postgresql")
        super().__init__(home)

    def prepare(self) -> None:
        binaries = postgresql_bin()
        assert binaries is not None
        self.binaries, root = binaries, os.geteuid() == 0
        # Not below pytest's own directory: PostgreSQL does not run as root, and its user cannot enter that one.
        self.place = Path(tempfile.mkdtemp(prefix="pg-", dir=run_directory()))
        self.tls, self.data = self.place / "tls", self.place / "data"
        self.account = pwd.getpwnam("postgres") if root else pwd.getpwuid(os.geteuid())
        self.as_user: dict[str, Any] = {"user": "postgres", "group": self.account.pw_gid, "extra_groups": []} if root else {}
        self.place.chmod(0o755)
        os.chown(self.place, self.account.pw_uid, -1)
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        (self.data / "pg_hba.conf").write_text(
            "local all postgres trust\n"
            f'hostssl all "{USER}" 127.0.0.1/32 trust clientcert=verify-full\n'
            "hostssl all app 127.0.0.1/32 cert map=handclasp\n"
        )
        (self.data / "pg_ident.conf").write_text(f"handclasp {USER} app\n")
        files = "".join(
            f"{name} = '{self.tls}/current/{file}.pem'\n"
            for name, file in (("ssl_cert_file", "cert"), ("ssl_key_file", "key"), ("ssl_ca_file", "bundle"))
        )
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{self.place}'\nfsync = off\n"
                f"ssl = on\n{files}"
            )

    def _run(self, tool: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self.binaries / tool, *arguments], cwd=self.place, env=_bare(), capture_output=True, text=True, check=False, **self.as_user
        )
        assert done.returncode == 0, done.stderr

    def overrides(self) -> dict[str, Any]:
        return {"group": self.account.pw_gid, "reload": {"signal": "HUP", "pidfile": str(self.data / "postmaster.pid")}}

    @contextmanager
    def running(self, visitor: Visitor) -> Iterator[None]:
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.place / "output", "start")
        try:
            statement = f'CREATE ROLE "{USER}" LOGIN; CREATE ROLE app LOGIN'
            self._run("psql", "-h", self.place, "-p", str(self.port), "-U", "postgres", "-d", "postgres", "-c", statement)
            self.request(visitor)
            self.request(visitor, "app")
            yield
        finally:
            self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")
            shutil.rmtree(self.place)

    def request(self, visitor: Visitor, user: str = USER) -> None:
        async def ask() -> None:
            connection = await asyncpg.connect(
                host="localhost", port=self.port, user=user, database="postgres", ssl=visitor.context(), timeout=20
            )
            try:
                assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            finally:
                await connection.close()

        asyncio.run(ask())

    def output(self) -> str:
        return (self.place / "output").read_text(errors="replace")[-4000:]


class MariaDB(Service):
    """MariaDB; it is told through its local socket."""

    preset = "mariadb"
    starttls = "mysql"

    def prepare(self) -> None:
        self.binary = needs("mariadb")
        self.client = needs("mariadb-client")
        # A unix socket's path has 107 bytes and no more.
        self.socket = Path(tempfile.mkdtemp(prefix="my-", dir=run_directory())) / "s"
        options = ["--no-defaults", f"--datadir={self.home}/data", f"--user={self.user}"]
        install = [needs("mariadb-install-db"), *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
        done = subprocess.run(install, env=_bare(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.options = [*options, f"--port={self.port}", f"--socket={self.socket}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        files = {"ssl-cert": "cert", "ssl-key": "key", "ssl-ca": "bundle"}
        self.options += [f"--{name}={self.tls}/current/{file}.pem" for name, file in files.items()]

    def overrides(self) -> dict[str, Any]:
        local = [str(self.client), "--no-defaults", "--user=root", f"--socket={self.socket}"]
        return {"group": os.getgid(), "reload": {"command": [*local, "--execute", "FLUSH SSL"]}}

    def argv(self) -> list[str | Path]:
        self.init = self.home / "init.sql"
        self.init.write_text("CREATE USER IF NOT EXISTS 'app'@'127.0.0.1' REQUIRE X509;\n")
        return [self.binary, *self.options, f"--init-file={self.init}"]

    def request(self, visitor: Visitor) -> None:
        files = [f"--ssl-cert={visitor.cert}", f"--ssl-key={visitor.key}", f"--ssl-ca={visitor.ca}", "--protocol=tcp"]
        where = ["--host=127.0.0.1", f"--port={self.port}", "--user=app", "--connect-timeout=20"]
        done = subprocess.run(
            [self.client, "--no-defaults", *where, *files, "--execute", "SHOW STATUS LIKE 'Ssl_version'"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or "TLS" not in done.stdout:
            raise AssertionError(done.stdout + done.stderr)


def _bare() -> dict[str, str]:
    """An environment in which no setting of a developer's database counts."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("PG", "MYSQL", "MARIADB"))}
    return kept | {"LC_ALL": "C.UTF-8"}


class Traffic(Busy):
    """Visits a service, each time on a connection of its own."""

    def __init__(self, service: Service, visitor: Visitor) -> None:
        super().__init__()
        self._service, self._visitor = service, visitor

    def once(self) -> None:
        """Visit it."""
        self._service.request(self._visitor)
