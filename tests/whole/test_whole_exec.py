"""An agent with children of its own against a real server: certificates of seconds, and a client that notices nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support import tls_child
from support.live import DOMAIN
from support.programs import Shell, free_port, handclasp, program
from support.servers import Server
from support.traffic import Echo
from support.waiting import eventually

APP, TTL = f"spiffe://{DOMAIN}/prod/app", "10s"


def child(port: int, directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "type": "exec",
        "command": [sys.executable, tls_child.__file__, port],
        "directory": str(directory),
        "environment": {"key": "TLS_KEY", "certificate": "TLS_CERT"},
        "settle": "500ms",
        "look": {"connect": f"127.0.0.1:{port}", "server_name": "localhost"},
        "timeout": "5s",
    } | more


def test_a_signalled_child_loses_nothing_and_a_restarted_one_has_the_same_certificate(tmp_path: Path) -> None:
    signalled, restarted = free_port(), free_port()
    with Server(tmp_path / "data", "--trust-domain", DOMAIN, "--crl-shards", "2") as server:
        server.ready()
        shell = Shell(
            tmp_path, {"HANDCLASP_URL": server.url, "HANDCLASP_CA": server.ca, "HANDCLASP_TOKEN_FILE": str(tmp_path / "data/admin.token")}
        )
        names = ("--allow", APP, "--allow-dns", "localhost", "--profile", "workload", "--max-ttl", TTL)
        shell("token", "create", "host1", "--agent", *names, "--owner", "team-app", "--out", tmp_path / "enrol.token")
        shell("agent", "enroll", "--name", "host1", "--state-dir", tmp_path / "state", HANDCLASP_TOKEN_FILE=str(tmp_path / "enrol.token"))
        targets = [child(signalled, tmp_path / "one", on_change="HUP"), child(restarted, tmp_path / "two")]
        identity = {"identity": APP, "dns": ["localhost"], "ttl": TTL, "targets": targets}
        config = tmp_path / "agent.yaml"
        config.write_text(json.dumps({"state_dir": "state", "poll": "1s", "identities": [identity]}))
        shell("agent", "check", "-c", config)
        assert "exec:" in shell("agent", "plan", "-c", config)

        def told() -> dict[str, Any]:
            done = json.loads(shell.run("agent", "status", "-c", config, "--json").stdout)
            return next((one for one in done["identities"] if one["identity"] == APP), {"state": "", "targets": []})

        with program(handclasp("agent", "run", "-c", config), tmp_path / "agent.log") as agent:
            eventually(lambda: told()["state"] == "ok" and [one["state"] for one in told()["targets"]] == ["ok", "ok"])
            trust = Path(server.ca).read_text()
            with Echo(signalled, trust) as traffic, Echo(restarted, trust) as other:
                eventually(lambda: len(traffic.served) > 5 or traffic.failures, 120, "five rotations")
                eventually(lambda: len(set(other.served) & set(traffic.served)) > 4, what="the other one has them too")
            assert traffic.failures == []
            assert traffic.requests > 100
            agent.terminate()
            assert agent.wait(30) == 0
        assert "serving" in (tmp_path / "agent.log").read_text()
        assert server.stop() == 0
