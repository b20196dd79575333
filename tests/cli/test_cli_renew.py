"""``cert renew``: both new or both old, whatever stops it; and nothing at all while it is too early."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handclasp.cli import credentials, terminal
from handclasp.cli.credentials import CredentialFiles
from handclasp.faults import POINTS
from support.credential_files import belong_together, mode
from support.fake_server import DOMAIN, FakeServer

SOURCE = Path(__file__).resolve().parents[2] / "src"
WEB = f"spiffe://{DOMAIN}/prod/web"
FILES = ("--cert", "cert.pem", "--key", "key.pem", "--bundle", "bundle.pem")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run) -> Iterator[FakeServer]:
    """A server, and a certificate of it in the test's directory."""
    with FakeServer() as running:
        monkeypatch.setenv("HANDCLASP_URL", running.url)
        monkeypatch.setenv("HANDCLASP_CA", running.root_fingerprint)
        monkeypatch.setenv("HANDCLASP_TOKEN", running.token())
        result = run("cert", "issue", WEB, "--dns", "web.example.org", "--out-dir", ".")
        assert result.exit_code == 0, result.stderr
        monkeypatch.delenv("HANDCLASP_CA")  # the bundle beside the certificate is enough
        yield running
        running.assert_content()


def pair(directory: Path) -> tuple[bytes, bytes]:
    assert belong_together(directory / "key.pem", directory / "cert.pem")
    return (directory / "key.pem").read_bytes(), (directory / "cert.pem").read_bytes()


def test_key_and_certificate_are_new_and_the_names_the_same(server: FakeServer, run, tmp_path: Path) -> None:
    old = pair(tmp_path)
    for count in range(1, 4):
        result = run("cert", "renew", *FILES)
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
        new = pair(tmp_path)
        assert not set(new) & set(old)
        old = new
        assert len(server.records) == count + 1
    record = list(server.records.values())[-1]
    assert (record.identity, record.dns) == (WEB, ["web.example.org"])
    assert (mode((tmp_path / "key.pem").resolve()), mode((tmp_path / "cert.pem").resolve())) == (0o600, 0o644)
    generations = [path for path in (tmp_path / ".cert.pem.handclasp").iterdir() if not path.is_symlink()]
    assert len(generations) == 2, "the one in use, and the one before for who has just opened it"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_the_certificate_itself_is_what_authenticates_and_no_token(server: FakeServer, run) -> None:
    assert run("cert", "renew", *FILES).exit_code == 0
    renewal = server.seen[-1]
    assert renewal.path.endswith(":renew")
    assert renewal.token == ""
    assert renewal.peer == next(iter(server.records))


def test_the_answer_as_json(server: FakeServer, run) -> None:
    result = run("cert", "renew", *FILES, "--json")
    assert json.loads(result.stdout)["identity"] == WEB


def test_too_early_is_quiet_and_no_failure(server: FakeServer, run, tmp_path: Path) -> None:
    before = pair(tmp_path)
    result = run("cert", "renew", *FILES, "--if-due")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    result = run("cert", "renew", *FILES, "--if-due", "--json")
    assert json.loads(result.stdout)["state"] == "valid"
    assert pair(tmp_path) == before


def test_when_it_is_due_it_is_done(server: FakeServer, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pair(tmp_path)
    record = next(iter(server.records.values()))
    monkeypatch.setattr(terminal, "clock", lambda: record.renew_after)
    assert run("cert", "renew", *FILES, "--if-due").exit_code == 0
    assert pair(tmp_path) != before


def test_a_refused_renewal_changes_nothing(server: FakeServer, run, tmp_path: Path) -> None:
    before = pair(tmp_path)
    next(iter(server.records.values())).revoked = True
    result = run("cert", "renew", *FILES)
    assert (result.exit_code, result.stderr) == (1, "error: the certificate was revoked (revoked)\n")
    assert pair(tmp_path) == before
    assert not (tmp_path / "cert.pem").is_symlink()


def test_files_that_do_not_belong_together_are_refused_before_anything_is_sent(server: FakeServer, run, tmp_path: Path) -> None:
    from handclasp.client.csr import new_request

    (tmp_path / "other.pem").write_bytes(new_request("p256", identity=None)[0])
    count = len(server.seen)
    result = run("cert", "renew", "--cert", "cert.pem", "--key", "other.pem")
    assert result.exit_code == 1
    assert "cert.pem is not for this key" in result.stderr
    assert len(server.seen) == count


def test_links_that_somebody_else_looks_after_are_left_alone(server: FakeServer, run, tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).rename(tmp_path / "current" / name)
        (tmp_path / name).symlink_to(f"current/{name}")
    result = run("cert", "renew", *FILES)
    assert result.exit_code == 1
    assert "made by something else (conflict)" in result.stderr
    assert pair(tmp_path)


def test_two_renewals_at_once(server: FakeServer, run, tmp_path: Path) -> None:
    files = CredentialFiles(tmp_path / "key.pem", tmp_path / "cert.pem")
    with files.locked():
        result = run("cert", "renew", *FILES)
    assert result.exit_code == 1
    assert "another command is changing cert.pem (conflict)" in result.stderr


def test_key_and_certificate_in_one_file(server: FakeServer, run, tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_bytes((tmp_path / "cert.pem").read_bytes() + (tmp_path / "key.pem").read_bytes())
    (tmp_path / "both.pem").chmod(0o600)
    before = (tmp_path / "both.pem").read_bytes()
    result = run("cert", "renew", "--cert", "both.pem", "--key", "both.pem", "--bundle", "bundle.pem")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "both.pem").read_bytes() != before
    assert belong_together(tmp_path / "both.pem", tmp_path / "both.pem")
    assert mode(tmp_path / "both.pem") == 0o600


# --- whatever stops it ------------------------------------------------------------------------------------------------------------------

CONTENT = {"key": (b"key 1", b"key 2"), "cert": (b"cert 1", b"cert 2"), "bundle": (b"bundle 1", b"bundle 2")}


def lay(directory: Path, *, links: bool) -> CredentialFiles:
    files = CredentialFiles(directory / "key.pem", directory / "certs/cert.pem", directory / "bundle.pem")
    (directory / "certs").mkdir(exist_ok=True)
    if links:
        files.install(b"key 0", b"cert 0", b"bundle 0")
    for path, (old, _) in zip(files.paths, CONTENT.values(), strict=True):
        if not links:
            path.write_bytes(old)
    if links:
        files.install(*(old for old, _ in CONTENT.values()))
    return files


def generation(files: CredentialFiles) -> set[str]:
    """Which generations are read: one digit, unless files do not belong together."""
    return {path.read_bytes().decode().split()[1] for path in files.paths}


def points() -> list[str]:
    return sorted(point for point in POINTS if point.startswith("credentials."))


@pytest.mark.parametrize("links", [False, True], ids=["plain files", "links"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("action", ["kill", "fail"])
@pytest.mark.parametrize("point", points())
def test_both_new_or_both_old_wherever_it_ends(point: str, action: str, count: int, links: bool, tmp_path: Path) -> None:
    files = lay(tmp_path, links=links)
    code = (
        "import sys\nfrom pathlib import Path\nfrom handclasp.cli.credentials import CredentialFiles\n"
        "CredentialFiles(*map(Path, sys.argv[1:])).install(b'key 2', b'cert 2', b'bundle 2')"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "HANDCLASP_FAULT": f"{point}:{count}:{action}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (files.key, files.cert, files.bundle))], env=env, capture_output=True, check=False
    )
    passed = done.returncode == 0
    assert passed or (done.returncode == -signal.SIGKILL) == (action == "kill")
    found = generation(files)
    assert len(found) == 1, f"files of {found} together"
    assert found == {"2"} if passed or point == "credentials.flipped" else found <= {"1", "2"}
    files.install(b"key 3", b"cert 3", b"bundle 3")
    assert generation(files) == {"3"}, "the next one finds its way"


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = lay(tmp_path, links=False)
    real = credentials.write_durably

    def full(path: Path, data: bytes, mode: int) -> None:
        if data == b"cert 2":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data, mode)

    monkeypatch.setattr(credentials, "write_durably", full)
    with pytest.raises(OSError, match="No space"):
        files.install(b"key 2", b"cert 2", b"bundle 2")
    assert generation(files) == {"1"}


def test_new_files_are_all_there_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CredentialFiles(tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "bundle.pem")
    real = credentials.write_file

    def full(path: Path, data: bytes, mode: int) -> None:
        if path.name == "cert.pem":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data, mode)

    monkeypatch.setattr(credentials, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        files.install(b"key 1", b"cert 1", b"bundle 1")
    assert list(tmp_path.iterdir()) == []


def test_the_mode_of_a_key_that_a_group_reads_is_kept_and_others_never_read_it(tmp_path: Path) -> None:
    files = lay(tmp_path, links=False)
    for before, after in ((0o640, 0o640), (0o644, 0o640), (0o400, 0o600)):
        files.key.resolve().chmod(before)
        files.install(b"key 2", b"cert 2", b"bundle 2")
        assert mode(files.key.resolve()) == after
