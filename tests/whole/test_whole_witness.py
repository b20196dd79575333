"""A log and a witness, both as processes: cosigned while it grows, and found out when it is rolled back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.live import DOMAIN, Live
from support.programs import Shell, free_port, handclasp, program
from support.servers import Server, init
from support.waiting import eventually

NAME = "witness.example.net"


@contextmanager
def serving(directory: Path, witness: str) -> Iterator[tuple[Live, Shell]]:
    """Run the server with a witness, and give a command line that talks to it."""
    with Server(directory / "data", "--trust-domain", DOMAIN, "--witness", witness, "--oidc-allow-http") as server:
        live = Live(directory, server.ready())
        yield live, Shell(directory, live.environment)
        assert server.stop() == 0


def cosigned_size(data: Path) -> int:
    """Return the size of the newest cosigned checkpoint, 0 while there is none."""
    path = data / "log/cosigned"
    return int(path.read_text().splitlines()[1]) if path.exists() else 0


def issue(live: Live, count: int) -> int:
    """Make the log grow, wait until it is published, and return its size."""
    holders = [live.holder(f"spiffe://{DOMAIN}/w/{number}") for number in range(count)]
    newest = int(holders[-1].issued["log_entry"])
    checkpoint = live.data / "log/checkpoint"
    eventually(lambda: int(checkpoint.read_text().splitlines()[1]) > newest, what="the checkpoint")
    return newest + 1


def test_a_log_that_is_rolled_back_finds_no_signature_any_more(tmp_path: Path) -> None:
    here, data = tmp_path, tmp_path / "data"
    assert init(data).returncode == 0
    shell, port = Shell(here), free_port()
    told = shell.json("audit", "witness", "--state", "witness", "--name", NAME, "--show-vkey")
    (here / "witness.vkey").write_text(told["vkey"] + "\n")
    with Server(data, "--trust-domain", DOMAIN) as server:  # once without, so that there is a verifier key to give to the witness
        server.ready()
        assert server.stop() == 0
    watch = handclasp("audit", "witness", "--state", "witness", "--name", NAME, "--log-vkey-file", "data/log.vkey")
    address = f"127.0.0.1:{port}"
    with program([*watch, "--listen", address], here / "witness.log", cwd=here):
        eventually(lambda: f"http://{address}" in (here / "witness.log").read_text(), what="the witness listens")
        with serving(here, f"{told['vkey']} http://{address}") as (live, shell):
            size = issue(live, 3)
            eventually(lambda: cosigned_size(data) >= size, what="the cosigned checkpoint")
            verified_with_its_witness(shell, here, size)
        for name in ("handclasp.db", "log"):
            copy(data / name, here / "older" / name)
        with serving(here, f"{told['vkey']} http://{address}") as (live, shell):
            size = issue(live, 3)
            eventually(lambda: cosigned_size(data) >= size, what="the cosigned checkpoint")
        only_the_database_is_old(here)
        everything_is_old(here, f"{told['vkey']} http://{address}", size)


def verified_with_its_witness(shell: Shell, here: Path, size: int) -> None:
    """Whoever has the witness's key sees from a copy of the files that it was cosigned."""
    keys = ("--vkey-file", "data/log.vkey", "--witness-vkey-file", "witness.vkey", "--witnesses", "1")
    shutil.copytree(here / "data/log", here / "copy", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(here / "copy/cosigned", here / "copy/checkpoint")  # what is newer waits for the witness still
    report = Shell(here).json("audit", "verify", "copy", *keys)
    assert (report["ok"], report["problems"], report["witnesses"]) == (True, [], {NAME: report["entries"]})
    assert report["entries"] >= size
    words = Shell(here)("audit", "verify", "copy", *keys)
    assert f"1 of 1 wanted cosigned it: {NAME}" in words
    (here / "other.vkey").write_text(shell.json("audit", "witness", "--state", "other", "--name", "other.example", "--show-vkey")["vkey"])
    stranger = ("--vkey-file", "data/log.vkey", "--witness-vkey-file", "other.vkey", "--witnesses", "1")
    done = Shell(here).run("audit", "verify", "copy", *stranger)
    assert (done.returncode, "0 of 1 wanted cosigned it: none" in done.stdout) == (1, True), done.stdout + done.stderr


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory over what is there."""
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        for rest in target.parent.glob(f"{target.name}-*"):
            rest.unlink()  # a write-ahead log belongs to the database beside which it was written
        shutil.copy(source, target)


def only_the_database_is_old(here: Path) -> None:
    """A backup of the database under a log that went on: what was signed is not there any more, so nothing is signed."""
    copy(here / "older/handclasp.db", here / "data/handclasp.db")
    checkpoint = (here / "data/log/checkpoint").read_text()
    with Server(here / "data", "--trust-domain", DOMAIN) as server:
        server.ready()
        eventually(lambda: "nothing is signed" in server.errors(), what="the server says so")
        assert "was the database restored from an old copy" in server.errors() or "not the one in the database" in server.errors()
        assert Live(here, server).admin_token
        with server.client() as client:
            metrics = client.text("/metrics").text
        assert 'handclasp_job_failing{job="log"} 1.0' in metrics
        server.stop()
    assert (here / "data/log/checkpoint").read_text() == checkpoint


def everything_is_old(here: Path, witness: str, size: int) -> None:
    """Database and log from one backup fit each other: only the witness knows better."""
    for name in ("handclasp.db", "log"):
        copy(here / "older" / name, here / "data" / name)
    with serving(here, witness) as (live, _):
        eventually(lambda: f"{NAME} has cosigned a log of " in live.output, what="the witness refuses")
        told = [json.loads(line) for line in live.output.splitlines() if "has cosigned a log of" in line][-1]
        assert (told["level"], told["job"], told["kind"]) == ("error", "witness", "tampered")
        before = cosigned_size(live.data)
        assert before < size
        other = issue(live, 12)  # longer than the one that the witness knows, and another one
        assert other > size
        eventually(lambda: any("does not grow from the one it cosigned" in line for line in live.output.splitlines()), what="a refusal")
        assert cosigned_size(live.data) == before
