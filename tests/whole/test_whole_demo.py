"""``handclasp demo`` as a user runs it: with nginx and without, to the end and kept running."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.needs import find
from support.programs import Shell, handclasp
from support.servers import environment
from support.waiting import eventually

SECONDS = 30
WEB, CALLER = "spiffe://demo.internal/web", "spiffe://demo.internal/caller"
KEYS = {
    "ok", "server_kind", "seconds", "identities", "requests", "failed_requests", "intruder_attempts", "intruder_accepted", "discovered",
    "revoked_refused", "log",
}  # fmt: skip


@contextmanager
def demo(home: Path, *options: str, path: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run the demo, with its temporary files below ``home`` and another PATH where one is given; what it says goes to files beside."""
    home.mkdir()
    env = environment() | {"TMPDIR": str(home)} | ({"PATH": path} if path else {})
    command = handclasp("demo", "--json", "--seconds", str(SECONDS), *options)
    with home.with_suffix(".stdout").open("wb") as output, home.with_suffix(".stderr").open("wb") as words:
        process = subprocess.Popen(command, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=output, stderr=words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # it ends what it started
        process.wait(60)


def check(process: subprocess.Popen[bytes], home: Path, kind: str) -> str:
    """Wait for the demo, check everything that it says at its end, and return its words."""
    code = process.wait(180)
    output, words = (home.with_suffix(suffix).read_text() for suffix in (".stdout", ".stderr"))
    assert code == 0, output + words
    summary = json.loads(output.splitlines()[-1])
    assert set(summary) == KEYS
    assert (summary["ok"], summary["server_kind"], summary["seconds"]) == (True, kind, SECONDS), words
    assert set(summary["identities"]) == {WEB, CALLER}
    for seen in summary["identities"].values():
        assert set(seen) == {"rotations", "requests", "failed"}
        assert seen["rotations"] >= 3
        assert (seen["requests"] > SECONDS, seen["failed"]) == (True, 0)
    assert (summary["requests"] > SECONDS, summary["failed_requests"]) == (True, 0)
    assert (summary["intruder_attempts"] > 3, summary["intruder_accepted"], summary["revoked_refused"]) == (True, 0, True)
    assert set(summary["log"]) == {"entries", "verified"}
    assert (summary["log"]["entries"] > 10, summary["log"]["verified"]) == (True, True)
    assert "Traceback" not in words
    return words


def without_nginx(directory: Path) -> str:
    """Return a PATH that leads to a shell and to no nginx."""
    directory.mkdir()
    for name in ("sh", "true"):
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return str(directory)


def running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def kept_running(home: Path) -> Iterator[list[int]]:
    """Check that everything runs that the demo says it left, and yield the process ids; then end it as the demo says."""
    words = home.with_suffix(".stderr").read_text()
    found = re.search(r"still running: (https://\S+), data in (\S+); end it with: kill ([0-9 ]+) && rm -r (\S+)", words)
    assert found is not None, words
    data, pids = Path(found[2]), [int(pid) for pid in found[3].split()]
    try:
        assert all(running(pid) for pid in pids)
        settings = {"HANDCLASP_CA": str(data / "server/ca.pem"), "HANDCLASP_TOKEN_FILE": str(data / "server/admin.token")}
        listed = Shell(home, {"HANDCLASP_URL": found[1], **settings}).json("agent", "list")
        assert [one["identity"].rpartition("/")[2] for one in listed["items"]] == ["caller", "web"]
        yield pids
    finally:
        for pid in filter(running, pids):
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not any(running(pid) for pid in pids), what="everything ended")
        shutil.rmtree(data)


def test_the_whole_story_with_nginx_and_without(tmp_path: Path) -> None:
    """Both at once: they mostly wait. Where there is no nginx, both take the Python server."""
    kept, other = tmp_path / "kept", tmp_path / "other"
    with demo(kept, "--keep") as first, demo(other, path=without_nginx(tmp_path / "path")) as second:
        first.wait(180)
        with kept_running(kept) as pids:
            assert len(pids) == 4, "two agents, the server and the service"
            check(first, kept, "nginx" if find("nginx") else "python")
        assert "nginx is not installed here" in check(second, other, "python")
    assert [*other.iterdir(), *kept.iterdir()] == [], "nothing is left behind"
