"""The story of the demo, in order: start everything, watch, revoke, verify, sum up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from handclasp import wire
from handclasp.cli import terminal
from handclasp.cli.demo import discover
from handclasp.cli.demo.intruder import CALLER, TRUST_DOMAIN, leave_behind
from handclasp.cli.demo.screen import screen
from handclasp.cli.demo.service import Service, wait_for_port
from handclasp.cli.demo.traffic import Traffic
from handclasp.client.api import ApiClient
from handclasp.client.csr import new_request
from handclasp.client.material import Credential
from handclasp.errors import HandclaspError, Kind
from handclasp.log.notes import parse_vkey
from handclasp.log.verify import verify_directory

WEB = f"spiffe://{TRUST_DOMAIN}/web"
ROTATIONS = 3
"""What every identity must reach."""


_MORE = """what was not shown, and the page in docs/ that has it:
  handclasp agent presets            fifteen services, keystores, Secrets, child processes: targets.md
  handclasp workload fetch           the agent's socket for SPIFFE programs and Envoy: workload-api.md
  handclasp rotate --all --dry-run   everything anew, at once: rotation.md
  handclasp federation add           other trust domains: federation.md; and Istio's proxies: istio.md"""


def tell(seconds: int, *, keep: bool, as_json: bool) -> int:
    """Run the demo; return the exit code."""
    home = Path(tempfile.mkdtemp(prefix="handclasp-demo-"))
    kept = False
    try:
        with ExitStack() as stack:
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupted))
            programs = _Programs(home)
            stack.callback(programs.end)
            summary, server = _play(home, seconds, programs, stack, as_json)
            _sum_up(summary, as_json)
            if keep:
                stack.pop_all()  # nothing is ended: server, agents and service go on
                kept = True
                pids = " ".join(map(str, programs.pids))
                terminal.say(f"still running: {server['https']}, data in {home}; end it with: kill {pids} && rm -r {home}")
        return 0 if summary["ok"] else 1
    finally:
        if not kept:
            shutil.rmtree(home, ignore_errors=True)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _play(home: Path, seconds: int, programs: _Programs, stack: ExitStack, as_json: bool) -> tuple[dict[str, Any], dict[str, str]]:
    lifetime = min(20, max(10, seconds // 3))
    server = _server(home, programs)
    token = Path(server["admin_token_file"]).read_text().strip()
    client = stack.enter_context(ApiClient(server["https"], ca=server["ca_file"], token=token))
    service = Service(home / "service")
    programs.service = service
    if service.kind == "python":
        terminal.say("nginx is not installed here: a Python TLS server takes its place")
    tokens = {}
    terminal.say("enrolling two agents with one-time tokens; keys are made where they are used")
    managed: list[dict[str, Any]] = [
        {"identity": WEB, "dns": ["localhost"], "targets": [service.target()]},
        {"identity": CALLER, "targets": [{"type": "files", "directory": str(home / "caller-tls")}]},
    ]
    places = {"web": [service.tls], "caller": [home / "caller-tls", leave_behind(home / "intruder")]}
    for name, identity in zip(("web", "caller"), managed, strict=True):
        tokens[name], config = _enrol(home, server, client, name, identity, f"{lifetime}s", places[name])
        programs.start(f"agent-{name}", ["agent", "run", "-c", str(config)])
    if not wait_for_port(service.port, 30) or not _wait_for(home / "caller-tls" / "current" / "cert.pem", 30):
        raise HandclaspError(Kind.UNAVAILABLE, f"the service did not start:\n{_tails(home)}")
    terminal.say(f"{service.kind} serves with a certificate of {lifetime} seconds and lets in who has one of the same CA")
    discover.begin(client, service.port, places)
    if "console" in server:
        terminal.say(f"look at it while it goes on: {server['console']} (admin token: {server['admin_token_file']})")
    with discover.scanning(server, token, lifetime / 5), Traffic(service.port, home / "caller-tls").running() as traffic:
        screen(traffic, seconds, {"web": WEB, "caller": CALLER}, service.kind, draw=not as_json)
        refused = _revoke(home, server, client, tokens["caller"], traffic)
    found = discover.found(client)
    log = _verify(home, client)
    return _summary(traffic, service.kind, seconds, refused, found, log), server


class _Programs:
    """The programs of the demo: ended together, or left running together."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._started: list[subprocess.Popen[bytes]] = []
        self.service: Service | None = None

    @property
    def pids(self) -> list[int]:
        """The process ids of all of them."""
        own = [process.pid for process in reversed(self._started)]
        return own if self.service is None or self.service.pid is None else [*own, self.service.pid]

    def start(self, name: str, arguments: list[str]) -> None:
        """Run ``handclasp …``; its words go to a file."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HANDCLASP_")}
        with (self._home / f"{name}.log").open("w") as log:
            command = [sys.executable, "-m", "handclasp", *arguments]
            self._started.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean, start_new_session=True)
            )

    def end(self) -> None:
        """End them, the last one first: agents before the server that they report to, and the service when nobody reloads it any more."""
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.service is not None:
            self.service.stop()


def _server(home: Path, programs: _Programs) -> dict[str, str]:
    terminal.say("starting a server: root, issuing authority, database, log")
    ready = home / "ready.json"
    command = [
        "up", "--data", str(home / "server"), "--trust-domain", TRUST_DOMAIN, "--https", "127.0.0.1:0", "--http", "127.0.0.1:0",
        "--crl-shards", "4", "--name", "127.0.0.1", "--name", "localhost", "--ready-file", str(ready),
    ]  # fmt: skip
    programs.start("server", command)
    if not _wait_for(ready, 60):
        raise HandclaspError(Kind.UNAVAILABLE, f"the server did not start:\n{_tails(home)}")
    facts: dict[str, str] = json.loads(ready.read_text())
    return facts


def _enrol(
    home: Path, server: dict[str, str], client: ApiClient, name: str, identity: dict[str, Any], lifetime: str, places: list[Path]
) -> tuple[str, Path]:
    """Enrol an agent for one identity; return the id of its token, and its configuration file. ``places``: where it may look."""
    request = wire.TokenRequest(
        name=f"agent-{name}",
        owner="team-demo",
        allow=[identity["identity"]],
        allow_dns=identity.get("dns", []),
        profiles=["workload"],
        max_ttl=lifetime,
        agent=True,
    )
    created = client.call("POST", "/v1/tokens", body=request, response=wire.TokenCreated)
    state, token_file = str(home / f"agent-{name}"), home / f"{name}.token"
    token_file.touch(0o600)
    token_file.write_text(created.token)
    connection = ["--url", server["https"], "--ca", server["ca_file"], "--token-file", str(token_file)]
    _run("agent", "enroll", *connection, "--name", name, "--state-dir", state)
    file = home / f"agent-{name}.yaml"
    config = {
        "server": {"url": server["https"]},
        "state_dir": state,
        "poll": "1s",
        "discover": {"allow": [str(place) for place in places]},
        "identities": [identity | {"ttl": lifetime}],
    }
    file.write_bytes(msgspec.json.encode(config))  # JSON is YAML
    return created.id, file


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "handclasp", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HandclaspError(Kind.UNAVAILABLE, f"handclasp {' '.join(arguments[:2])}: {done.stderr.strip()}")


def _wait_for(path: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not path.exists():
        time.sleep(0.05)
    return path.exists()


def _tails(home: Path) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(home.glob("*.log")))


# --- the end ----------------------------------------------------------------------------------------------------------------------------


def _revoke(home: Path, server: dict[str, str], client: ApiClient, token_id: str, traffic: Traffic) -> bool:
    """Revoke the caller, everywhere; return whether the service and the server both refuse it from then on."""
    terminal.say(f"revoking {CALLER}: its enrolment, and every certificate that is still valid")
    traffic.revoke()
    client.call("POST", f"/v1/tokens/{token_id}:revoke", response=wire.Done)
    listed = client.call(
        "GET", "/v1/certificates", params={"identity": CALLER, "origin": "issued", "limit": 20}, response=wire.CertificateList
    )
    for certificate in listed.items:
        if certificate.state in ("valid", "superseded"):
            client.revoke(certificate.sha256, wire.RevokeRequest(reason="privilege_withdrawn", comment="end of the demo"))
    by_service = traffic.refused.wait(20)
    by_server = _renewal_refused(home, server)
    terminal.say(
        f"the service {'refuses' if by_service else 'still accepts'} it, the server {'refuses' if by_server else 'still renews'} it"
    )
    return by_service and by_server


def _renewal_refused(home: Path, server: dict[str, str]) -> bool:
    files = (home / "caller-tls" / "current").resolve()
    credential = Credential.read(files / "cert.pem", files / "key.pem")
    sha256 = _sha256(credential)
    try:
        with ApiClient(server["https"], ca=server["ca_file"], credential=credential, attempts=1) as holder:
            holder.renew(sha256, wire.RenewRequest(csr=new_request("p256", identity=CALLER)[1]))
    except HandclaspError as error:
        return error.kind is Kind.REVOKED
    return False


def _sha256(credential: Credential) -> str:
    import hashlib

    return hashlib.sha256(credential.leaf).hexdigest()


def _verify(home: Path, client: ApiClient) -> dict[str, Any]:
    """Verify the whole log from its files, as an auditor would, once everything up to now is in it."""
    terminal.say("verifying the log from its files")
    newest = client.call("GET", "/v1/log/entries", params={"limit": 1}, response=wire.LogEntryList).items[0].index
    client.call("GET", "/v1/log/proof", params={"index": newest}, response=wire.LogProof)  # waits until it is in the tree
    vkey = parse_vkey((home / "server" / "log.vkey").read_text().strip())
    report = verify_directory(home / "server" / "log", [vkey])
    return {"entries": report.entries, "verified": report.ok and report.entries > newest}


def _summary(traffic: Traffic, kind: str, seconds: int, refused: bool, found: dict[str, int], log: dict[str, Any]) -> dict[str, Any]:
    identities = {
        identity: {"rotations": seen.rotations, "requests": seen.requests, "failed": seen.failed}
        for identity, seen in ((WEB, traffic.web), (CALLER, traffic.caller))
    }
    good = (
        traffic.caller.requests > 0
        and traffic.caller.failed == 0
        and traffic.intrusions > 0
        and traffic.accepted == 0
        and all(seen["rotations"] >= ROTATIONS for seen in identities.values())
        and refused
        and found["network"] > 0
        and log["verified"]
    )
    return {
        "ok": good,
        "server_kind": kind,
        "seconds": seconds,
        "identities": identities,
        "requests": traffic.caller.requests,
        "failed_requests": traffic.caller.failed,
        "intruder_attempts": traffic.intrusions,
        "intruder_accepted": traffic.accepted,
        "revoked_refused": refused,
        "discovered": found,
        "log": log,
    }


def _sum_up(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        terminal.write(json.dumps(summary))
        return
    for identity, seen in summary["identities"].items():
        terminal.write_verdict("ok" if seen["rotations"] >= ROTATIONS else "fail", "rotations", f"{seen['rotations']} of {identity}")
    lines = (
        (summary["failed_requests"] == 0, "requests", f"{summary['requests']} made, {summary['failed_requests']} failed"),
        (
            summary["intruder_accepted"] == 0,
            "intruder",
            f"{summary['intruder_attempts']} attempts, {summary['intruder_accepted']} accepted",
        ),
        (summary["revoked_refused"], "revoked", "refused by the service and by the server"),
        (
            summary["discovered"]["network"] > 0,
            "discovery",
            " and ".join(terminal.counted(summary["discovered"][what], one) for what, one in (("network", "port"), ("files", "file")))
            + " with certificates",
        ),
        (summary["log"]["verified"], "log", f"{summary['log']['entries']} entries, verified offline"),
    )
    for good, subject, text in lines:
        terminal.write_verdict("ok" if good else "fail", subject, text)
    terminal.say(_MORE)
