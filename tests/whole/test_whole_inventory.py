"""The whole of the inventory over the real program: what was issued, what is served, and what command line, API and console say of it.

Three certificates are issued and two of them served, beside one of somebody else's and one that the authority's key signed elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives import serialization

from handclasp.client.csr import new_request
from handclasp.clock import system_clock
from handclasp.pki import keys
from handclasp.pki.chains import to_pem
from handclasp.server.instance import open_instance
from handclasp.server.settings import Settings
from support.certfiles import Maker, der, key_pem, pem, put
from support.inventory import foreign, sha
from support.live import DOMAIN, Holder, Live, serving
from support.programs import Shell
from support.servers import init
from support.tls import echo
from support.waiting import eventually

NAMES = ("web", "api", "idle")
STATES = ("unissued", "revoked_served", "expired_served", "old_served", "foreign", "gone", "seen", "unseen")


def signed_elsewhere(data: Path) -> tuple[bytes, bytes]:
    """Sign a certificate with the authority's key, as somebody does who has a copy of it. The server is stopped meanwhile."""
    key = keys.generate("p256")

    async def work() -> bytes:
        instance = await open_instance(Settings.load({"data": str(data)}, env={}))
        try:
            authority = instance.authorities.issuing()[0]
            signer = (authority.certificate, instance.authorities.crl_key(authority))
            return foreign("", uri=f"spiffe://{DOMAIN}/prod/unknown", subject={}, signer=signer, now=system_clock(), key=key)
        finally:
            await instance.close()

    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return asyncio.run(work()), secret


@dataclass
class Estate:
    """A server, what it issued, and TLS servers on loopback."""

    live: Live
    shell: Shell
    holders: dict[str, Holder] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, ExitStack] = field(default_factory=dict)

    def serve(self, name: str, cert_file: Path, key_file: Path) -> None:
        """Serve a certificate, at the same port each time."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file)
        stack = self.running[name] = ExitStack()
        self.ports[name], _ = stack.enter_context(echo(context, self.ports.get(name, 0)))

    def stop(self, name: str) -> None:
        self.running.pop(name).close()

    # --- what is said -------------------------------------------------------------------------------------------------------------------

    def scan(self) -> dict[str, Any]:
        """Read everything once, and return what came of it."""
        done = self.shell.run("source", "run", "edge", "--watch", "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["state"] == "done", done.stderr
        return found

    def counts(self) -> dict[str, int]:
        """Return how many certificates are in each state: what the command line says, and the API and the console as well."""
        done = self.shell.run("inventory", "--json")
        told = {one["standing"]: one["count"] for one in json.loads(done.stdout)["items"]}
        assert tuple(told) == STATES
        assert done.returncode == int(any(told[state] for state in STATES[:4])), "it exits 1 when something is alarming"
        with self.live.client(self.live.admin_token) as client:
            assert {one["standing"]: one["count"] for one in client.get("/v1/standings")["items"]} == told
        links = re.findall(r'href="/console/certificates\?standing=(\w+)[^"]*"><b>(\d+)</b>', self.page(""))
        assert {state: int(number) for state, number in links} == told
        return {state: number for state, number in told.items() if number}

    def listed(self, state: str) -> set[str]:
        """Return the certificates in a state, as each of the three lists them."""
        items = self.shell.json("cert", "list", "--standing", state)["items"]
        found = {one["sha256"] for one in items}
        with self.live.client(self.live.admin_token) as client:
            assert {one["sha256"] for one in client.get("/v1/certificates", standing=state)["items"]} == found
        assert set(re.findall(r'href="/console/certificates/([0-9a-f]{64})', self.page(f"certificates?standing={state}"))) == found
        return found

    def becomes(self, wanted: dict[str, int]) -> None:
        """Wait until it stands so: what was renewed and revoked follows out of the log."""
        states: dict[str, int] = {}

        def is_so() -> bool:
            nonlocal states
            with self.live.client(self.live.admin_token) as client:
                states = {one["standing"]: one["count"] for one in client.get("/v1/standings")["items"] if one["count"]}
            return states == wanted

        eventually(is_so, 20, f"{wanted}")
        assert self.counts() == wanted

    cookie: str = ""

    def page(self, path: str) -> str:
        """Return a page of the console, signed in with the admin token."""
        if not self.cookie:
            status, headers, _ = self._ask("POST", "sign-in/token", urlencode({"token": self.live.admin_token}))
            assert status == 303
            self.cookie = headers["set-cookie"].partition(";")[0]
        status, _, body = self._ask("GET", path, None)
        assert status == 200
        return body

    def _ask(self, method: str, path: str, body: str | None) -> tuple[int, Any, str]:
        sent = {"cookie": self.cookie, "origin": self.live.facts["https"], "sec-fetch-site": "same-origin"}
        if body is not None:
            sent["content-type"] = "application/x-www-form-urlencoded"
        with closing(HTTPSConnection(*self.live.https, context=self.live.context(), timeout=60)) as connection:
            connection.request(method, f"/console/{path}", body, sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()


@contextmanager
def estate(tmp_path: Path, *, own: bool) -> Iterator[tuple[Estate, dict[str, str]]]:
    """An estate that was read once, and the fingerprints of what is there by name. ``own``: with the server's own listener."""
    data = tmp_path / "data"
    assert init(data).returncode == 0
    rogue, rogue_key = signed_elsewhere(data)
    strange, strange_key = Maker().leaf()
    files = {
        "foreign": (put(tmp_path / "foreign.pem", pem(strange)), put(tmp_path / "foreign.key", key_pem(strange_key))),
        "rogue": (put(tmp_path / "rogue.pem", to_pem(rogue).encode()), put(tmp_path / "rogue.key", rogue_key)),
    }
    with serving(tmp_path, "--unseen-after", "0s", "--old-after", "0s") as live:
        here = Estate(live, Shell(tmp_path, {name: value for name, value in live.environment.items() if name.startswith("HANDCLASP_")}))
        here.holders = {name: live.holder(f"spiffe://{DOMAIN}/prod/{name}") for name in NAMES}
        files |= {name: (here.holders[name].cert_file, here.holders[name].key_file) for name in ("web", "api")}
        try:
            for name, (cert_file, key_file) in files.items():
                here.serve(name, cert_file, key_file)
            ports = [*here.ports.values(), *([live.https[1]] if own else [])]
            wanted = [f"--port={port}" for port in ports]
            here.shell(
                "source", "add", "network", "edge", "--allow", "127.0.0.1", "--loopback", *wanted, "--timeout", "1s", "--host-rate", "100"
            )
            here.scan()
            yield (
                here,
                {name: one.sha256 for name, one in here.holders.items()} | {"foreign": sha(der(strange)).hex(), "rogue": sha(rogue).hex()},
            )
        finally:
            for name in list(here.running):
                here.stop(name)


@pytest.mark.parametrize("own", [False, True], ids=["services alone", "and the server's own listener"])
def test_exactly_the_right_four_states(tmp_path: Path, own: bool) -> None:
    with estate(tmp_path, own=own) as (here, known):
        here.becomes({"unissued": 1, "foreign": 1, "seen": 2 + own, "unseen": 1})
        assert here.listed("unissued") == {known["rogue"]}
        assert here.listed("foreign") == {known["foreign"]}
        assert here.listed("unseen") == {known["idle"]}
        seen = here.listed("seen")
        assert seen >= {known["web"], known["api"]}
        assert len(seen) == 2 + own
        again = here.scan()
        assert (again["fresh"], again["gone"]) == (0, 0)
        assert here.counts() == {"unissued": 1, "foreign": 1, "seen": 2 + own, "unseen": 1}
        entries = here.shell.json("audit", "list", "--type", "certificate.unissued")["items"]
        assert [one["entry"]["what"]["sha256"] for one in entries] == [known["rogue"]]


def test_what_changes_is_told_and_what_cannot_be_read_is_not_gone(tmp_path: Path) -> None:
    with estate(tmp_path, own=False) as (here, known):
        with here.live.client(holder=here.holders["web"]) as client:  # renewed, and the old one is still served
            _, csr = new_request("p256", identity=None)
            client("POST", f"/v1/certificates/{known['web']}:renew", {"csr": csr}).ok(201)
        here.becomes({"unissued": 1, "foreign": 1, "seen": 2, "unseen": 2})  # nobody looked since
        here.scan()
        here.becomes({"unissued": 1, "old_served": 1, "foreign": 1, "seen": 1, "unseen": 2})
        assert here.listed("old_served") == {known["web"]}

        here.shell("cert", "revoke", known["api"], "--reason", "key_compromise")
        stands = {"unissued": 1, "revoked_served": 1, "old_served": 1, "foreign": 1, "unseen": 2}
        here.becomes(stands)
        assert here.listed("revoked_served") == {known["api"]}

        here.stop("foreign")
        with deaf(here.ports["foreign"]):  # nobody answers: that says nothing
            silent = here.scan()
        assert (silent["failed"] > 0, silent["gone"]) == (True, 0)
        assert here.counts() == stands

        assert here.scan()["gone"] == 1  # refused: there is nobody
        del stands["foreign"]
        here.becomes(stands | {"gone": 1})
        assert here.listed("gone") == {known["foreign"]}

        here.stop("api")
        here.scan()
        here.becomes({"unissued": 1, "old_served": 1, "gone": 1, "unseen": 2})
        assert known["api"] in here.listed("past")


@contextmanager
def deaf(port: int) -> Iterator[None]:
    """A host that does not answer: its queue of connections is full, so that the kernel drops what comes."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield
