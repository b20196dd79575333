"""The log through real HTTP: entries, proofs also against a kept checkpoint, tiles, cosignatures, and erasure that breaks nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from handclasp.cli.main import handclasp
from handclasp.clock import system_clock
from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import open_checkpoint
from handclasp.log.merkle import leaf_hash
from handclasp.log.notes import merge_signatures, parse_note, parse_vkey
from handclasp.log.proofs import verify_proof
from handclasp.log.tiles import decode_bundle
from support.live import Client, Live
from support.logs import cosigner
from support.waiting import eventually

PREFIX = "spiffe://example.org/log"


def vkeys(live: Live) -> list:
    return [parse_vkey(Path(live.facts["log_vkey_file"]).read_text().strip())]


def size_of(live: Live, admin: Client) -> int:
    return open_checkpoint(admin("GET", "/v1/log/checkpoint").text, vkeys(live)).checkpoint.size


def grow(live: Live, admin: Client, beyond: int) -> None:
    """Add entries until the newest checkpoint has more than ``beyond``."""
    admin("POST", "/v1/policy:diff", {"text": "version: 1\n"}).ok()
    eventually(lambda: size_of(live, admin) > beyond, what="a new checkpoint")


def command(live: Live, *args: str, code: int = 0) -> Result:
    result = CliRunner(catch_exceptions=False).invoke(handclasp, list(args), env=live.environment, prog_name="handclasp")
    assert result.exit_code == code, result.output
    return result


def test_entries_newest_first_each_once(live: Live, admin: Client) -> None:
    for _ in range(12):
        admin("POST", "/v1/profiles:diff", {"text": "version: 1\n"}).ok()
    newest = admin.get("/v1/log/entries", limit=1)["items"][0]["index"]
    pages = list(admin.pages("/v1/log/entries", limit=5))
    indexes = [item["index"] for page in pages for item in page]
    assert indexes[-(newest + 1) :] == list(range(newest, -1, -1))
    types = [item["entry"]["type"] for page in admin.pages("/v1/log/entries", limit=5, type="profiles.compared") for item in page]
    assert len(types) >= 12
    assert set(types) == {"profiles.compared"}
    one = admin.get(f"/v1/log/entries/{newest}")
    at = one["entry"]["at"]
    assert newest in [item["index"] for item in admin.get("/v1/log/entries", since=at, until=at)["items"]]
    assert admin.get("/v1/log/entries", since="2100-01-01T00:00:00+02:00")["items"] == []
    admin("GET", f"/v1/log/entries/{newest + 10**6}").refused(Kind.NOT_FOUND)


def test_a_proof_of_an_issuance_verifies_without_the_server(live: Live, admin: Client) -> None:
    issued = live.holder(f"{PREFIX}/proved").issued
    proof = admin.get("/v1/log/proof", sha256=issued["sha256"])  # it waits until the entry is in the tree
    assert proof["index"] == issued["log_entry"]
    assert proof["leaf_hash"] == leaf_hash(proof["entry"].encode()).hex()
    proven = verify_proof(proof["proof"], None, vkeys(live))
    assert (proven.index, json.loads(proven.entry)["what"]["sha256"]) == (proof["index"], issued["sha256"])
    assert (proven.size, proven.origin) == (proof["tree_size"], "example.org/log")
    assert admin.get("/v1/log/proof", index=proof["index"])["leaf_hash"] == proof["leaf_hash"]
    with pytest.raises(HandclaspError):
        verify_proof(proof["proof"], None, vkeys(live), entry=b"another")
    admin("GET", "/v1/log/proof", sha256="0" * 64).refused(Kind.NOT_FOUND)
    admin("GET", "/v1/log/proof", index=10**9).refused(Kind.NOT_FOUND)


def test_a_proof_against_a_checkpoint_that_was_kept(live: Live, admin: Client) -> None:
    index = live.holder(f"{PREFIX}/kept").issued["log_entry"]
    admin.get("/v1/log/proof", index=index)
    kept = admin("GET", "/v1/log/checkpoint").text
    size = open_checkpoint(kept, vkeys(live)).checkpoint.size
    grow(live, admin, size)
    today = admin.get("/v1/log/proof", index=index)
    assert today["tree_size"] > size
    with pytest.raises(HandclaspError) as caught:
        verify_proof(today["proof"], kept, vkeys(live))
    assert "size of the kept checkpoint" in caught.value.hint
    proof = admin.get("/v1/log/proof", index=index, size=size)
    assert proof["tree_size"] == size
    assert parse_note(proof["checkpoint"]).text == parse_note(kept).text
    assert verify_proof(proof["proof"], kept, vkeys(live)).index == index
    newer = admin.get("/v1/log/entries", limit=1)["items"][0]["index"]
    admin.get("/v1/log/proof", index=newer)
    admin("GET", "/v1/log/proof", index=newer, size=size).refused(Kind.NOT_FOUND, "newer")
    admin("GET", "/v1/log/proof", index=index, size=10**12).refused(Kind.NOT_FOUND, f"not {10**12}")
    admin("GET", "/v1/log/proof", index=index, size=0).refused(Kind.NOT_FOUND)
    smallest = admin.get("/v1/log/proof", index=0, size=1)
    assert smallest["path"] == []
    assert verify_proof(smallest["proof"], None, vkeys(live)).size == 1


def test_the_command_line_proves_against_a_kept_checkpoint(live: Live, admin: Client, tmp_path: Path) -> None:
    holder = live.holder(f"{PREFIX}/command")
    index = holder.issued["log_entry"]
    admin.get("/v1/log/proof", index=index)
    kept, proof, vkey = tmp_path / "kept.checkpoint", tmp_path / "web.proof", live.facts["log_vkey_file"]
    kept.write_bytes(admin("GET", "/v1/log/checkpoint").body)
    size = size_of(live, admin)
    grow(live, admin, size)
    verify = ("audit", "verify", "--proof", str(proof), "--checkpoint", str(kept), "--vkey-file", vkey)
    command(live, "audit", "prove", holder.sha256, "--out", str(proof))
    refused = command(live, *verify, code=1)
    assert "at the size of the kept checkpoint" in refused.output
    said = command(live, "audit", "prove", holder.sha256, "--checkpoint", str(kept), "--out", str(proof))
    assert f"in the log of {size} entries" in said.stderr
    assert f"of {size} entries" in command(live, *verify).stdout
    facts = json.loads(command(live, "audit", "prove", "--index", str(index), "--checkpoint", str(kept), "--json").stdout)
    assert (facts["index"], facts["tree_size"]) == (index, size)
    kept.write_text("no checkpoint\n")
    assert "verify_failed" in command(live, "audit", "prove", holder.sha256, "--checkpoint", str(kept), code=1).output


def test_the_log_is_served_as_tlog_tiles_say(live: Live, admin: Client) -> None:
    grow(live, admin, size_of(live, admin))
    answer = admin("GET", "/log/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    size = open_checkpoint(answer.text, vkeys(live)).checkpoint.size
    width = min(size, 256)
    suffix = "" if width == 256 else f".p/{width}"
    bundle = admin("GET", f"/log/tile/entries/000{suffix}")
    assert bundle.headers["content-type"] == "application/octet-stream"
    assert ("max-age" in bundle.headers["cache-control"]) is (width == 256)
    tile = admin("GET", f"/log/tile/0/000{suffix}").body
    entries = decode_bundle(bundle.body, width)
    assert [tile[n * 32 : n * 32 + 32] for n in range(width)] == [leaf_hash(entry) for entry in entries]
    assert json.loads(entries[0])["type"]


def test_a_witness_cosigns(live: Live, admin: Client) -> None:
    note = parse_note(admin("GET", "/v1/log/checkpoint").text)
    witness = cosigner()
    cosigned = merge_signatures(note, [witness.cosign(note.text, system_clock())])
    sent = {"Content-Type": "text/plain"}
    answer = admin("POST", "/v1/log/checkpoint:cosign", str(cosigned).encode(), headers=sent)
    assert answer.status == 200, answer.text
    assert open_checkpoint(answer.text, vkeys(live), [witness.vkey]).witnesses == (witness.vkey,)
    wrong = [
        b"", b"\xff\xfe", b"nonsense", note.text.encode(), str(note).encode(),
        str(merge_signatures(note, [cosigner("witness.example/stranger", 9).cosign(note.text, system_clock())])).encode(),
        str(merge_signatures(note, [witness.cosign(note.text, system_clock() + 10**9)])).encode(),
        str(cosigned).replace("example.org/log", "example.com/log").encode(),
    ]  # fmt: skip
    for body in wrong:
        admin("POST", "/v1/log/checkpoint:cosign", body, headers=sent).refused(Kind.BAD_REQUEST)
    admin("POST", "/v1/log/checkpoint:cosign", b"x" * (2 << 20), headers=sent).refused(Kind.TOO_LARGE)


def test_erasing_personal_data_leaves_a_log_that_verifies(live: Live, admin: Client) -> None:
    owner = "ada.lovelace@example.org"
    created = live.create_token(allow=[f"{PREFIX}/erased"], profiles=["workload"], owner=owner)
    index = created["log_entry"]
    shown = admin.get(f"/v1/log/entries/{index}")
    assert shown["entry"]["personal"]["owner"]["value"] == owner
    done = admin("POST", "/v1/log/personal:erase", {"index": index}).ok()
    again = admin.get(f"/v1/log/entries/{index}")
    assert again["leaf_hash"] == shown["leaf_hash"]
    assert set(again["entry"]["personal"]["owner"]) == {"salted"}
    assert owner not in json.dumps(again)
    erased = admin.get(f"/v1/log/entries/{done['log_entry']}")["entry"]
    assert (erased["type"], erased["what"]) == ("log.personal_erased", {"index": index})
    eventually(lambda: size_of(live, admin) > done["log_entry"], what="the erasure in the tree")
    report = json.loads(command(live, "audit", "verify", "--vkey-file", live.facts["log_vkey_file"], "--json").stdout)
    assert (report["ok"], report["problems"]) == (True, [])
    assert report["entries"] > done["log_entry"]
    admin("POST", "/v1/log/personal:erase", {"index": 10**9}).refused(Kind.NOT_FOUND)
    admin("POST", "/v1/log/personal:erase", {"index": -1}).refused(Kind.BAD_REQUEST)


def test_no_tile_or_entry_holds_personal_data(live: Live, admin: Client) -> None:
    live.create_token("log:read", owner="grace.hopper@example.org")
    grow(live, admin, size_of(live, admin))
    for name, data in live.written():
        if name.startswith("data/log/"):
            assert b"grace.hopper" not in data, name
