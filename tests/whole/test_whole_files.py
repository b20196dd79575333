"""A server, an agent and a directory, each as the program it is: what lies on a host is found, followed and let go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from support.certfiles import Maker, key_pem, pem, put
from support.live import DOMAIN, Client, serving
from support.programs import Shell, handclasp, program
from support.waiting import eventually

AGENT = f"spiffe://{DOMAIN}/agent/host1"


def scanned(client: Client) -> dict[str, Any]:
    """Run the source and return its scan when it has ended."""
    scan = client("POST", "/v1/sources/files-of-hosts:run", {}).json["id"]
    eventually(lambda: client.get(f"/v1/scans/{scan}")["state"] in ("done", "failed"), what="the scan ends")
    done: dict[str, Any] = client.get(f"/v1/scans/{scan}")
    assert (done["state"], done["failed"]) == ("done", 0), done
    return done


def test_files_of_a_host_are_found_and_let_go(tmp_path: Path) -> None:
    maker = Maker()
    (leaf, key), (other, _) = maker.leaf("one.elsewhere.test"), maker.leaf("two.elsewhere.test")
    root = Path(os.path.realpath(tmp_path)) / "srv"
    put(root / "one/tls.pem", pem(leaf, maker.root))
    put(root / "one/tls.key", key_pem(key), 0o600)
    put(root / "two/tls.pem", pem(other))
    put(root / "ca.pem", pem(maker.root))
    config = put(
        tmp_path / "agent.yaml",
        f"state_dir: {tmp_path}/agent\npoll: 1s\nidentities: [{{identity: spiffe://{DOMAIN}/prod/web}}]\n"
        f"discover: {{allow: [{root}], deny: [{root}/private]}}\n".encode(),
    )
    with serving(tmp_path) as live, live.client(live.admin_token) as client:
        token = live.token(
            agent=True, allow=[f"spiffe://{DOMAIN}/agent/host1", f"spiffe://{DOMAIN}/prod/web"], profiles=["agent", "workload"]
        )
        token_file = put(tmp_path / "token", token.encode(), 0o600)
        shell = Shell(tmp_path, {name: value for name, value in live.environment.items() if name.startswith("HANDCLASP_")})
        shell("agent", "enroll", "--token-file", token_file, "--name", "host1", "--state-dir", tmp_path / "agent")
        with program(handclasp("agent", "run", "-c", config), tmp_path / "agent.log"):
            settings = {"paths": [str(root)]}
            client("POST", "/v1/sources", {"name": "files-of-hosts", "kind": "files", "settings": settings}).ok(201)
            eventually(lambda: client.get("/v1/agents")["items"][0]["last_contact"], what="the agent is heard of")
            first = scanned(client)
            assert (first["read"], first["certificates"], first["fresh"]) == (4, 3, 3)
            again = scanned(client)
            assert (again["certificates"], again["fresh"], again["gone"]) == (0, 0, 0)
            (root / "two/tls.pem").unlink()
            assert scanned(client)["gone"] == 1
            source = client.get("/v1/sources/files-of-hosts")
            assert (source["problem"], source["success_at"]) == (None, source["scan"]["created_at"])
    for name, data in live.written():
        assert key_pem(key).splitlines()[1] not in data, name


def test_what_the_agent_delivered_before_is_not_in_use(tmp_path: Path) -> None:
    """Its state and its deliveries lie below what is looked at. After two renewals there is the newest certificate, once."""
    root = Path(os.path.realpath(tmp_path)) / "srv"
    web = f"spiffe://{DOMAIN}/prod/web"
    config = put(
        tmp_path / "agent.yaml",
        f"state_dir: {root}/agent\npoll: 1s\ndiscover: {{allow: [{root}]}}\n"
        f"identities: [{{identity: {web}, ttl: 10s, targets: [{{directory: {root}/tls}}]}}]\n".encode(),
    )
    with serving(tmp_path) as live, live.client(live.admin_token) as client:
        token = live.token(agent=True, allow=[AGENT, web], profiles=["agent", "workload"])
        token_file = put(tmp_path / "token", token.encode(), 0o600)
        shell = Shell(tmp_path, {name: value for name, value in live.environment.items() if name.startswith("HANDCLASP_")})
        shell("agent", "enroll", "--token-file", token_file, "--name", "host1", "--state-dir", root / "agent")
        (tmp_path / "link").symlink_to(root / "agent")
        config.write_text(config.read_text().replace(f"{root}/agent", f"{tmp_path}/link"))  # by whatever path the agent knows it
        with program(handclasp("agent", "run", "-c", config), tmp_path / "agent.log"):
            eventually(lambda: len(list(root.glob("tls/generations/*"))) > 2, 60, "two renewals are delivered")
            settings = {"paths": [str(root), f"{root}/tls/*"]}
            client("POST", "/v1/sources", {"name": "files-of-hosts", "kind": "files", "settings": settings}).ok(201)
            scanned(client)
            places = [one["shown"] for one in client.get("/v1/locations", source="files-of-hosts", state="read")["items"]]
            assert not any("/generations/" in place or "/agent/" in place for place in places), places
            assert {f"{root}/tls/current/{name}.pem" for name in ("cert", "key", "bundle")} <= set(places)
