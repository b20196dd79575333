"""``doctor``: each thing that can be wrong is one line that says so, and only a failure makes it exit 1."""

from __future__ import annotations

import datetime
import email.utils
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from handclasp import wire
from handclasp.cli import checks
from handclasp.clock import rfc3339
from handclasp.errors import HandclaspError, Kind
from support import agents, small_world
from support.fake_api import FakeApi
from support.fake_server import FakeAuthority, FakeServer, pem

NOW = 1_767_225_600_000
ORDER = ["settings", "reach", "clock", "trust", "server", "token", "authorities", "crl", "log", "agent"]
KEY = ec.generate_private_key(ec.SECP256R1())
CHECKPOINT = "log.example.org\n41\n" + "A" * 43 + "=\n\n\u2014 log.example.org AAAAAAAA\n"


def crl(begin: float, end: float) -> str:
    now = datetime.datetime.fromtimestamp(NOW / 1000, datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuing")]))
    builder = builder.last_update(now + datetime.timedelta(seconds=begin)).next_update(now + datetime.timedelta(seconds=end))
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.fixture
def world(api: FakeApi, monkeypatch: pytest.MonkeyPatch, still: None) -> FakeApi:
    """An installation in which everything is well, at NOW."""
    small_world.populate(api)
    root = pem(FakeAuthority().root)
    api.on("GET", "/readyz", wire.Health(status="ok"))
    api.on("GET", "/v1/bundles", {"items": [{"trust_domain": "example.org", "pem": root}]})
    api.on("GET", "/v1/crls/example.org.pem", crl(-3600, 80_000))
    api.on("GET", "/v1/log/checkpoint", CHECKPOINT)
    api.on("GET", "/v1/log/entries/41", HandclaspError(Kind.NOT_FOUND, "no such entry"))
    monkeypatch.setenv("HANDCLASP_TOKEN", f"hct_{small_world.TOKEN_ID}_secret")
    monkeypatch.setattr(checks, "_reach", lambda url: (date(0.5), checks.Finding("reach", "ok", f"{url} answers")))
    monkeypatch.setattr(checks, "ENDING", -(10**12))  # the simulator's root was made by the wall clock
    return api


def date(seconds: float) -> str:
    return email.utils.formatdate(NOW / 1000 + seconds, usegmt=True)


def verdicts(run: Any, *args: str) -> dict[str, tuple[str, str]]:
    return {line.split("\t")[1]: (line.split("\t")[0], line.split("\t")[2]) for line in run("doctor", *args).stdout.splitlines()}


def test_everything_is_well(world: FakeApi, run) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["ok"] is True
    assert [check["check"] for check in answer["checks"]] == ORDER
    assert {check["verdict"] for check in answer["checks"]} == {"ok"}
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("method_path", "answer", "check", "verdict", "words"),
    [
        (
            "/readyz",
            HandclaspError(Kind.VERIFY_FAILED, "the certificate is not trusted"),
            "trust",
            "fail",
            "is not trusted: get the bundle with",
        ),
        (
            "/readyz",
            HandclaspError(Kind.UNAVAILABLE, "the database is away"),
            "server",
            "fail",
            "the database is away: look at the server's log",
        ),
        ("/readyz", wire.Health(status="ok", problems=["the log is behind"]), "server", "warn", "the log is behind"),
        (
            f"/v1/tokens/{small_world.TOKEN_ID}",
            HandclaspError(Kind.TOKEN_EXPIRED, "it has expired"),
            "token",
            "fail",
            "it has expired: get a new one",
        ),
        (f"/v1/tokens/{small_world.TOKEN_ID}", HandclaspError(Kind.NOT_ALLOWED, "no"), "token", "ok", "may not look at itself"),
        (f"/v1/tokens/{small_world.TOKEN_ID}", small_world.token(state="spent"), "token", "fail", "is spent: get a new one"),
        (
            f"/v1/tokens/{small_world.TOKEN_ID}",
            small_world.token(scopes=["admin"]),
            "token",
            "warn",
            "ends in 8 minutes: make the next one",
        ),
        ("/v1/crls/example.org.pem", crl(-7200, -3600), "crl", "fail", "ended 60 minutes ago"),
        ("/v1/crls/example.org.pem", crl(-7200, 600), "crl", "warn", "ends in 10 minutes"),
        ("/v1/crls/example.org.pem", HandclaspError(Kind.UNAVAILABLE, "away"), "crl", "fail", "away"),
        ("/v1/bundles", {"items": []}, "authorities", "fail", "no root is published: make one: handclasp init"),
        ("/v1/log/entries/41", small_world.entry(41, "x"), "log", "warn", "entry 41 has waited 1 minute"),
        ("/v1/log/checkpoint", HandclaspError(Kind.NOT_ALLOWED, "no"), "log", "warn", "this token may not read the log"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    method_path: str, answer: Any, check: str, verdict: str, words: str, world: FakeApi, run
) -> None:
    world.on("GET", method_path, answer)
    result = run("doctor")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    found = [line for line in lines if line[1] == check and line[0] == verdict]
    assert len(found) == 1
    assert words in found[0][2]
    assert result.exit_code == (1 if verdict == "fail" else 0)


def test_a_log_that_stands_still(world: FakeApi, run) -> None:
    entry = wire.LogEntry(index=41, leaf_hash="", entry={"at": rfc3339(NOW - 3_600_000)})
    world.on("GET", "/v1/log/entries/41", entry)
    assert verdicts(run)["log"][0] == "fail"


@pytest.mark.parametrize(
    ("skew", "verdict", "words"),
    [(0.5, "ok", "agree"), (30, "warn", "30 seconds behind"), (-30, "warn", "29 seconds ahead of"), (600, "fail", "10 minutes behind")],
)
def test_clocks(skew: float, verdict: str, words: str) -> None:
    checks.terminal.clock, before = (lambda: NOW), checks.terminal.clock
    try:
        finding = checks._skew(date(skew))
    finally:
        checks.terminal.clock = before
    assert (finding.verdict, words in finding.detail) == (verdict, True), finding


def test_a_server_without_a_date() -> None:
    assert [checks._skew(text).verdict for text in ("", "yesterday", "Fri, 99 Jan 2026")] == ["warn"] * 3


def test_nobody_there(run) -> None:
    result = run("doctor", "--url", "https://127.0.0.1:1")
    assert result.exit_code == 1
    assert "fail\treach\thttps://127.0.0.1:1 does not answer: Connection refused: is the server up" in result.stdout


def test_bad_settings_are_the_first_finding(run) -> None:
    result = run("doctor", "--url", "http://plain.example")
    assert result.stdout.startswith("fail\tsettings\t")
    assert result.exit_code == 1


def test_a_real_server_that_is_trusted_and_one_that_is_not(run, tmp_path: Path) -> None:
    with FakeServer() as server:
        found = verdicts(run, "--url", server.url, "--ca", server.ca_file(tmp_path))
        assert found["reach"][0] == "ok"
        assert found["clock"][0] == "ok"
        assert found["crl"][0] == "fail", "its revocation list is nonsense"
        (tmp_path / "other.pem").write_text(pem(FakeAuthority("other").root))
        found = verdicts(run, "--url", server.url, "--ca", str(tmp_path / "other.pem"))
        assert found["trust"][0] == "fail"
        assert "token" not in found, "a token is not sent where there is no trust"


def test_the_agent_of_this_host(world: FakeApi, run, tmp_path: Path) -> None:
    with FakeServer() as server:
        config = agents.prepare(server, tmp_path)
    found = [
        line.split("\t")
        for line in run("doctor", "--agent-config", str(config), "--agent-state", str(tmp_path / "state")).stdout.splitlines()
    ]
    assert [line[0] for line in found if line[1] == "agent"] != []
    result = run("doctor", "--agent-state", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert "fail\tagent\tno agent is enrolled in" in result.stdout


def test_a_token_file_that_others_read(world: FakeApi, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("hct_x")
    (tmp_path / "t").chmod(0o644)
    monkeypatch.delenv("HANDCLASP_TOKEN")
    assert "warn\tsettings\tothers on this machine can read t: chmod 600 t" in run("doctor", "--token-file", "t").stdout
