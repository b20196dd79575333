"""One real server: ``handclasp up`` as a process on free loopback ports with temporary data, and what tests need to talk to it.

Everything that goes through :meth:`Live.client` is looked through for secrets: a token that was ever made here must not stand in any
answer but the one that made it.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from handclasp.client.csr import new_request
from handclasp.errors import Kind
from support.servers import Server, environment

DOMAIN = "example.org"


@dataclass(frozen=True)
class Answer:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        """The kind in a problem document, empty for an answer that is none."""
        return str(self.json["kind"]) if self.headers.get("content-type") == "application/problem+json" else ""

    def ok(self, status: int = 200) -> Any:
        """Demand this status and return the body as JSON."""
        assert self.status == status, self.text
        return self.json

    def refused(self, kind: Kind, *words: str, status: int | None = None) -> dict[str, Any]:
        """Demand a problem document of this kind (RFC 9457) with these words in its detail, and return it."""
        from handclasp.api.problems import STATUS

        assert (self.kind, self.status) == (kind.value, status or STATUS[kind]), f"{self.status} {self.text}"
        problem: dict[str, Any] = self.json
        assert problem["status"] == self.status
        for word in words:
            assert word in problem["detail"], problem
        return problem


@dataclass(frozen=True)
class Holder:
    """A certificate with its key, as files, and what the server answered when it issued it."""

    issued: dict[str, Any]
    cert_file: Path
    key_file: Path

    @property
    def sha256(self) -> str:
        return str(self.issued["sha256"])


class Client:
    """One kept-alive connection, as one caller. Closed by the server, it connects again."""

    def __init__(self, live: Live, connection: http.client.HTTPConnection, token: str | None) -> None:
        self._live = live
        self.connection = connection
        self.token = token

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        secret: str = "",
        **params: Any,
    ) -> Answer:
        """Send a request and return the answer. ``body`` is sent as JSON unless it is bytes; ``secret`` may stand in this answer."""
        target = path + ("?" + urlencode(params) if params else "")
        sent = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        self.connection.request(method, target, body=data, headers={**sent, **(headers or {})})
        response = self.connection.getresponse()
        answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        self._live.check_no_secret(repr(answer.headers).encode() + answer.body, f"{method} {path}", allowed=secret)
        return answer

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a GET that must succeed."""
        return self("GET", path, **params).ok()

    def pages(self, path: str, **params: Any) -> Iterator[list[Any]]:
        """Yield page after page of a list."""
        while True:
            page = self.get(path, **params)
            yield page["items"]
            if not page["next_cursor"]:
                return
            params["cursor"] = page["next_cursor"]


@dataclass
class Live:
    """A server that runs, and what was made on it."""

    directory: Path
    server: Server
    secrets: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.facts = self.server.facts
        self.admin_token = Path(self.facts["admin_token_file"]).read_text().strip()
        self.secrets.add(secret_of(self.admin_token))

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def https(self) -> tuple[str, int]:
        return _address(self.facts["https"])

    @property
    def http(self) -> tuple[str, int]:
        return _address(self.facts["http"])

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of a command line that talks to this server as admin."""
        urls = {"HANDCLASP_URL": self.facts["https"], "HANDCLASP_CA": self.facts["ca_file"]}
        return environment() | urls | {"HANDCLASP_TOKEN_FILE": self.facts["admin_token_file"]}

    # --- talking to it --------------------------------------------------------------------------------------------------------------

    def context(self, cert_file: Path | None = None, key_file: Path | None = None) -> ssl.SSLContext:
        """A client's TLS context that trusts this server, with a client certificate or without."""
        context = ssl.create_default_context(cafile=self.facts["ca_file"])
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
        return context

    @contextmanager
    def client(self, token: str | None = None, holder: Holder | None = None) -> Iterator[Client]:
        """A client with a bearer token, with a client certificate, with both, or with nothing."""
        context = self.context(holder.cert_file, holder.key_file) if holder else self.context()
        with closing(http.client.HTTPSConnection(*self.https, context=context, timeout=60)) as connection:
            yield Client(self, connection, token)

    @contextmanager
    def plain(self) -> Iterator[Client]:
        """A client of the HTTP listener."""
        with closing(http.client.HTTPConnection(*self.http, timeout=60)) as connection:
            yield Client(self, connection, None)

    @contextmanager
    def socket(self, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
        """A bare connection, for bytes that no client would send."""
        context = context or self.context()
        with (
            socket.create_connection(self.https, timeout=60) as bare,
            context.wrap_socket(bare, server_hostname=self.https[0]) as connection,
        ):
            yield connection

    def raw(self, data: bytes) -> bytes:
        """Send bytes and return everything that comes back until the server ends the connection."""
        with self.socket() as connection:
            connection.sendall(data)
            return read_all(connection)

    # --- making things --------------------------------------------------------------------------------------------------------------

    def token(self, *scopes: str, by: str | None = None, **fields: Any) -> str:
        """Make a token: one that uses the API with these scopes, or one that issues certificates (``allow``, ``profiles`` …)."""
        return str(self.create_token(*scopes, by=by, **fields)["token"])

    def create_token(self, *scopes: str, by: str | None = None, **fields: Any) -> dict[str, Any]:
        """Make a token and return the whole answer."""
        request = {"name": "test", "uses": 0, **({"scopes": scopes} if scopes else {}), **fields}
        with self.client(by or self.admin_token) as client:
            client.connection.request("POST", "/v1/tokens", json.dumps(request), {"Authorization": f"Bearer {by or self.admin_token}"})
            response = client.connection.getresponse()
            created: dict[str, Any] = json.loads(response.read())
        assert response.status == 201, created
        self.secrets.add(secret_of(created["token"]))
        return created

    def issuing_token(self, *allow: str, profiles: Sequence[str] = ("workload",), **fields: Any) -> str:
        """Make a token that issues certificates for these identities."""
        return self.token(allow=allow, profiles=profiles, **fields)

    def holder(self, identity: str, *, token: str | None = None, profile: str = "workload", **fields: Any) -> Holder:
        """Obtain a certificate; by a token of its own unless one is given."""
        if token is None:
            token = self.token(allow=[identity], profiles=[profile]) if profile != "agent" else self.token(agent=True)
        key, csr = new_request("p256", identity=None)
        with self.client(token) as client:
            body = {"csr": csr, "identity": identity, "profile": profile, **fields}
            return self.keep(client("POST", "/v1/certificates", body).ok(201), key)

    def keep(self, issued: dict[str, Any], key: bytes) -> Holder:
        """Write what was issued to files."""
        home = self.directory / "holders"
        home.mkdir(exist_ok=True)
        cert_file, key_file = home / f"{issued['sha256']}.pem", home / f"{issued['sha256']}.key"
        cert_file.write_text(issued["certificate"] + issued["chain"])
        key_file.write_bytes(key)
        return Holder(issued, cert_file, key_file)

    # --- what it must not do --------------------------------------------------------------------------------------------------------

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Everything that the server wrote, by file: its output, database, log; not the one file that is there to hold the admin token."""
        for path in [self.server.log_file, *self.data.rglob("*")]:
            if path.is_file() and path != Path(self.facts["admin_token_file"]):
                yield str(path.relative_to(self.directory)), path.read_bytes()

    def check_no_secret(self, data: bytes, where: str, *, allowed: str = "") -> None:
        """Fail if the secret half of any token that was made here is in ``data``."""
        for secret in self.secrets:
            assert secret not in data or allowed.encode().endswith(secret), f"a token's secret is in {where}"

    def check_written(self) -> None:
        """Fail if a secret is anywhere in what the server wrote, or a bug in its output."""
        for name, data in self.written():
            self.check_no_secret(data, name)
            if name == self.server.log_file.name:
                assert b"Traceback" not in data, data.decode(errors="replace")

    @property
    def output(self) -> str:
        """What it printed."""
        return self.server.log_file.read_text(errors="replace")


def secret_of(token: str) -> bytes:
    """Return the half of ``hct_ID_SECRET`` that nobody may see."""
    return token.split("_", 2)[2].encode()


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the other end closes; an end without TLS's goodbye is one too."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except (ssl.SSLEOFError, ConnectionResetError):
        pass
    return received


@contextmanager
def serving(directory: Path, *flags: str) -> Iterator[Live]:
    """Run ``handclasp up`` with data below ``directory`` until the block ends; then it must end well, and have written no secret."""
    with Server(directory / "data", "--trust-domain", DOMAIN, *flags) as server:
        live = Live(directory, server.ready())
        try:
            yield live
        finally:
            code = server.stop()
    assert code == 0, live.output
    live.check_written()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port
