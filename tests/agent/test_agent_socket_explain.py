"""``handclasp workload``: what a process gets and why not, and fetching as a workload would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from handclasp.agent.socket.explain import explain
from handclasp.client.workload import fetch_jwt, socket_path
from handclasp.errors import HandclaspError, Kind
from support.programs import Shell
from support.workload import DOMAIN, WEB, Mint, socket_of, workload

UID = f"unix:uid:{os.getuid()}"


def test_what_a_process_gets_and_what_it_lacks(tmp_path: Path) -> None:
    shell, config = Shell(tmp_path), tmp_path / "agent.yaml"
    config.write_text("version: 1\nstate_dir: state\nsocket: {}\n")
    with pytest.raises(HandclaspError) as caught:
        explain(config)
    assert caught.value.kind is Kind.NOT_FOUND
    workloads = [
        workload("web", WEB, UID),
        workload("pod", f"spiffe://{DOMAIN}/{{k8s:ns}}", UID),
        workload("other", f"spiffe://{DOMAIN}/other", UID, "unix:path:/usr/sbin/nginx"),
    ]
    with socket_of(tmp_path, *workloads) as world:
        world.policy(*workloads)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = explain(config, None, child.pid)
        assert UID in found.selectors
        assert [(one.workload, one.got, one.missing, one.unfilled) for one in found.workloads] == [
            ("web", WEB, [], []),
            ("pod", None, [], ["k8s:ns"]),
            ("other", None, ["unix:path:/usr/sbin/nginx"], []),
        ]
        assert [one["workload"] for one in shell.json("workload", "list", "-c", config)["workloads"]] == ["web", "pod", "other"]
        assert shell.json("workload", "list", "-c", config, "--pid", str(child.pid))["pid"] == child.pid
        table = shell("workload", "list", "-c", config, "--pid", str(child.pid))
        assert "k8s:ns once" in table
    finally:
        child.communicate(b"\n")
    assert shell.refused("workload", "list", "-c", config, "--pid", str(child.pid))["kind"] == "not_found"
    config.write_text("version: 1\nidentities: [{dns: [a.example]}]\n")
    assert shell.refused("workload", "list", "-c", config)["kind"] == "bad_setting"


def test_fetching_writes_files_that_belong_together(tmp_path: Path) -> None:
    shell, out = Shell(tmp_path), tmp_path / "out"
    with socket_of(tmp_path, workload("web", WEB, UID, hint="h", federates_with=["partner.example"])) as world:
        world.anchors.bundles["partner.example"] = Mint("partner.example").bundle
        told = json.loads(shell("workload", "fetch", "--out-dir", out, "--json", SPIFFE_ENDPOINT_SOCKET=world.url))
        assert [(one["identity"], one["hint"]) for one in told["svids"]] == [(WEB, "h")]
        assert told["federated"] == ["spiffe://partner.example"]
        key = load_pem_private_key((out / "svid.0.key").read_bytes(), None)
        leaf, issuing = load_pem_x509_certificates((out / "svid.0.pem").read_bytes())
        assert leaf.public_key() == key.public_key()
        assert load_pem_x509_certificates((out / "bundle.0.pem").read_bytes())[0].subject == issuing.issuer
        assert (out / "svid.0.key").stat().st_mode & 0o777 == 0o600
        assert (out / "federated.partner.example.pem").exists()
        assert WEB in shell("workload", "fetch", "--socket", str(world.path))
        with pytest.raises(HandclaspError) as caught:
            fetch_jwt(world.path, ["a"])
        assert caught.value.kind is Kind.NOT_ALLOWED
    assert shell.refused("workload", "fetch", "--socket", str(world.path))["kind"] == "unavailable"


def test_addresses_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/a.sock")
    assert socket_path() == Path("/run/a.sock")
    assert socket_path("unix:/b.sock") == Path("/b.sock")
    assert socket_path("c.sock") == Path("c.sock")
    for wrong in ("tcp://127.0.0.1:80", "unix://relative/x"):
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", wrong)
        with pytest.raises(HandclaspError):
            socket_path()
