"""A whole agent with targets that can change without its doing: children, and Secrets of a cluster."""

from __future__ import annotations

import contextlib
import grp  # before the fork: where Python lies in root's home, another user can load nothing more of it
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from handclasp.agent import run, status
from handclasp.agent.targets.exec import CHILDREN
from handclasp.client import TLSContext
from support.agents import WEB, configure, prepare, running, start_process
from support.fake_server import DOMAIN, FakeServer
from support.kubernetes import kubernetes
from support.places import open_up
from support.programs import Child
from support.servers import environment
from support.waiting import eventually


def child(root: Path, **more: object) -> str:
    script = f"trap '' TERM; echo $$ >> {root}/pids; while :; do sleep 0.05; done"
    one = {"type": "exec", "command": ["sh", "-c", script], "directory": str(root / "app"), "settle": "500ms", "stop_timeout": "500ms"}
    return json.dumps([one | more])


@contextlib.contextmanager
def process_of(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent as a process, which does not outlive a test that fails."""
    with start_process(config) as process:
        try:
            yield process
        finally:
            process.kill()


def pids(root: Path) -> list[int]:
    """Processes that were started and are still there."""
    try:
        numbers = map(int, (root / "pids").read_text().split())
    except OSError:
        return []
    return [number for number in numbers if (Path("/proc") / str(number)).exists() and not _zombie(number)]


def started(root: Path) -> int:
    """How many were started."""
    return len((root / "pids").read_text().split()) if (root / "pids").exists() else 0


def _zombie(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_ok(root: Path) -> bool:
    return any(one.identity == WEB and one.state == "ok" and one.targets[0].state == "ok" for one in status(root / "state").identities)


def test_a_child_lives_as_long_as_its_agent_and_starts_with_it(tmp_path: Path) -> None:
    with FakeServer(ttl=600) as server:
        config = prepare(server, tmp_path, child(tmp_path))
        for _ in range(2):
            with process_of(config) as process:
                eventually(lambda: len(pids(tmp_path)) == 1 and is_ok(tmp_path))
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
            assert pids(tmp_path) == []
        assert len((tmp_path / "pids").read_text().split()) == 2


def test_after_a_kill_there_is_one_child_again(tmp_path: Path) -> None:
    with FakeServer(ttl=600) as server:
        config = prepare(server, tmp_path, child(tmp_path))
        for run_number in (1, 2):
            with process_of(config) as process:
                eventually(lambda number=run_number: started(tmp_path) == number and len(pids(tmp_path)) == 1 and is_ok(tmp_path))
                process.kill()
                process.wait(30)
        with process_of(config) as process:
            eventually(lambda: started(tmp_path) == 3 and len(pids(tmp_path)) == 1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert pids(tmp_path) == []


def test_a_child_outlives_a_reading_of_the_configuration_unless_it_is_gone_from_it(tmp_path: Path) -> None:
    with FakeServer(ttl=600) as server:
        config = prepare(server, tmp_path, child(tmp_path))
        with process_of(config) as process:
            eventually(lambda: len(pids(tmp_path)) == 1 and is_ok(tmp_path))
            (first,) = pids(tmp_path)
            reports = len(server.reports)
            process.send_signal(signal.SIGHUP)
            eventually(lambda: len(server.reports) > reports)
            assert pids(tmp_path) == [first]
            configure(tmp_path, "[{directory: tls}]")
            process.send_signal(signal.SIGHUP)
            eventually(lambda: pids(tmp_path) == [])
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_a_child_that_ends_is_a_report_and_runs_again(tmp_path: Path) -> None:
    with FakeServer(ttl=600) as server:
        config = prepare(server, tmp_path, child(tmp_path, backoff={"first": "500ms", "longest": "1s"}), poll="500ms")
        try:
            with running(config):
                eventually(lambda: len(pids(tmp_path)) == 1 and is_ok(tmp_path))
                os.kill(pids(tmp_path)[0], signal.SIGKILL)
                eventually(
                    lambda: any(
                        "signal 9" in (one.last_failure or "") for _, r in server.reports for i in r.identities for one in i.targets
                    )
                )
                eventually(lambda: len(pids(tmp_path)) == 1 and is_ok(tmp_path))
            assert pids(tmp_path) == []
        finally:
            CHILDREN.retain(set())


def test_a_secret_is_kept_right_over_outages_and_other_peoples_hands(tmp_path: Path) -> None:
    with FakeServer(ttl=20, window=(0.08, 0.12)) as server, kubernetes(tmp_path / "kubernetes") as api:
        config = prepare(server, tmp_path, json.dumps([api.config(timeout="5s")]), poll="500ms")
        with running(config):
            eventually(lambda: api.secrets and is_ok(tmp_path))
            first = api.data()["tls.key"]
            eventually(lambda: api.data()["tls.key"] != first)
            api.edit("web-tls", tls_crt=b"not ours")
            eventually(lambda: api.data()["tls.crt"].startswith(b"-----BEGIN CERT"))
            api.secrets.clear()
            api.owners.clear()
            eventually(lambda: api.secrets)
            api.status = 503
            eventually(lambda: not is_ok(tmp_path))
            api.status = 0
            eventually(
                lambda: (
                    is_ok(tmp_path) and api.secrets["prod", "web-tls"]["metadata"]["annotations"]["handclasp/sha256"] == server.newest(WEB)
                )
            )
        assert api.secrets["prod", "web-tls"]["metadata"]["annotations"]["handclasp/agent"] == f"spiffe://{DOMAIN}/agent/host1"
        assert api.complaints == []
        server.assert_content()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_agent_of_another_uid_renews_what_only_root_may_write(tmp_path: Path) -> None:
    open_up(tmp_path)
    nobody = grp.getgrgid(65534).gr_gid
    with FakeServer(ttl=20, window=(0.08, 0.12)) as server:
        target = [
            {"directory": str(tmp_path / "etc" / "tls"), "helper": True, "reload": {"command": ["sh", "-c", f"echo x >> {tmp_path}/told"]}}
        ]
        section = f"helper: {{socket: {tmp_path}/helper/socket, user: nobody}}\n"
        config = prepare(server, tmp_path, json.dumps(target), more=section)
        for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
            os.chown(path, nobody, nobody, follow_symlinks=False)
        argv = [sys.executable, "-m", "handclasp", "agent", "helper", "-c", str(config)]
        with Child(argv, env=environment(), stderr=subprocess.DEVNULL) as helper:
            eventually((tmp_path / "helper" / "socket").is_socket)
            agent = os.fork()
            if agent == 0:
                try:
                    os.setgroups([])
                    os.setgid(nobody)
                    os.setuid(nobody)
                    run(config, tmp_path / "state")
                finally:
                    os._exit(0)
            seen: set[str] = set()

            def rotated() -> bool:
                if (tmp_path / "etc" / "tls" / "current").exists():
                    seen.add(TLSContext.from_directory(tmp_path / "etc" / "tls").sha256)
                return len(seen) >= 4

            try:
                eventually(rotated)
            finally:
                os.kill(agent, signal.SIGTERM)
                os.waitpid(agent, 0)
                helper.terminate()
        assert (tmp_path / "etc" / "tls" / "current" / "key.pem").stat().st_uid == 0
        assert len((tmp_path / "told").read_text().split()) >= 4
        server.assert_content()


def test_no_thread_is_left(tmp_path: Path) -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("child", "watch"))]
