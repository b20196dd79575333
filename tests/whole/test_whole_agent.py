"""An agent, a server and an nginx, each as the program it is: rotation under requests, and everything that can go wrong on one host."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from support.installation import add_root
from support.live import DOMAIN, Live
from support.needs import needs
from support.programs import Nginx, Shell, free_port, handclasp, program
from support.servers import Server
from support.traffic import Caller
from support.waiting import eventually

WEB, CALLER, AGENT = f"spiffe://{DOMAIN}/prod/web", f"spiffe://{DOMAIN}/prod/caller", f"spiffe://{DOMAIN}/agent/web1"
TTL = "10s"


@dataclass
class Host:
    """A host with an nginx and an enrolled agent, and the server that it belongs to."""

    directory: Path
    nginx: Nginx
    shell: Shell
    https: int

    @property
    def config(self) -> Path:
        return self.directory / "agent.yaml"

    @contextmanager
    def serving(self) -> Iterator[Server]:
        """Run the server, always at the same address."""
        listen = ("--https", f"127.0.0.1:{self.https}")
        with Server(self.directory / "data", "--trust-domain", DOMAIN, "--crl-shards", "2", *listen) as server:
            yield server.ready()
            assert server.stop() == 0

    def agent(self) -> Any:
        """Run the agent."""
        return program(handclasp("agent", "run", "-c", self.config), self.directory / "agent.log")

    # --- what is seen of it -------------------------------------------------------------------------------------------------------------

    def status(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code of ``agent status``, and what it says about the identity."""
        done = self.shell.run("agent", "status", "-c", self.config, "--json")
        told = json.loads(done.stdout)
        nothing = {"state": "", "sha256": None}  # until the agent has read its configuration for the first time
        return done.returncode, {"running": told["running"], **next((one for one in told["identities"] if one["identity"] == WEB), nothing)}

    def is_ok(self) -> bool:
        """Tell whether all is well: in the agent's own eyes, and in what nginx serves."""
        code, told = self.status()
        return (code, told["state"]) == (0, "ok") and told["sha256"] == self.nginx.serves()

    def reported(self) -> dict[str, Any]:
        """Return what the server knows of the agent."""
        items = self.shell.json("agent", "list")["items"]
        return {**(items[0]["identities"] or [{}])[0], "state": items[0]["state"]}

    def lines(self) -> int:
        """Return how often a certificate was issued for the identity, and not renewed."""
        items = self.shell.json("cert", "list", "--identity", WEB, "--limit", "1000")["items"]
        return sum(1 for one in items if one["generation"] == 0)


def enrol(host: Host, server: Server, ttl: str = TTL) -> None:
    """Enrol the agent with a one-time token by first contact over the root's fingerprint, and write its configuration."""
    here, shell = host.directory, host.shell
    names = ("--allow", WEB, "--allow-dns", "localhost", "--profile", "workload", "--max-ttl", ttl)
    shell("token", "create", "web1", "--agent", *names, "--owner", "team-web", "--out", here / "enrol.token")
    root = next(one for one in shell.json("ca", "list")["items"] if one["kind"] == "root")
    contact = {"HANDCLASP_CA": f"sha256:{root['sha256']}", "HANDCLASP_TOKEN_FILE": str(here / "enrol.token")}
    shell("agent", "enroll", "--name", "web1", "--state-dir", here / "state", **contact)
    refused = shell.refused("agent", "enroll", "--name", "web2", "--state-dir", here / "elsewhere", **contact)
    assert refused["kind"] == "token_spent"
    identity = {"identity": WEB, "dns": ["localhost"], "ttl": ttl, "targets": [host.nginx.target()]}
    config = {"server": {"url": server.url}, "state_dir": "state", "poll": "1s", "identities": [identity]}
    host.config.write_text(json.dumps(config))
    assert shell.json("agent", "check", "-c", host.config) == {"ok": True, "identities": [WEB]}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host whose nginx runs with an old certificate of its own."""
    nginx = Nginx(tmp_path / "nginx")
    port = free_port()
    urls = {"HANDCLASP_URL": f"https://127.0.0.1:{port}", "HANDCLASP_CA": str(tmp_path / "data/ca.pem")}
    settings = urls | {"HANDCLASP_TOKEN_FILE": str(tmp_path / "data/admin.token")}
    with nginx.running():
        yield Host(tmp_path, nginx, Shell(tmp_path, settings), port)


def test_a_second_root_is_delivered_beside_the_first(host: Host) -> None:
    """The server comes back with another root: nginx trusts both from then on, and clients of the old one notice nothing."""
    bundle = host.nginx.home / "clients.pem"
    with host.serving() as server:
        enrol(host, server, "1m")  # nothing waits for its end
        live = Live(host.directory, server)
        caller = live.holder(CALLER)
        context = live.context(caller.cert_file, caller.key_file)
    with host.agent():
        with host.serving():
            eventually(lambda: host.is_ok(), what="the first delivery")
            assert len(x509.load_pem_x509_certificates(bundle.read_bytes())) == 1
        add_root(host.directory / "data", DOMAIN)
        with host.serving(), Caller(host.nginx.port, context) as traffic:
            eventually(lambda: len(x509.load_pem_x509_certificates(bundle.read_bytes())) == 2, 60, "both roots")
            eventually(lambda: host.is_ok() and traffic.requests > 50, what="and nginx runs on it")
    assert traffic.failures == []


def test_certificates_of_ten_seconds_rotate_and_no_request_fails(host: Host) -> None:
    """The old certificate is taken over, five more follow, and a client with one of its own notices nothing."""
    here, nginx = host.directory, host.nginx
    with host.serving() as server:
        enrol(host, server)
        live = Live(here, server)
        caller = live.holder(CALLER)
        context = live.context(caller.cert_file, caller.key_file)
        old = nginx.serves()
        with host.agent():
            eventually(lambda: nginx.serves() != old and host.is_ok(), what="the first delivery")
            with Caller(nginx.port, context) as traffic:
                eventually(lambda: len(traffic.served) > 5 or traffic.failures, 120, "five rotations")
            assert traffic.failures == []
            assert traffic.requests > 100
            check_by_openssl_and_curl(host, live.facts["ca_file"], caller.cert_file, caller.key_file)
            eventually(lambda: host.is_ok() and host.reported().get("rotations", 0) >= 5, what="the server has heard of all of it")
            told = host.reported()
            assert told["state"] == "ok"
            names = [target["name"] for target in told["targets"]]
            assert (told["identity"], names) == (WEB, [target["name"] for target in host.status()[1]["targets"]])
            assert names[0].startswith("files:")
        code, told = host.status()
        assert (code, told["running"]) == (1, False), "an agent that does not run needs a person"
        with live.client(live.admin_token) as admin:
            issued = {one["sha256"]: one for one in admin.get("/v1/certificates", identity=WEB, limit=1000)["items"]}
    assert set(traffic.served) <= set(issued), "nginx served nothing but what was issued"
    assert all(issued[later]["generation"] > issued[earlier]["generation"] for earlier, later in pairwise(traffic.served))
    assert sum(1 for one in issued.values() if one["generation"] == 0) == 1
    assert len({one["key_sha256"] for one in issued.values()}) == len(issued), "each has a key of its own"


def check_by_openssl_and_curl(host: Host, ca_file: str, cert: Path, key: Path) -> None:
    """Let others judge what nginx serves, and whom it lets in."""
    needs("curl")
    url = f"https://localhost:{host.nginx.port}/"
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--cacert",
        ca_file,
        "--resolve",
        f"localhost:{host.nginx.port}:127.0.0.1",
        url,
    ]
    done = subprocess.run([*command, "--cert", cert, "--key", key], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "SUCCESS\n"), done.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0, "nobody gets in without a certificate"
    shown = ["openssl", "s_client", "-connect", f"127.0.0.1:{host.nginx.port}", "-CAfile", ca_file, "-cert", cert, "-key", key]
    options = ["-verify_return_error", "-verify_hostname", "localhost", "-brief"]
    seen = subprocess.run([*shown, *options], input="", capture_output=True, text=True, check=False)
    assert "Verification: OK" in seen.stderr, seen.stderr


def test_nothing_that_goes_wrong_takes_the_service_down_or_needs_a_person(host: Host) -> None:
    nginx = host.nginx
    with host.serving() as server:
        enrol(host, server)
        with host.agent() as agent:
            eventually(host.is_ok, what="the first delivery")
            a_configuration_that_is_broken_meanwhile(host)
            # kill -9: what is good is not issued again.
            agent.kill()
            agent.wait()
        rotations = host.status()[1]["rotations"]
        with host.agent():
            eventually(lambda: host.is_ok() and host.status()[1]["rotations"] > rotations, what="it went on where it was")
            assert host.lines() == 1
            assert server.stop() == 0
            held = nginx.serves()
            eventually(lambda: host.status()[1]["state"] in ("overdue", "failed"), what="the server is missed")
            code, told = host.status()
            assert (code, told["sha256"], nginx.serves()) == (1, held, held)
            assert "cannot be reached" in told["last_failure"]
            with host.serving():
                eventually(lambda: host.is_ok() and nginx.serves() != held, what="it renewed by itself")
                eventually(lambda: host.reported()["state"] == "ok")
                with_a_client_of_the_day(host)


def a_configuration_that_is_broken_meanwhile(host: Host) -> None:
    """Validation fails: the certificate that was served goes on being served, a person is called, and mending is enough."""
    eventually(lambda: host.reported()["state"] == "ok", what="the server hears of it")
    nginx, before = host.nginx, host.nginx.serves()
    nginx.conf.write_text(nginx.text + "nonsense;\n")
    eventually(lambda: host.reported()["state"] == "attention", what="the server hears of it")
    told = host.reported()["last_failure"]
    assert "validate" in told
    assert "nonsense" in told, "what nginx said is in it"
    code, seen = host.status()
    assert (code, seen["state"], seen["targets"][0]["state"]) == (1, "failed", "failed")
    assert nginx.serves() == before
    nginx.conf.write_text(nginx.text)
    eventually(lambda: host.is_ok() and nginx.serves() != before, what="mended")
    eventually(lambda: host.reported()["state"] == "ok")


def with_a_client_of_the_day(host: Host) -> None:
    """What is delivered after all that still is a whole set: a client gets through."""
    shell = host.shell
    shell("token", "create", "caller", "--allow", CALLER, "--profile", "workload", "--out", "caller.token")
    shell("cert", "issue", CALLER, "--out-dir", "caller", HANDCLASP_TOKEN_FILE="caller.token")
    context = ssl.create_default_context(cafile=str(host.directory / "caller/bundle.pem"))
    context.load_cert_chain(host.directory / "caller/cert.pem", host.directory / "caller/key.pem")
    with Caller(host.nginx.port, context) as traffic:
        eventually(lambda: traffic.requests > 3)
    assert traffic.failures == []
