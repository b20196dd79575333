"""kill -9 at every step of issuing, committing, logging and publishing, while clients issue: nothing that was answered is ever missing."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

import handclasp.server.run  # noqa: F401  (declares every point of the server)
from handclasp.authority.keystore import KeyStore
from handclasp.faults import POINTS
from handclasp.server.instance import open_keystore
from handclasp.server.settings import Settings
from support.authorities import make_csr
from support.servers import Load, Server, check_log, check_stored, init, read_sqlite, wait_for_log

SERVING = {
    # point: the passing at which it strikes. Past those of the start, so that clients are there.
    "issue.checked": 25, "issue.planned": 25, "issue.authorized": 25, "issue.signed": 25, "issue.committed": 25,
    "ledger.begun": 20, "ledger.written": 20, "ledger.committed": 20,
    "crl.built": 5, "crl.published": 5,
    "log.step.read": 4, "log.step.tiles": 4, "log.step.partials": 4, "log.step.published": 4,
    "log.file.written": 12, "log.file.renamed": 12,
}  # fmt: skip
MAKING = ("authority.file_written", "authority.file_named", "ledger.begun", "ledger.written", "ledger.committed")
ELSEWHERE = (
    "agent.", "generation.", "deliver.", "exec.", "kubernetes.", "state.", "credentials.", "rotation.", "retention.", "partition.",
    "record.", "reconcile.", "follow.", "scan.",
)  # fmt: skip
"""Points of the agent and the command line, of rotations and of the inventory: their own tests kill there."""


def test_every_point_of_the_server_is_struck() -> None:
    ours = {point for point in POINTS if not point.startswith(ELSEWHERE)}
    assert ours == set(SERVING) | set(MAKING)


@pytest.mark.parametrize("points", [list(SERVING)[:9], list(SERVING)[9:]], ids=["issuing", "logging"])
def test_killed_while_clients_issue(tmp_path: Path, points: list[str]) -> None:
    """One installation that dies at one point after the other; each start is the recovery from the one before."""
    data, answered, revoked = tmp_path / "data", [], []
    token = ""
    for point in [*points, ""]:
        fault = f"{point}:{SERVING[point]}:kill" if point else ""
        with Server(data, "--trust-domain", "example.org", "--crl-shards", "2", fault=fault) as server:
            server.ready()
            stored = read_sqlite(data)
            check_stored(stored, answered, revoked)
            if not point.startswith("log."):
                wait_for_log(data, stored.head)
            check_log(data, lambda: read_sqlite(data), tmp_path / "copy")
            token = token or server.token()
            with Load(server, token, revoke_every=4) as load:
                if point:
                    assert server.process.wait(60) == -signal.SIGKILL, server.errors()
                else:
                    while len(load.answered) < 10 and not load.failures:
                        load._stopping.wait(0.02)
            assert load.answered, server.errors()  # it served again after the last kill
            answered += load.answered
            revoked += load.revoked
            assert {error.kind.value for error in load.failures} <= {"unavailable"}, load.failures
            if not point:
                assert not load.failures
                assert server.stop() == 0, server.errors()
    stored = read_sqlite(data)
    check_stored(stored, answered, revoked)
    assert check_log(data, lambda: stored, tmp_path / "copy") == stored.head  # the last step was taken at the end


def test_making_an_installation_can_be_repeated_after_every_kill(tmp_path: Path) -> None:
    """``init`` dies at each of its steps, one start after the other in one directory; the last start finishes."""
    data, struck = tmp_path / "data", []
    for point in [*MAKING, "authority.file_written", "ledger.committed"]:
        done = init(data, fault=f"{point}:1:kill")
        if done.returncode == -signal.SIGKILL:
            struck.append(point)
        else:
            assert done.returncode == 0, done.stderr
    assert set(struck) == set(MAKING)
    done = init(data, "--https", "127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    connection = sqlite3.connect(data / "handclasp.db")
    names = connection.execute("SELECT name, key_uri FROM authority ORDER BY id").fetchall()
    facts = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    connection.close()
    assert names == [("root", "file:root.key"), ("issuing", "file:issuing.key")]
    assert facts["log_origin"] == "example.org/log"
    assert "made\tno" in init(data).stdout.replace(" ", "\t")
    with Server(data) as server, Load(server.ready(), server.token(), clients=1) as load:
        while len(load.answered) < 3:
            assert not load.failures, load.failures
            load._stopping.wait(0.02)
    secrets = [path for path in data.rglob("*") if path.suffix in (".key", ".token") or path.name == "passphrase"]
    assert len(secrets) == 5
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets)
    assert isinstance(open_keystore(Settings(data=data), {}), KeyStore)
    assert make_csr(open_keystore(Settings(data=data), {}).load("file:issuing.key"))
    assert data.stat().st_mode & 0o077 == 0
