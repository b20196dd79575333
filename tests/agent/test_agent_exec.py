"""The exec target: a child on its credentials, told or restarted on a change, kept running, and never two of it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handclasp import faults
from handclasp.agent.config import parse_config
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.targets.base import Around, Target
from handclasp.agent.targets.exec import CHILDREN, Exec
from handclasp.agent.targets.process import RECORD, Record, end_left_over, spawn
from handclasp.errors import HandclaspError, Kind
from support import contents, tls_child
from support.errors import refused
from support.fake_server import DOMAIN, FakeAuthority, pem
from support.places import open_up
from support.programs import free_port
from support.traffic import Echo
from support.waiting import eventually

WEB = f"spiffe://{DOMAIN}/prod/web"
SERVER = str(Path(tls_child.__file__))
NAMES = {"key": "TLS_KEY", "certificate": "TLS_CERT", "bundle": "TLS_CA"}
AUTHORITY = FakeAuthority()


def content(crl: bytes = b"") -> Content:
    return contents.content(AUTHORITY, crl)


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    CHILDREN.retain(set())


def target(root: Path, *command: str, **more: Any) -> Target:
    one = {"type": "exec", "command": list(command), "directory": "app", "settle": "500ms", "environment": NAMES} | more
    text = json.dumps({"identities": [{"identity": WEB, "dns": ["localhost"], "targets": [one]}]})
    return parse_config(text, "agent.yaml", root).identities[0].targets[0]


def serving(root: Path, port: int, *mode: str, **more: Any) -> Target:
    look = {"connect": f"127.0.0.1:{port}", "server_name": "localhost"}
    return target(root, sys.executable, SERVER, str(port), *mode, **({"look": look, "timeout": "10s"} | more))


def run(one: Target, what: Content, confirmed: str = "") -> str:
    return deliver(one, what, confirmed, identity=WEB, wait=threading.Event().wait)


def pid(one: Target) -> int:
    assert isinstance(one.place, Exec)
    return CHILDREN.child(one.place).child.pid


def drift(one: Target) -> str:
    assert isinstance(one.place, Exec)
    found = one.place.drift("", Around(WEB, lambda _: False, 10))
    return found.words if found else ""


def exists(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def numbers(path: Path) -> list[int]:
    """Return what children have written so far: that a child runs for a while does not say that it got so far."""
    return list(map(int, path.read_text().split())) if path.exists() else []


def test_signalled_six_times_under_traffic_without_a_loss(tmp_path: Path) -> None:
    port = free_port()
    one, delivered = serving(tmp_path, port, on_change="HUP"), [content() for _ in range(7)]
    name = run(one, delivered[0])
    first = pid(one)
    with Echo(port, pem(AUTHORITY.root)) as traffic:
        for what in delivered[1:]:
            name = run(one, what, name)
            at_least = traffic.requests + 20
            eventually(lambda what=what, at_least=at_least: what.sha256 in traffic.served and traffic.requests >= at_least)
    assert traffic.failures == []
    assert traffic.requests > 120
    assert [sha for sha in traffic.served if sha != delivered[0].sha256] == [what.sha256 for what in delivered[1:]]
    assert pid(one) == first, "it was told, and not restarted"


def test_restarted_five_times_each_on_the_new_certificate(tmp_path: Path) -> None:
    port, name, pids = free_port(), "", set()
    one = serving(tmp_path, port)
    for _ in range(6):
        name = run(one, content(), name)  # the look has seen it
        pids.add(pid(one))
    assert len(pids) == 6
    assert [number for number in pids if exists(number)] == [pid(one)]
    CHILDREN.retain(set())
    assert not any(exists(number) for number in pids)


def test_what_a_child_is_given(tmp_path: Path) -> None:
    script = f"env > {tmp_path}/env; cat; sleep 100"  # cat: there is nothing to read
    one = target(tmp_path, "sh", "-c", script, variables={"COLOUR": "green"}, crl=True)
    run(one, content(crl=b"crl"))
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    home = tmp_path / "app" / "current"
    assert given["TLS_KEY"] == f"{home}/key.pem"
    assert (home / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "app").stat().st_mode & 0o777 == 0o700
    assert {name: given[name] for name in given if name.startswith(("HANDCLASP", "COLOUR", "TLS_"))} == {
        "TLS_KEY": f"{home}/key.pem",
        "TLS_CERT": f"{home}/cert.pem",
        "TLS_CA": f"{home}/bundle.pem",
        "HANDCLASP_CHAIN_FILE": f"{home}/chain.pem",
        "HANDCLASP_CRL_FILE": f"{home}/crl.pem",
        "HANDCLASP_DIRECTORY": str(home),
        "COLOUR": "green",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_child_of_another_user_can_read_its_key_and_nobody_elses(tmp_path: Path) -> None:
    open_up(tmp_path)
    out = tmp_path / "out"
    out.touch(mode=0o666)
    out.chmod(0o666)
    one = target(tmp_path, "sh", "-c", f'(id -u; id -G; head -1 "$TLS_KEY") > {out}; sleep 100', user="nobody")
    run(one, content())
    eventually(lambda: out.read_text().count("\n") == 3)
    uid, groups, key = out.read_text().splitlines()
    assert (uid, groups.split()[0], key) == ("65534", "65534", "-----BEGIN PRIVATE KEY-----")
    assert "0" not in groups.split()


@pytest.mark.parametrize(
    ("case", "command", "more", "words"),
    [
        ("it is not there", ["/no/such/program"], {}, ["status 127", "cannot be started"]),
        ("it ends", ["sh", "-c", "echo one; echo two; exit 3"], {}, ["status 3", "one / two"]),
        ("it is killed", ["sh", "-c", "kill -9 $$"], {}, ["signal 9"]),
        ("it is done at once", ["sh", "-c", "exit 0"], {}, ["status 0"]),
        ("it serves nothing", ["sleep", "100"], {"look": {"connect": "127.0.0.1:1"}, "timeout": "1s"}, ["no handshake"]),
    ],
)
def test_a_child_that_does_not_come_up_is_a_failure(
    tmp_path: Path, case: str, command: list[str], more: dict[str, Any], words: list[str]
) -> None:
    one = target(tmp_path, *command, **more)
    with refused(Kind.DELIVERY_FAILED, *words, "there was no previous certificate"):
        run(one, content())
    assert pid(one) == 0, case


def test_one_that_keeps_serving_the_old_certificate_is_rolled_back(tmp_path: Path) -> None:
    port = free_port()
    one, old = serving(tmp_path, port, "stale", on_change="HUP", timeout="1s"), content()
    name = run(one, old)
    with refused(Kind.DELIVERY_FAILED, "serves the certificate", "the previous certificate is back"):
        run(one, content(), name)
    assert (tmp_path / "app" / "current").readlink() == Path("generations", name)
    with Echo(port, pem(AUTHORITY.root)) as traffic:
        eventually(lambda: traffic.served)
    assert traffic.served == [old.sha256]


def test_one_that_dies_of_the_signal_runs_on_the_old_certificate_again(tmp_path: Path) -> None:
    one = target(tmp_path, "sleep", "100", on_change="HUP", backoff={"first": "500ms", "longest": "1s"})
    name = run(one, content())
    with refused(Kind.DELIVERY_FAILED, "signal 1", "the previous certificate is back"):
        run(one, content(), name)
    eventually(lambda: exists(pid(one)))


def test_one_that_ends_on_the_new_certificate_runs_on_the_old_one_again(tmp_path: Path) -> None:
    old = content()
    script = f'if [ -e {tmp_path}/bad ]; then echo no; rm {tmp_path}/bad; exit 4; fi; cat "$TLS_CERT" > {tmp_path}/seen; exec sleep 100'
    one = target(tmp_path, "sh", "-c", script)
    name = run(one, old)
    (tmp_path / "bad").touch()
    with refused(Kind.DELIVERY_FAILED, "status 4: no", "the previous certificate is back"):
        run(one, content(), name)
    eventually(lambda: (tmp_path / "seen").read_bytes() == old.certificate + old.chain)
    eventually(lambda: exists(pid(one)))


def test_what_ends_is_started_again_and_reported(tmp_path: Path) -> None:
    one, what = target(tmp_path, "sleep", "100", backoff={"first": "500ms", "longest": "1s"}), content()
    assert "not started" in drift(one)
    name = run(one, what)
    assert drift(one) == ""
    first = pid(one)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pid(one) not in (0, first))
    assert drift(one) == "the command was ended by signal 9, and was started again"
    assert drift(one) == "", "once"
    second = pid(one)
    assert run(one, what, name) == name
    assert pid(one) == second, "what runs on it already is left alone"


@pytest.mark.parametrize(("restart", "status", "well"), [("on_failure", 0, True), ("on_failure", 1, False), ("never", 0, False)])
def test_whether_it_is_started_again(tmp_path: Path, restart: str, status: int, well: bool) -> None:
    script = f"while [ ! -e {tmp_path}/end ]; do sleep 0.05; done; exit {status}"
    one = target(tmp_path, "sh", "-c", script, restart=restart, backoff={"first": "10s", "longest": "10s"})
    run(one, content())
    (tmp_path / "end").touch()
    eventually(lambda: pid(one) == 0)
    eventually(lambda: (drift(one) == "") == well)


def test_another_command_is_another_child_and_settings_are_part_of_the_digest(tmp_path: Path) -> None:
    what, one, other = content(), target(tmp_path, "sleep", "100"), target(tmp_path, "sleep", "200")
    name = run(one, what)
    first = pid(one)
    assert one.place.digest(what) != other.place.digest(what)
    assert run(other, what, name) == name
    assert pid(other) != first
    assert not exists(first)


def test_a_stubborn_child_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 300 & echo $! > {tmp_path}/inner; wait; sleep 300"
    one = target(tmp_path, "sh", "-c", script, stop_timeout="500ms")
    run(one, content())
    eventually(lambda: numbers(tmp_path / "inner"))
    outer, inner = pid(one), numbers(tmp_path / "inner")[0]
    CHILDREN.retain(set())
    eventually(lambda: not exists(outer) and not exists(inner))


def test_output_is_logged_line_by_line_and_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "handclasp.agent.exec")
    long = "head -c 9000 /dev/zero | tr '\\0' y; echo"
    many = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo end"
    script = f"printf 'bell \\a\\nhalf'; {long}; {many}; touch {tmp_path}/all; sleep 100"
    one = target(tmp_path, "sh", "-c", script)
    run(one, content())
    eventually((tmp_path / "all").exists)
    CHILDREN.retain(set())
    messages = [record.message for record in caplog.records]
    assert f"{one.name}: bell ?" in messages
    assert f"{one.name}: half{'y' * 1996}" in messages
    assert f"{one.name}: line 0" in messages
    assert any("lines of output are not shown" in message for message in messages)
    assert len(messages) < 1500
    assert max(map(len, messages)) < 2200


def test_the_kernel_ends_the_child_when_the_agent_is_killed_and_the_next_agent_runs_one(tmp_path: Path) -> None:
    one = target(tmp_path, "sh", "-c", f"trap '' TERM; echo $$ >> {tmp_path}/pids; while :; do sleep 0.1; done", stop_timeout="500ms")
    agent = os.fork()
    if agent == 0:  # an agent of its own, that dies while its child does not listen to what the kernel sends it then
        try:
            run(one, content())
            eventually(lambda: numbers(tmp_path / "pids"))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(agent, 0)[1]) == signal.SIGKILL
    (orphan,) = numbers(tmp_path / "pids")
    assert exists(orphan), "it ignores SIGTERM"
    run(one, content())
    assert not exists(orphan)
    eventually(lambda: [number for number in numbers(tmp_path / "pids") if exists(number)] == [pid(one)])


@pytest.mark.parametrize("point", ["exec.flipped", "exec.spawned", "exec.recorded", "exec.released", "exec.told"])
def test_killed_while_it_starts_a_child(tmp_path: Path, point: str) -> None:
    one = target(tmp_path, "sh", "-c", f"echo $$ >> {tmp_path}/pids; exec sleep 100")
    agent = os.fork()
    if agent == 0:
        try:
            faults._ARMED = (point, 1, "kill")
            run(one, content())
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(agent, 0)[1]) == signal.SIGKILL
    run(one, content())
    eventually(lambda: [number for number in numbers(tmp_path / "pids") if exists(number)] == [pid(one)])


def test_killed_on_the_way_back(tmp_path: Path) -> None:
    one, old = target(tmp_path, "sh", "-c", f"test ! -e {tmp_path}/bad && exec sleep 100"), content()
    agent = os.fork()
    if agent == 0:
        try:
            name = run(one, old)
            (tmp_path / "bad").touch()
            faults._ARMED = ("exec.rolled_back", 1, "kill")
            run(one, content(), name)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(agent, 0)[1]) == signal.SIGKILL
    first, second = sorted(path.name for path in (tmp_path / "app" / "generations").iterdir())
    assert (tmp_path / "app" / "current").readlink() == Path("generations", first), "and not the second, which was not taken"
    (tmp_path / "bad").unlink()
    assert run(one, old, first) == first < second
    eventually(lambda: exists(pid(one)))


def test_a_record_of_another_process_harms_nobody(tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    records = [Record(pid=pid, started=1, boot=at) for pid in (1, 0, -1, os.getppid(), 2**22 + 1) for at in (boot, "another")]
    for record in (b"", b"{", b"\xff", *map(msgspec.json.encode, records)):
        (tmp_path / RECORD).write_bytes(record)
        end_left_over(tmp_path, 1)
    assert exists(os.getppid())


def test_a_child_that_cannot_be_recorded_is_not_started(tmp_path: Path) -> None:
    one = target(tmp_path, "touch", str(tmp_path / "ran"))
    assert isinstance(one.place, Exec)
    with pytest.raises(OSError, match="No such file"):
        spawn(one.place.spec)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"command": None}, "command is missing"),
        ({"command": "sleep 1"}, "there is no shell"),
        ({"directory": None}, "directory is missing"),
        ({"on_change": "KILL"}, "not a signal"),
        ({"restart": "perhaps"}, "is not one of"),
        ({"environment": {"keys": "X"}}, "is not one of"),
        ({"environment": {"key": "A B"}}, "cannot be the name of a variable"),
        ({"variables": {"HANDCLASP_X": "1"}}, "are ours"),
        ({"backoff": {"first": "10s", "longest": "1s"}}, "shorter than first"),
        ({"user": "no-such-user"}, "no user"),
        ({"reload": {"command": ["true"]}}, "restarted or signalled"),
        ({"helper": True}, "helper is not known"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    one = {"type": "exec", "command": ["sleep", "1"], "directory": "app"} | change
    text = json.dumps({"identities": [{"identity": WEB, "targets": [{k: v for k, v in one.items() if v is not None}]}]})
    with pytest.raises(HandclaspError, match=words) as caught:
        parse_config(text, "agent.yaml", tmp_path)
    assert caught.value.kind is Kind.BAD_SETTING
