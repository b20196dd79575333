"""Root in a directory of somebody else's: what its user puts there leads nowhere, whatever it is and whenever he does it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.agent import reach
from handclasp.agent.commands import send_signal
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.generations import File, Generations
from handclasp.agent.leases import Leases
from handclasp.agent.targets.base import Target
from handclasp.agent.targets.files import Files
from handclasp.agent.targets.keystore import Keystore
from handclasp.agent.targets.process import RECORD, _boot, _started, end_left_over
from handclasp.errors import HandclaspError, Kind
from support.contents import content
from support.errors import refused
from support.fake_server import FakeAuthority
from support.places import open_up

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray")
NOBODY = 65534
SECRET = b"root:$y$secret:\n"
AUTHORITY = FakeAuthority()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of a service's user, below one of root's."""
    place = tmp_path / "service"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    return place


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "roots" / "shadow"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def given_away(path: Path, *, link: bool = False) -> Path:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=not link)
    return path


def link_to(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return given_away(path, link=True)


def brought(place: Files | Keystore, what: Content | None = None) -> str:
    return deliver(Target("t", place), what or content(AUTHORITY), "", identity="spiffe://example.org/web", wait=lambda _: False)


def modes(path: Path) -> list[tuple[str, int, int]]:
    return [(str(one), one.lstat().st_mode, one.lstat().st_uid) for one in sorted([path, *path.rglob("*")])]


# --- ways -------------------------------------------------------------------------------------------------------------------------------


def test_links_of_root_are_followed_and_those_of_others_are_not(tmp_path: Path, theirs: Path, secret: Path) -> None:
    (tmp_path / "ours").symlink_to("roots")
    (tmp_path / "far").symlink_to(tmp_path / "ours" / "shadow")
    assert reach.read(tmp_path / "far") == SECRET
    for way in (link_to(theirs / "a", secret), link_to(theirs / "b", secret.parent) / "shadow", link_to(theirs / "c", theirs / "c")):
        with pytest.raises(OSError, match="is not followed") as caught:
            reach.read(way)
        assert caught.value.errno == errno.ELOOP


def test_pipes_devices_and_endless_files_do_not_keep_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    for path in (tmp_path / "pipe", tmp_path / "large", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError):
            reach.read(path, 1000)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "l", "abs", "gone"]), max_size=7))
@settings(max_examples=80, deadline=None)
def test_a_way_leads_where_the_kernel_says(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    home = tmp_path_factory.mktemp("way")
    (home / "a" / "b").mkdir(parents=True)
    (home / "b").mkdir()
    for where in (home, home / "a", home / "b", home / "a" / "b"):
        (where / "l").symlink_to("..")
        (where / "abs").symlink_to(home / "a")
    path = Path(os.path.abspath(home.joinpath(*parts)))  # noqa: PTH100  (not resolved: links are the point)
    try:
        expected = path.stat().st_ino
    except OSError:
        with pytest.raises(OSError), reach.directory(path):
            pass
        return
    with reach.directory(path) as found:
        assert os.fstat(found.descriptor).st_ino == expected
        assert found.hands == frozenset()


def test_a_way_needs_no_more_rights_than_a_path(tmp_path: Path, theirs: Path) -> None:
    open_up(tmp_path)
    (theirs / "x").write_bytes(b"1")
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with reach.directory(theirs) as found:
                os._exit(0 if reach.read(theirs / "x") == b"1" and found.hands == frozenset() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_descriptor_is_left(tmp_path: Path, theirs: Path, secret: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (secret, tmp_path / "gone" / "x", link_to(theirs / "x", secret)):
        with suppress(OSError):
            reach.read(path)
        with suppress(OSError), reach.directory(path):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- generations ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generations", "current"])
def test_a_link_in_the_place_of_our_directories_changes_nothing_elsewhere(theirs: Path, secret: Path, name: str) -> None:
    """``chmod`` and ``chown`` by path would open root's directory to everybody."""
    (secret.parent / "00000001").mkdir(mode=0o700)
    (secret.parent / ".new-x").mkdir()
    before = modes(secret.parent)
    link_to(theirs / name, secret.parent)
    generations = Generations(theirs, owner=NOBODY, group=NOBODY)
    for do in (generations.recover, lambda: generations.flip(generations.write({"key.pem": File(b"k")})), lambda: generations.prune(1)):
        with suppress(OSError):
            do()
    generations.remove("00000001")
    assert modes(secret.parent) == before


def test_a_draft_that_is_exchanged_under_our_hands_gives_nothing_away(theirs: Path, secret: Path) -> None:
    """The service's user renames our draft as soon as he sees it, and puts a link to what he wants to have in its place."""
    before, stop = modes(secret.parent), threading.Event()
    home = theirs / "generations"
    home.mkdir()
    given_away(home)

    def attacker() -> None:
        while not stop.is_set():
            for draft in home.glob(".new-*"):
                if not draft.is_symlink():
                    with suppress(OSError):
                        draft.rename(home / f"stolen-{draft.name[5:]}")
                        draft.symlink_to(secret.parent)

    thread = threading.Thread(target=attacker)
    thread.start()
    try:
        for _ in range(150):
            with suppress(OSError):
                Generations(theirs, owner=NOBODY, group=NOBODY).write({"shadow": File(b"x", 0o644), "a": File(b"y")})
    finally:
        stop.set()
        thread.join()
    assert modes(secret.parent) == before
    assert secret.read_bytes() == SECRET


def test_odd_names_among_the_generations_are_no_generations(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    generations.write({"a": File(b"1")})
    for name in ("9" * 200, "²²²²²²²²", "1", "00000002x"):
        (tmp_path / "generations" / name).mkdir()
    assert generations.names() == ["00000001"]
    assert generations.write({"a": File(b"2")}) == "00000002"


# --- deliveries -------------------------------------------------------------------------------------------------------------------------


def test_a_note_that_leads_elsewhere_is_not_read_to_anybody(theirs: Path, secret: Path) -> None:
    """What it says would be in the finding, which status, log and server show."""
    place = theirs / "tls"
    for make in (
        lambda note: link_to(note, secret),
        lambda note: note.hardlink_to(secret),
        os.mkfifo,
        lambda note: note.write_bytes(b"x" * 100_000),
    ):
        place.mkdir()
        given_away(place)
        make(place / ".identity")
        brought(Files(place))
        assert (place / ".identity").read_text() == "spiffe://example.org/web\n"
        subprocess.run(["rm", "-r", place], check=True)
    assert secret.read_bytes() == SECRET
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("make", [link_to, lambda path, target: path.hardlink_to(target)], ids=["link", "hard link"])
def test_a_file_that_the_service_cannot_read_is_not_copied_for_it(theirs: Path, secret: Path, make: Callable[[Path, Path], object]) -> None:
    """Files that were there before are kept as the first generation, which belongs to the service."""
    (theirs / "server.crt").write_text("x")
    make(theirs / "server.key", secret)
    place = Files(theirs / "tls", links=(("key.pem", theirs / "server.key"), ("cert.pem", theirs / "server.crt")), owner=NOBODY)
    brought(place)
    kept = [path.read_bytes() for path in (theirs / "tls" / "generations").rglob("*") if path.is_file()]
    assert SECRET not in kept
    assert secret.read_bytes() == SECRET


def test_files_of_the_service_and_of_root_are_kept_as_the_way_back(theirs: Path) -> None:
    (theirs / "server.key").write_text("old key")
    given_away(theirs / "server.key")
    (theirs / "server.crt").write_text("old certificate")
    place = Files(theirs / "tls", links=(("key.pem", theirs / "server.key"), ("cert.pem", theirs / "server.crt")), owner=NOBODY)
    brought(place)
    assert (theirs / "tls" / "generations" / "00000001" / "key.pem").read_text() == "old key"


def test_a_directory_that_the_service_leads_elsewhere_is_refused(theirs: Path, secret: Path) -> None:
    before = modes(secret.parent)
    link_to(theirs / "tls", secret.parent)
    with pytest.raises((OSError, HandclaspError)):
        brought(Files(theirs / "tls", links=(("key.pem", theirs / "x" / "shadow"),)))
    link_to(theirs / "x", secret.parent)
    with pytest.raises((OSError, HandclaspError)):
        brought(Files(theirs / "other", links=(("key.pem", theirs / "x" / "shadow"),)))
    assert modes(secret.parent) == before
    assert secret.read_bytes() == SECRET


def test_a_pipe_in_a_generation_of_the_service_does_not_hold_the_agent_up(theirs: Path) -> None:
    place, what = Files(theirs / "tls", owner=NOBODY), content(AUTHORITY)
    first = brought(place, what)
    note = theirs / "tls" / "generations" / first / ".content"
    note.unlink()
    os.mkfifo(note)
    assert brought(place, what) != first


def test_a_password_is_not_taken_from_where_the_service_points(theirs: Path, secret: Path) -> None:
    place = Keystore(theirs / "tls", owner=NOBODY)
    place.directory.mkdir()
    given_away(place.directory)
    for make in (lambda path: link_to(path, secret), os.mkfifo):
        make(place.directory / "password")
        with pytest.raises(OSError):
            place.password()
        (place.directory / "password").unlink()
    place.directory.rmdir()
    link_to(place.directory, secret.parent)
    before = modes(secret.parent)
    with pytest.raises(OSError, match="is not followed"):
        place.password()  # nor is one made there
    assert modes(secret.parent) == before


def test_a_lease_changes_no_file_that_the_service_points_at(theirs: Path, secret: Path) -> None:
    for make in (lambda path: link_to(path, secret), lambda path: path.hardlink_to(secret), os.mkfifo):
        make(theirs / ".lease")
        leases = Leases("spiffe://example.org/agent/a", theirs)
        leases.take(Files(theirs))
        leases.close()
        (theirs / ".lease").unlink()
    assert secret.read_bytes() == SECRET


def test_no_other_user_can_take_the_lease_of_a_place(tmp_path: Path) -> None:
    """Whoever can open a file can lock it, and wait with that for the agent's next start."""
    place = tmp_path / "tls"
    place.mkdir()
    (place / ".lease").touch(0o644)  # by an earlier version
    leases = Leases("spiffe://example.org/agent/a", tmp_path)
    assert leases.take(Files(place))
    leases.close()
    assert stat.S_IMODE((place / ".lease").stat().st_mode) == 0o600
    assert Leases("spiffe://example.org/agent/b", tmp_path).take(Files(place))


# --- processes --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def running(uid: int) -> Iterator[int]:
    with subprocess.Popen(["sh", "-c", "echo; exec sleep 60"], user=uid, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        try:
            yield one.pid
        finally:
            one.kill()


def test_who_writes_a_pid_file_chooses_among_his_own_processes(theirs: Path, tmp_path: Path) -> None:
    """CVE-2018-16888: root's signal for a process of root's, by a file that a service's user wrote."""
    note = theirs / "pid"
    with running(0) as roots, running(NOBODY) as his:
        note.write_text(str(roots))
        given_away(note)
        with refused(Kind.DELIVERY_FAILED, "not a process of the user"):
            send_signal(signal.SIGTERM, note)
        note.unlink()
        (tmp_path / "roots.pid").write_text(str(roots))
        link_to(note, tmp_path / "roots.pid")
        with refused(Kind.DELIVERY_FAILED, "no process id"):
            send_signal(signal.SIGTERM, note)
        os.kill(roots, 0)
        note.unlink()
        note.write_text(str(his))
        given_away(note)
        send_signal(signal.SIGTERM, note)
        assert os.waitid(os.P_PID, his, os.WEXITED | os.WNOWAIT)
        send_signal(signal.SIGTERM, tmp_path / "roots.pid")
        assert os.waitid(os.P_PID, roots, os.WEXITED | os.WNOWAIT)


def test_who_writes_a_record_of_a_child_ends_nobody(theirs: Path) -> None:
    with running(0) as roots:
        (theirs / RECORD).write_text(f'{{"pid": {roots}, "started": {_started(roots)}, "boot": "{_boot()}"}}')
        given_away(theirs / RECORD)
        end_left_over(theirs, 0.1)
        os.kill(roots, 0)
