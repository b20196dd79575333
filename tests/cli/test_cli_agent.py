"""``agent``: the thin commands over the agent itself, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handclasp.agent.config import Config
from handclasp.agent.loop import state_directory
from handclasp.agent.state import StateDirectory
from handclasp.cli import agents as commands
from support import agents
from support.fake_server import DOMAIN, FakeServer, Fault


def test_the_usual_state_directory_is_the_agents_own() -> None:
    assert str(state_directory(Config(None, None, None, 30, ()), None)) == commands.DEFAULT_STATE


@pytest.mark.parametrize("way", ["option", "stdin", "environment", "file"])
def test_a_token_becomes_an_agent_whichever_way_it_comes(way: str, run, tmp_path: Path) -> None:
    with FakeServer() as server:
        token = server.token()
        (tmp_path / "token").write_text(token)
        given = {"option": ["--token", token], "stdin": ["--token", "-"], "environment": [], "file": ["--token-file", "token"]}[way]
        result = run(
            "agent", "enroll", *given, "--name", "host1", "--url", server.url, "--ca", server.root_fingerprint,
            "--state-dir", "state", "--json",
            stdin=token + "\n", env={"HANDCLASP_TOKEN": token} if way == "environment" else {},
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["identity"] == f"spiffe://{DOMAIN}/agent/host1"
        assert token not in result.output
        server.assert_content()


def test_a_token_for_another_name_hints_at_the_name(run, tmp_path: Path) -> None:
    with FakeServer() as server:
        server.faults.append(Fault("/v1/certificates", 1, 403, "name_not_allowed"))
        place = ("--url", server.url, "--ca", server.root_fingerprint, "--state-dir", "state")
        result = run("agent", "enroll", "--token", server.token(), "--name", "host1", *place)
    assert result.exit_code == 1
    assert "hint: is host1 the name that the token was made for? Say another with --name" in result.stderr


def test_check_plan_and_status(run, tmp_path: Path) -> None:
    with FakeServer() as server:
        config = agents.prepare(server, tmp_path)
        assert run("agent", "check", "-c", str(config)).stdout == f"ok\tidentity\t{agents.WEB}\n"
        assert json.loads(run("agent", "check", "-c", str(config), "--json").stdout) == {"ok": True, "identities": [agents.WEB]}
        planned = json.loads(run("agent", "plan", "-c", str(config), "--state-dir", "state", "--json").stdout)
        assert planned[0]["identity"] == agents.WEB
        assert planned[0]["actions"][0].startswith("issue")
        result = run("agent", "status", "--state-dir", "state", "--json")
        assert result.exit_code == 1, "it does not run"
        assert json.loads(result.stdout)["running"] is False
        assert run("agent", "status", "-c", str(config), "--state-dir", "state").stdout.startswith(f"spiffe://{DOMAIN}/agent/host1\tok\t")
        StateDirectory(tmp_path / "state").save_managed([("", agents.WEB), ("socket-web", agents.WEB)])
        rows = [line.split("\t") for line in run("agent", "status", "--state-dir", "state").stdout.splitlines()]
        assert [row[5] for row in rows] == ["", "", "the socket"], "it is seen for whom a certificate is that is in no file"


def test_presets_are_shown_and_a_plan_shows_what_they_fill_in(run, tmp_path: Path) -> None:
    names = [line.split("\t")[0] for line in run("agent", "presets").stdout.splitlines()]
    assert {"nginx", "postgresql", "kafka", "systemd"} <= set(names)
    assert [one["name"] for one in json.loads(run("agent", "presets", "--json").stdout)] == names
    shown = run("agent", "presets", "redis").stdout
    assert "- preset: redis\n" in shown
    assert "tls-cert-file    /etc/redis/tls/current/cert.pem\n" in shown
    assert json.loads(run("agent", "presets", "redis", "--json").stdout)["target"]["look"] == {"connect": "127.0.0.1:6379"}
    missing = run("agent", "presets", "ngnix")
    assert (missing.exit_code, "not a preset (not_found)" in missing.stderr) == (1, True)
    (tmp_path / "agent.yaml").write_text("identities:\n  - dns: [a.example.org]\n    targets: [{preset: nginx, look: ~}]\n")
    plan = run("agent", "plan", "-c", "agent.yaml", "--state-dir", "state", "--json")
    assert json.loads(plan.stdout)[0]["targets"] == [
        {
            "name": "files:/etc/nginx/tls",
            "preset": "nginx",
            "steps": [
                "write: key, certificate and bundle below /etc/nginx/tls/current, the key with mode 0600",
                "validate: nginx -t -q",
                "reload: nginx -s reload",
            ],
        }
    ]
    assert "  reload: nginx -s reload" in run("agent", "plan", "-c", "agent.yaml", "--state-dir", "state").stderr


def test_a_bad_configuration_names_its_lines(run, tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("version: 1\nidentities:\n  - identity: web\n    colour: blue\n")
    result = run("agent", "check", "-c", "agent.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: agent.yaml:")
    assert "(bad_setting)" in result.stderr.splitlines()[0]


def test_where_no_agent_is(run) -> None:
    result = run("agent", "status", "--state-dir", "nothing")
    assert (result.exit_code, "no agent is enrolled in nothing (bad_setting)" in result.stderr) == (1, True)
    assert run("agent", "forget", "spiffe://example.org/x", "--state-dir", "nothing").exit_code == 1


def test_run_hands_over_and_says_what_it_does(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    seen = []

    def part(module: str, name: str):
        return lambda *args: (seen.append((module, name, args)), logging.getLogger("handclasp.agent").info("bad\x1bname"))

    monkeypatch.setattr(commands, "agent_part", part)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        result = run("agent", "run", "-c", "agent.yaml", "--state-dir", "s")
    finally:
        root.handlers[:], _ = before, root.setLevel(level)
    assert seen == [("", "run", ("agent.yaml", "s"))]
    assert result.stderr.endswith("INFO bad\\x1bname\n")
