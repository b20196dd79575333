"""What an agent says about itself: metrics, health, and `agent status` with words for a person."""

from __future__ import annotations

import http.client
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from handclasp.agent import status
from support.agents import WEB, prepare, running, settled
from support.fake_server import FakeServer
from support.programs import free_port
from support.waiting import eventually


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def values(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(get(port, "/metrics")[1])
    return {(sample.name, tuple(sorted(sample.labels.values()))): sample.value for family in families for sample in family.samples}


def test_metrics_and_health(tmp_path: Path) -> None:
    port, good = free_port(), tmp_path / "good"
    good.touch()
    with FakeServer() as server:
        config = prepare(server, tmp_path, f"[{{directory: tls, validate: [test, -e, {good}], crl: true}}]")
        config.write_text(config.read_text() + f"metrics: 127.0.0.1:{port}\n")
        with running(config) as agent:
            eventually(lambda: settled(agent.roster.keepers()[0]) and get(port, "/healthz") == (200, "ok\n"))
            target = f"files:{tmp_path / 'tls'}"
            eventually(lambda: values(port)["handclasp_target_state", tuple(sorted((target, "ok", WEB)))] == 1)
            found, record = values(port), server.records[server.newest(WEB)]
            assert found["handclasp_identity_not_after_seconds", (WEB,)] == record.not_after / 1000
            assert found["handclasp_identity_state", ("ok", WEB)] == 1
            assert found["handclasp_identity_state", ("failed", WEB)] == 0
            assert record.renew_after / 1000 <= found["handclasp_identity_renew_at_seconds", (WEB,)] <= record.renew_before / 1000
            assert any(name == "handclasp_agent_info" for name, _ in found)

            good.unlink()
            server.crl = server.crl.replace("AAAA", "BBBB")
            eventually(lambda: get(port, "/healthz")[0] == 503)
            assert get(port, "/healthz")[1] == f"{WEB}: failed\n"
            failed = values(port)
            assert failed["handclasp_target_failures", tuple(sorted((target, WEB)))] >= 1
            assert failed["handclasp_target_last_failure_seconds", tuple(sorted((target, WEB)))] > record.renew_after / 1000 - 86400
            good.touch()
            eventually(lambda: get(port, "/healthz")[0] == 200)


def test_what_is_no_request_ends_nothing(tmp_path: Path) -> None:
    port = free_port()
    with FakeServer() as server:
        config = prepare(server, tmp_path)
        config.write_text(config.read_text() + f"metrics: 127.0.0.1:{port}\n")
        with running(config):
            eventually(lambda: socket.create_connection(("127.0.0.1", port), timeout=5).close() is None if _listens(port) else False)
            for data in (b"", b"\r\n\r\n", b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    try:
                        connection.sendall(data)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(4096):
                            pass
                    except OSError:
                        continue
            assert get(port, "/metrics")[0] == 200
            assert get(port, "/other")[0] == 404
            assert get(port, "/metrics", "POST")[0] == 405
            assert get(port, "/metrics", "HEAD") == (200, "")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_address_that_is_taken_is_said_and_stops_nothing(tmp_path: Path) -> None:
    with FakeServer() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        config.write_text(config.read_text() + f"metrics: 127.0.0.1:{taken.getsockname()[1]}\n")
        with running(config) as agent:
            eventually(lambda: settled(agent.roster.keepers()[0]))
            eventually(lambda: any("metrics" in words and "cannot listen" in words for words in status(tmp_path / "state").todo))
            assert not status(tmp_path / "state").healthy


def test_who_drips_a_request_keeps_nobody_out_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte before each time limit would hold the only thread for hours; a supervisor that asks for health would end the agent."""
    monkeypatch.setattr("handclasp.agent.metrics._PATIENCE", 1.0)
    port, stop = free_port(), threading.Event()

    def drip() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while not stop.wait(0.2):
                with suppress(OSError):
                    connection.send(b"x")

    with FakeServer() as server:
        config = prepare(server, tmp_path, "[{directory: tls}]")
        config.write_text(config.read_text() + f"metrics: 127.0.0.1:{port}\n")
        with running(config) as agent:
            eventually(lambda: settled(agent.roster.keepers()[0]) and get(port, "/healthz")[0] == 200)
            thread = threading.Thread(target=drip)
            thread.start()
            try:
                assert get(port, "/healthz")[0] == 200
            finally:
                stop.set()
                thread.join()
