"""The log as files: copied over the API, verified offline, proved, and witnessed."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request
from pathlib import Path

import pytest

from handclasp.cli.audit_export import paths_of
from handclasp.cli.audit_witness import _cosigner, make_server
from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import add_checkpoint_request
from handclasp.log.proofs import make_proof
from handclasp.log.tiles import HashReader, TileStorage
from support.fake_api import FakeApi
from support.logs import ORIGIN, build, cosigner, entry, files, log_signer


class LogApi:
    """Serves a log's directory, and remembers which files were asked for."""

    def __init__(self, api: FakeApi, directory: Path) -> None:
        self.api, self.directory, self.fetched = api, directory, []  # type: ignore[var-annotated]
        self.broken_after = 10**9

    def serve(self, size: int) -> None:
        self.fetched.clear()
        storage = TileStorage(self.directory)

        def read(path: str) -> bytes:
            if len(self.fetched) >= self.broken_after:
                raise HandclaspError(Kind.UNAVAILABLE, "the server went away")
            self.fetched.append(path)
            return storage.read(path)

        self.api.on("GET", "/log/checkpoint", lambda _body, _params: read("checkpoint"))
        for path in paths_of(size):
            self.api.on("GET", f"/log/{path}", lambda _body, _params, path=path: read(path))


@pytest.fixture
def vkey(tmp_path: Path) -> str:
    (tmp_path / "log.vkey").write_text(f"# the log's key\n{log_signer().vkey}\n")
    return "log.vkey"


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 70_000])
def test_the_paths_of_a_log_are_the_files_of_a_log(size: int, tmp_path: Path) -> None:
    build(tmp_path / "log", [size] if size else [])
    there = set(files(tmp_path / "log"))
    assert {*paths_of(size), "checkpoint"} <= there
    assert all(".p/" in path for path in there - set(paths_of(size)) - {"checkpoint"}), "tiles that have grown since"


def test_a_copy_verifies_and_is_brought_up_to_date(api: FakeApi, run, tmp_path: Path, vkey: str) -> None:
    build(tmp_path / "log", [300])
    log = LogApi(api, tmp_path / "log")
    log.serve(300)
    result = run("audit", "export", "copy", "--json")
    assert json.loads(result.stdout)["entries"] == 300
    assert files(tmp_path / "copy") == files(tmp_path / "log")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"checkpoint", "tile"}, "the log's files alone"
    assert run("audit", "verify", "copy", "--vkey-file", vkey).stdout == f"ok\tlog\t300 entries of {ORIGIN} are as they were signed\n"
    shutil.rmtree(tmp_path / "log")
    build(tmp_path / "log", [300, 700])
    log.serve(1000)
    assert run("audit", "export", "copy").exit_code == 0
    assert "tile/entries/000" not in log.fetched, "what is there is not fetched again"
    assert files(tmp_path / "copy") == files(tmp_path / "log")
    log.serve(1000)
    run("audit", "export", "copy")
    assert log.fetched == ["checkpoint"]


def test_an_interrupted_copy_goes_on_where_it_stopped(api: FakeApi, run, tmp_path: Path, vkey: str) -> None:
    build(tmp_path / "log", [256 * 40])
    log = LogApi(api, tmp_path / "log")
    log.broken_after = 70
    log.serve(256 * 40)
    result = run("audit", "export", "copy")
    assert (result.exit_code, result.stderr) == (1, "error: the server went away (unavailable)\n")
    assert not (tmp_path / "copy/checkpoint").exists(), "a checkpoint speaks only for what is there"
    log.broken_after = 10**9
    log.serve(256 * 40)
    assert run("audit", "export", "copy").exit_code == 0
    assert len(log.fetched) < 30
    assert run("audit", "verify", "copy", "--vkey-file", vkey).exit_code == 0


@pytest.mark.parametrize("change", ["shorter", "rewritten", "rewritten at its end"])
def test_a_log_that_was_rolled_back_or_rewritten_is_refused_and_the_copy_kept(change: str, api: FakeApi, run, tmp_path: Path) -> None:
    build(tmp_path / "log", [300])
    log = LogApi(api, tmp_path / "log")
    log.serve(300)
    run("audit", "export", "copy")
    kept = (tmp_path / "copy/checkpoint").read_bytes()
    shutil.rmtree(tmp_path / "log")
    if change == "shorter":
        build(tmp_path / "log", [200])
        log.serve(200)
    else:
        rewrite(tmp_path / "log", 400, at=7 if change == "rewritten" else 290)
        log.serve(400)
    result = run("audit", "export", "copy")
    assert result.exit_code == 1
    assert "(tampered)" in result.stderr
    assert (tmp_path / "copy/checkpoint").read_bytes() == kept


def rewrite(directory: Path, count: int, at: int) -> None:
    """A log of the same key in which one entry is another one."""
    import asyncio

    from handclasp.log.sequencer import Sequencer

    async def run() -> None:
        rows = [entry(index, "!" if index == at else "") for index in range(count)]

        async def read(start: int, limit: int) -> list[bytes]:
            return rows[start : start + limit]

        sequencer = await Sequencer.open(read, TileStorage(directory), log_signer())
        await sequencer.step()
        sequencer.close()

    asyncio.run(run())


def test_a_flipped_byte_names_the_entry(run, tmp_path: Path, vkey: str) -> None:
    build(tmp_path / "log", [300])
    bundle = tmp_path / "log/tile/entries/000"
    data = bytearray(bundle.read_bytes())
    data[40] ^= 1
    bundle.write_bytes(data)
    result = run("audit", "verify", "log", "--vkey-file", vkey)
    assert result.exit_code == 1
    assert result.stdout.startswith("fail\tlog\tentry ")
    report = json.loads(run("audit", "verify", "log", "--vkey-file", vkey, "--json").stdout)
    assert (report["ok"], report["entries"], len(report["problems"])) == (False, 300, 1)


def test_verify_from_the_server_without_a_copy(api: FakeApi, run, tmp_path: Path, vkey: str) -> None:
    build(tmp_path / "log", [5])
    LogApi(api, tmp_path / "log").serve(5)
    result = run("audit", "verify", "--url", "https://ca.example.org", "--vkey-file", vkey, "--json")
    assert json.loads(result.stdout)["entries"] == 5
    assert api.settings.url == "https://ca.example.org"


def test_checkpoints_kept_elsewhere_and_witnesses_that_are_wanted(run, tmp_path: Path, vkey: str) -> None:
    _, first, _ = build(tmp_path / "log", [100, 100])
    (tmp_path / "old").write_text(str(first))
    assert run("audit", "verify", "log", "--vkey-file", vkey, "--checkpoint", "old").exit_code == 0
    (tmp_path / "w.vkey").write_text(str(cosigner().vkey))
    result = run("audit", "verify", "log", "--vkey-file", vkey, "--witness-vkey-file", "w.vkey", "--witnesses", "1")
    assert result.exit_code == 1
    assert "fail\twitnesses\t0 of 1 wanted cosigned it: none\n" in result.stdout
    shutil.rmtree(tmp_path / "log")
    build(tmp_path / "log", [50])
    result = run("audit", "verify", "log", "--vkey-file", vkey, "--checkpoint", "old")
    assert "entries 50 to 99: the log was truncated" in result.stdout


def test_one_proof_against_a_kept_checkpoint(run, tmp_path: Path, vkey: str) -> None:
    *_, checkpoint = build(tmp_path / "log", [300])
    proof = make_proof(7, checkpoint, HashReader(TileStorage(tmp_path / "log"), 300), entry(7))
    (tmp_path / "p").write_text(str(proof))
    (tmp_path / "kept").write_text(str(checkpoint))
    result = run("audit", "verify", "--proof", "p", "--checkpoint", "kept", "--vkey-file", vkey)
    assert (result.exit_code, result.stdout) == (0, f"ok\tproof\tentry 7 (None at None) is in the log {ORIGIN} of 300 entries\n")
    facts = json.loads(run("audit", "verify", "--proof", "p", "--vkey-file", vkey, "--json").stdout)
    assert (facts["index"], facts["entry"]["n"], facts["ok"]) == (7, 7, True)
    (tmp_path / "p").write_text(str(proof).replace("index 7", "index 8"))
    result = run("audit", "verify", "--proof", "p", "--checkpoint", "kept", "--vkey-file", vkey)
    assert result.exit_code == 1
    assert "(verify_failed)" in result.stderr


@pytest.mark.parametrize("text", ["", "# only words\n", "not a key\n"])
def test_a_file_without_a_verifier_key(text: str, run, tmp_path: Path) -> None:
    (tmp_path / "x.vkey").write_text(text)
    result = run("audit", "verify", "log", "--vkey-file", "x.vkey")
    assert (result.exit_code, "(bad_key)" in result.stderr) == (1, True)


def test_a_witness_keeps_its_key_and_cosigns_over_http(run, tmp_path: Path, vkey: str) -> None:
    shown = run("audit", "witness", "--state", "w", "--name", "w.example", "--show-vkey")
    assert run("audit", "witness", "--state", "w", "--name", "w.example", "--show-vkey").stdout == shown.stdout
    assert (tmp_path / "w/witness.key").stat().st_mode & 0o777 == 0o600
    server = make_server(tmp_path / "w", _cosigner(tmp_path / "w", "w.example"), (vkey,), "127.0.0.1:0")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        checkpoint = build(tmp_path / "log", [5])[-1]
        body = add_checkpoint_request(0, (), checkpoint.note)
        url = f"http://127.0.0.1:{server.server_address[1]}/add-checkpoint"
        with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=10) as answer:
            cosignature = answer.read().decode()
        assert cosignature.startswith("\u2014 w.example ")
        (tmp_path / "log/checkpoint").write_text(str(checkpoint) + cosignature)
        (tmp_path / "w.vkey").write_text(shown.stdout)
        result = run("audit", "verify", "log", "--vkey-file", vkey, "--witness-vkey-file", "w.vkey", "--witnesses", "1")
        assert "ok\twitnesses\t1 of 1 wanted cosigned it: w.example\n" in result.stdout
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_witness_without_a_log_is_wrong_usage(run) -> None:
    assert run("audit", "witness", "--state", "w", "--name", "w").exit_code == 2
