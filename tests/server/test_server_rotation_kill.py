"""kill -9 in the middle of a rotation: the next start goes on with it, and every certificate is told once."""

from __future__ import annotations

import signal
import sqlite3
import ssl
from pathlib import Path

import handclasp.server.run  # noqa: F401  (declares every point of the server)
from handclasp import wire
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import POINTS
from handclasp.pki import keys
from support.authorities import make_csr
from support.servers import Server, to_csr_pem
from support.waiting import eventually

STRIKES = {"rotation.started": 1, "rotation.told": 2, "rotation.chunk": 2}
"""Points and the passing at which they strike: before the first certificate, and between some of them."""
CERTIFICATES = 1_250  # more than two chunks


def test_every_point_of_a_rotation_is_struck() -> None:
    assert {point for point in POINTS if point.startswith("rotation.")} == set(STRIKES)


def stored(data: Path) -> tuple[list[tuple[str, str | None, int, int]], dict[str, int], int, int]:
    """Rotations with their place, end and total; items of each; live certificates; those whose window is in no rotation's time."""
    connection = sqlite3.connect(f"file:{data / 'handclasp.db'}?mode=ro", uri=True)
    try:
        rotations = connection.execute("SELECT id, place, ends_at, total FROM rotation ORDER BY created_at").fetchall()
        items = dict(connection.execute("SELECT rotation_id, count(*) FROM rotation_item GROUP BY rotation_id").fetchall())
        live = "SELECT count(*) FROM certificate WHERE superseded_at IS NULL AND obtained_by != 'server'"
        ends = max((row[2] for row in rotations), default=0)
        late = connection.execute(f"{live} AND renew_before > ?", (ends,)).fetchone()[0]
        return rotations, items, connection.execute(live).fetchone()[0], late
    finally:
        connection.close()


def test_killed_while_certificates_are_told(tmp_path: Path) -> None:
    """Each start goes on with what the one before left, and is killed in it; the last one is left alone."""
    data = tmp_path / "data"
    with Server(data, "--trust-domain", "example.org") as server, server.ready().client(server.token()) as client:
        csr = to_csr_pem(make_csr(keys.generate("p256")))
        requests = [wire.IssueRequest(csr=csr, ttl="12h")] * (CERTIFICATES // 2)
        for _ in range(2):
            client.call("POST", "/v1/certificates:batch", body=wire.BatchRequest(requests=requests), response=wire.BatchResponse)
        assert server.stop() == 0, server.errors()
    for point, passing in STRIKES.items():
        with Server(data, fault=f"{point}:{passing}:kill") as server, server.ready().client() as admin:
            request = wire.RotationRequest(all=True, within="20m")
            try:  # the answer does not wait for so many to be told, so it may be here before the end is
                admin.call("POST", "/v1/rotations", body=request, response=wire.Rotation)
            except HandclaspError as error:
                assert error.kind is Kind.UNAVAILABLE  # noqa: PT017
            else:
                assert point != "rotation.started"
            assert server.process.wait(60) == -signal.SIGKILL, server.errors()
        assert any(row[1] is not None for row in stored(data)[0]), "one is visibly not told to its end"
    with Server(data) as server, server.ready().client() as admin:
        eventually(lambda: all(row[1] is None for row in stored(data)[0]), 60, "every rotation is told to its end")
        listed = admin.call("GET", "/v1/rotations", response=wire.RotationList)
        assert server.stop() == 0, server.errors()
    rotations, items, live, late = stored(data)
    assert (live, late) == (CERTIFICATES, 0)
    assert rotations
    assert items == {row[0]: CERTIFICATES for row in rotations}
    assert [row[3] for row in rotations] == [CERTIFICATES] * len(rotations)
    assert {(one.total, one.replaced, one.state) for one in listed.items} == {(CERTIFICATES, 0, "running")}
    assert all(one.log_entry is not None for one in listed.items)


def test_the_servers_own_certificate_is_rotated_too(tmp_path: Path) -> None:
    with Server(tmp_path / "data", "--trust-domain", "example.org") as server, server.ready().client() as admin:
        host, port = server.url.removeprefix("https://").split(":")
        before = ssl.get_server_certificate((host, int(port)))
        request = wire.RotationRequest(all=True, within="10m")
        started = admin.call("POST", "/v1/rotations", body=request, response=wire.Rotation)
        assert (started.total, started.state) == (0, "done"), "it is nobody's to wait for"
        eventually(lambda: ssl.get_server_certificate((host, int(port))) != before, 30, "another certificate is served")
        assert server.stop() == 0, server.errors()
