"""Deliveries: files, flips, commands, the look, and the way back."""

from __future__ import annotations

import hashlib
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from handclasp.agent.commands import run_command, send_signal
from handclasp.agent.config import Files, Look, Reload, Target
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.generations import File, Generations
from handclasp.agent.look import Interrupted, look
from handclasp.client import TLSContext
from handclasp.errors import HandclaspError, Kind
from support.errors import refused
from support.fake_server import FakeAuthority, fingerprint, pem
from support.tls import echo

AUTHORITY = FakeAuthority()


def content(authority: FakeAuthority = AUTHORITY, crl: bytes = b"") -> Content:
    chain, key = authority.credential(dns=["localhost"])
    leaf, issuing = (text + b"-----END CERTIFICATE-----\n" for text in chain.split(b"-----END CERTIFICATE-----\n")[:2])
    sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf.decode())).hexdigest()
    return Content(sha256, key, leaf, issuing, pem(authority.root).encode(), crl)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def never(_seconds: float) -> bool:
    return False


def run(target: Target, what: Content, confirmed: str = "") -> str:
    return deliver(target, what, confirmed, identity="spiffe://example.org/x", wait=never)


def served_by(directory: Path) -> str:
    return TLSContext.from_directory(directory).sha256


def test_all_files_change_together_and_old_ones_are_pruned(tmp_path: Path) -> None:
    target, name = Target("t", Files(tmp_path)), ""
    for _ in range(6):
        new = content()
        name = run(target, new, name)
        assert served_by(tmp_path) == new.sha256
    home = tmp_path / "current"
    assert names(home) == [".content", "bundle.pem", "cert.pem", "chain.pem", "key.pem"]
    assert (home / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (home / "cert.pem").stat().st_mode & 0o777 == 0o644
    assert len(names(tmp_path / "generations")) == 3
    assert not (tmp_path / "current").readlink().is_absolute()


def test_the_forms_of_files(tmp_path: Path) -> None:
    what = content(crl=b"crl")
    files = Files(tmp_path, combine="certificate-first", include_root=True, crl=True, mode=0o640).render(what)
    root = pem(AUTHORITY.root).encode()
    assert files["cert.pem"].data == what.certificate + what.chain + root
    assert files["combined.pem"].data == files["cert.pem"].data + what.key
    assert (files["combined.pem"].mode, files["key.pem"].mode, files["bundle.pem"].mode) == (0o640, 0o640, 0o644)
    assert files["crl.pem"].data == b"crl"
    assert Files(tmp_path).render(what).keys() == {"key.pem", "cert.pem", "chain.pem", "bundle.pem"}


def test_paths_become_links_and_files_that_were_there_are_the_way_back(tmp_path: Path) -> None:
    old, paths = content(), {name: tmp_path / "etc" / f"my-{name}" for name in ("key.pem", "cert.pem", "bundle.pem")}
    (tmp_path / "etc").mkdir()
    for name, file in Files(tmp_path).render(old).items():
        if name in paths:
            paths[name].write_bytes(file.data)
    place = Files(tmp_path / "home", tuple(paths.items()))
    with refused(Kind.DELIVERY_FAILED, "status 1", "previous certificate is back"):
        run(Target("t", place, validate=("false",)), content())
    follow = TLSContext.from_files(paths["cert.pem"], paths["key.pem"], paths["bundle.pem"])
    assert follow.sha256 == old.sha256
    new = content()
    run(Target("t", place), new)
    assert follow.sha256 == new.sha256
    assert all(path.is_symlink() for path in paths.values())


@pytest.mark.parametrize(
    ("case", "validate", "reload", "words"),
    [
        ("a failing validate", ("sh", "-c", "echo 'line 7: no'; exit 3"), None, ["validate", "status 3", "line 7: no"]),
        ("a validate that is not there", ("/nonexistent",), None, ["cannot be started"]),
        ("a failing reload", (), Reload(("sh", "-c", "exit 4")), ["reload", "status 4"]),
        ("a hung reload", (), Reload(("sleep", "60")), ["did not end in 0.3 s"]),
        ("a reload that kills itself", (), Reload(("sh", "-c", "kill -9 $$")), ["signal 9"]),
        ("a pid file that is not there", (), Reload((), signal.SIGHUP, Path("/nonexistent")), ["no process id"]),
    ],
)
def test_a_failure_brings_the_old_certificate_back(
    tmp_path: Path, case: str, validate: tuple[str, ...], reload: Reload | None, words: list[str]
) -> None:
    old = content()
    confirmed = run(Target("t", Files(tmp_path)), old)
    with refused(Kind.DELIVERY_FAILED, *words, "the previous certificate is back in place"):
        run(Target("t", Files(tmp_path), validate, reload, timeout=0.3), content(), confirmed)
    assert served_by(tmp_path) == old.sha256, case


def test_after_a_failed_reload_the_service_is_told_again_and_a_retry_writes_no_second_generation(tmp_path: Path) -> None:
    log, directory = tmp_path / "log", tmp_path / "d"
    script = f'readlink "{directory}/current" >> {log}; test -e {tmp_path}/good'
    target = Target("t", Files(directory), reload=Reload(("sh", "-c", script)))
    (tmp_path / "good").touch()
    confirmed = run(target, content())
    (tmp_path / "good").unlink()
    new = content()
    with refused(Kind.DELIVERY_FAILED):
        run(target, new, confirmed)
    (tmp_path / "good").touch()
    assert run(target, new, confirmed) == "00000002"
    assert log.read_text().split() == [f"generations/0000000{number}" for number in (1, 2, 1, 2)]


def test_commands_know_where_but_not_the_agents_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDCLASP_TOKEN", "secret")
    script = f'echo "$HANDCLASP_IDENTITY $HANDCLASP_DIRECTORY $HANDCLASP_TOKEN." > {tmp_path}/out'
    run(Target("t", Files(tmp_path / "d"), validate=("sh", "-c", script)), content())
    assert (tmp_path / "out").read_text() == f"spiffe://example.org/x {tmp_path}/d/current .\n"


def test_a_daemon_that_keeps_the_output_open_does_not_keep_us() -> None:
    run_command("reload", ["sh", "-c", "sleep 30 & echo $!"], timeout=20, environment={})


def test_a_signal_reaches_the_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "pid").write_text(f"{process.pid}\n")
    send_signal(signal.SIGTERM, tmp_path / "pid")
    assert process.wait() == -signal.SIGTERM
    for text in ("", "0", "1", "-5", "x", "99999999999999999999"):
        (tmp_path / "pid").write_text(text)
        with refused(Kind.DELIVERY_FAILED):
            send_signal(signal.SIGHUP, tmp_path / "pid")


def test_the_look_sees_the_new_certificate(tmp_path: Path) -> None:
    confirmed = run(Target("t", Files(tmp_path)), content())
    tls = TLSContext.from_directory(tmp_path)
    with echo(tls.server_context(clients="none")) as (port, _):
        new = content()
        run(Target("t", Files(tmp_path), look=Look("127.0.0.1", port, "localhost"), timeout=5), new, confirmed)
    assert served_by(tmp_path) == new.sha256


def test_a_service_that_keeps_serving_the_old_one_is_found_out(tmp_path: Path) -> None:
    old = content()
    confirmed = run(Target("t", Files(tmp_path / "d")), old)
    run(Target("t", Files(tmp_path / "other")), old)
    stuck = TLSContext.from_directory(tmp_path / "other")
    with echo(stuck.server_context(clients="none")) as (port, _), refused(Kind.DELIVERY_FAILED, "serves the certificate", "back in place"):
        run(Target("t", Files(tmp_path / "d"), look=Look("127.0.0.1", port, "localhost"), timeout=0.2), content(), confirmed)
    assert served_by(tmp_path / "d") == old.sha256


def test_the_look_backs_off_and_ends(tmp_path: Path) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return len(waited) == 7

    what = content()
    with pytest.raises(Interrupted):
        look(Look("127.0.0.1", 1, "localhost"), what.sha256, what.credential, timeout=3600, wait=wait)
    assert waited == [1, 2, 4, 8, 16, 16, 16]
    with refused(Kind.DELIVERY_FAILED, "no handshake"):
        look(Look("127.0.0.1", 1, "localhost"), what.sha256, what.credential, timeout=0, wait=wait)


def test_a_key_that_does_not_belong_is_never_flipped(tmp_path: Path) -> None:
    old, other = content(), content()
    confirmed = run(Target("t", Files(tmp_path)), old)
    mixed = Content(other.sha256, old.key, other.certificate, other.chain, other.bundle)
    with refused(Kind.BAD_KEY):
        run(Target("t", Files(tmp_path)), mixed, confirmed)
    assert served_by(tmp_path) == old.sha256


def test_what_an_interruption_left_is_removed_and_a_dangling_link_is_no_generation(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    name = generations.write({"a": File(b"1")})
    (tmp_path / "generations" / ".new-1").mkdir()
    (tmp_path / "generations" / ".new-1" / "key.pem").write_text("half")
    (tmp_path / ".current-1").symlink_to("nowhere")
    assert generations.current() == ""
    generations.flip(name)
    generations.recover()
    assert generations.current() == name
    assert names(tmp_path) == ["current", "generations"]
    assert names(tmp_path / "generations") == [name]


def test_a_full_disk_leaves_the_old_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = Generations(tmp_path)
    generations.flip(generations.write({"a": File(b"1")}))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        generations.write({"a": File(b"2")})
    assert generations.read(generations.current(), "a") == b"1"
    assert names(tmp_path / "generations") == ["00000001"]


def test_the_error_is_ours() -> None:
    with pytest.raises(HandclaspError):
        run_command("validate", ["a\0b"], timeout=1, environment={})
    assert fingerprint(AUTHORITY.root)
