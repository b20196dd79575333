"""The program against the program: a server started with ``handclasp up``, and everything a user does with it, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.credential_files import belong_together

SOURCE = Path(__file__).resolve().parents[2] / "src"
WEB = "spiffe://example.org/prod/web"


@dataclass
class Shell:
    directory: Path
    env: dict[str, str]

    def __call__(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "handclasp", *args],
            cwd=self.directory, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{args}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell with the settings of a server that runs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HANDCLASP_")} | {"PYTHONPATH": str(SOURCE)}
    ready = tmp_path / "ready.json"
    listen = ("--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", "data", "--ready-file", str(ready))
    command = [sys.executable, "-m", "handclasp", "up", "--trust-domain", "example.org", *listen]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not ready.exists() and server.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert ready.exists(), (tmp_path / "server.log").read_text()
        facts = json.loads(ready.read_text())
        env |= {"HANDCLASP_URL": facts["https"], "HANDCLASP_CA": facts["ca_file"], "HANDCLASP_TOKEN_FILE": facts["admin_token_file"]}
        yield Shell(tmp_path, env)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0, (tmp_path / "server.log").read_text()


def test_from_a_token_to_a_verified_log(shell: Shell) -> None:
    here = shell.directory
    assert json.loads(shell("doctor", "--json"))["ok"] is True
    shell("token", "create", "web", "--allow", WEB, "--profile", "workload", "--owner", "team-web", "--uses", "1", "--out", "web.token")
    shell("cert", "issue", WEB, "--out-dir", "tls", "--token-file", "web.token")
    refused = json.loads(shell("cert", "issue", WEB, "--out-dir", "more", "--token-file", "web.token", "--json", code=1))
    assert refused["kind"] == "token_spent"
    assert json.loads(shell("token", "list", "--owner", "team-web", "--json"))["items"][0]["used"] == 1
    files = ("--cert", "tls/cert.pem", "--key", "tls/key.pem", "--bundle", "tls/bundle.pem")
    shell("cert", "renew", *files, "--if-due")
    first = (here / "tls/cert.pem").read_bytes()
    shell("cert", "renew", *files)
    assert (here / "tls/cert.pem").read_bytes() != first
    assert belong_together(here / "tls/key.pem", here / "tls/cert.pem")
    shown = json.loads(shell("cert", "show", "tls/cert.pem", "--json"))
    assert (shown["identity"], shown["generation"], shown["state"]) == (WEB, 1, "valid")
    assert json.loads(shell("identity", "show", WEB, "--json"))["identity"]["certificates"] == 2
    shell("cert", "revoke", "tls/cert.pem", "--reason", "superseded")
    shell("cert", "renew", *files, code=1)
    until = time.monotonic() + 30
    while "ok\tlog\t" not in shell("doctor") and time.monotonic() < until:
        time.sleep(0.1)
    shell("audit", "prove", "tls/cert.pem", "--out", "web.proof")
    shell("audit", "export", "copy")
    assert shell("audit", "verify", "copy", "--vkey-file", "data/log.vkey").startswith("ok\tlog\t")
    proof = shell("audit", "verify", "--proof", "web.proof", "--vkey-file", "data/log.vkey", "--json")
    assert json.loads(proof)["entry"]["what"]["identity"] == WEB


def test_first_contact_by_fingerprint_and_policy_as_a_file(shell: Shell) -> None:
    here = shell.directory
    root = next(item for item in json.loads(shell("ca", "list", "--json"))["items"] if item["kind"] == "root")
    stranger = {"HANDCLASP_CA": f"sha256:{root['sha256']}", "HANDCLASP_TOKEN_FILE": ""}
    assert shell("ca", "bundle", env=stranger) == (here / "data/ca.pem").read_text()
    shell("ca", "bundle", env=stranger | {"HANDCLASP_CA": "sha256:" + "0" * 64}, code=1)
    (here / "policy.yaml").write_text((Path(__file__).parent / "policy.yaml").read_text())
    assert json.loads(shell("policy", "diff", "-f", "policy.yaml", "--exit-code", "--json", code=1))["applied"] is False
    assert json.loads(shell("policy", "apply", "-f", "policy.yaml", "--json"))["applied"] is True
    assert shell("policy", "show") == (here / "policy.yaml").read_text()
    assert shell("policy", "diff", "-f", "policy.yaml", "--exit-code") == ""
