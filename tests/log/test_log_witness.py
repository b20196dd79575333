from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import SignedCheckpoint, add_checkpoint_request, open_checkpoint, sign_checkpoint
from handclasp.log.cosign import Cosignatures, WitnessClient
from handclasp.log.merkle import consistency_proof
from handclasp.log.notes import Note, merge_signatures
from handclasp.log.sequencer import Sequencer
from handclasp.log.tiles import HashReader, TileStorage
from handclasp.log.witness import Response, Witness, add_checkpoint, log_id
from support.logs import NOW, ORIGIN, Entries, build, cosigner, log_signer

LOG = log_signer().vkey
WITNESS = cosigner().vkey


def witness(directory: Path, seed: int = 2, name: str = "witness.example/w1") -> Witness:
    return Witness(directory, cosigner(name, seed), {ORIGIN: [LOG]}, lambda: NOW)


def client(server: Witness, seed: int = 2, name: str = "witness.example/w1") -> WitnessClient:
    async def post(url: str, body: bytes) -> tuple[int, bytes]:
        answer = server.respond("POST", url.removeprefix("https://witness.example"), body)
        return answer.status, answer.body

    return WitnessClient(cosigner(name, seed).vkey, "https://witness.example/", post)


def answering(status: int, body: bytes) -> WitnessClient:
    async def post(url: str, sent: bytes) -> tuple[int, bytes]:
        return status, body

    return WitnessClient(WITNESS, "https://witness.example", post)


def cosignatures(directory: Path, *more: int) -> Cosignatures:
    keys = [WITNESS, *(cosigner(f"witness.example/w{seed}", seed).vkey for seed in more)]
    return Cosignatures(TileStorage(directory), LOG, keys, lambda: NOW)


def request(old: int, checkpoint: SignedCheckpoint, directory: Path) -> bytes:
    size = checkpoint.checkpoint.size
    return add_checkpoint_request(old, consistency_proof(old, size, HashReader(TileStorage(directory), size)), checkpoint.note)


def test_a_witness_cosigns_a_log_that_grows(tmp_path: Path) -> None:
    empty, first, second = build(tmp_path / "log", [300, 400])
    server = witness(tmp_path / "w")
    for old, checkpoint in ((0, empty), (0, first), (300, first), (300, second)):
        answer = server.add_checkpoint(request(old, checkpoint, tmp_path / "log"))
        assert answer.status == 200, answer.body
        signed = open_checkpoint(str(checkpoint) + answer.body.decode(), [LOG], [WITNESS])
        assert signed.witnesses == (WITNESS,)
        assert server.respond("GET", f"/{log_id(ORIGIN)}/checkpoint").body.decode() == str(signed)
    assert witness(tmp_path / "w").add_checkpoint(request(300, second, tmp_path / "log")).body == b"700\n", "it remembers over a restart"


def test_what_a_witness_refuses(tmp_path: Path) -> None:
    _, first, second = build(tmp_path / "log", [300, 400])
    forged = sign_checkpoint(log_signer(), 700, b"\x01" * 32)
    same_size = sign_checkpoint(log_signer(), 300, b"\x01" * 32)
    reader = HashReader(TileStorage(tmp_path / "log"), 700)
    wrong_key = sign_checkpoint(log_signer(seed=9), 700, second.checkpoint.root)
    server = witness(tmp_path / "w")
    assert server.respond("GET", f"/{log_id(ORIGIN)}/checkpoint").status == 404
    assert server.add_checkpoint(request(0, first, tmp_path / "log")).status == 200
    path = consistency_proof(300, 700, reader)
    cases: list[tuple[str, bytes, int, bytes | None]] = [
        ("not a request", b"hello", 400, None),
        ("not text", b"\xff\xfe", 400, None),
        ("an old size above the new one", add_checkpoint_request(701, [], second.note), 400, None),
        (
            "a log it does not know",
            add_checkpoint_request(0, [], sign_checkpoint(log_signer("x.example"), 1, b"\x01" * 32).note),
            404,
            None,
        ),
        ("a key it does not know", add_checkpoint_request(300, path, wrong_key.note), 403, None),
        ("a wrong signature", add_checkpoint_request(300, path, Note(forged.note.text, second.note.signatures)), 403, None),
        ("an old size that is not the newest", add_checkpoint_request(0, [], second.note), 409, b"300\n"),
        (
            "a log that was rolled back",
            add_checkpoint_request(0, [], sign_checkpoint(log_signer(), 200, reader.root(200)).note),
            409,
            b"300\n",
        ),
        ("another history", add_checkpoint_request(300, path, forged.note), 422, None),
        ("no proof", add_checkpoint_request(300, [], second.note), 422, None),
        ("another tree of the same size", add_checkpoint_request(300, [], same_size.note), 422, None),
    ]
    for why, body, status, answer in cases:
        got = server.add_checkpoint(body)
        assert got.status == status, why
        assert answer is None or got.body == answer, why
    assert server.respond("GET", "/add-checkpoint").status == 405
    assert server.respond("GET", "/other").status == 404
    assert server.add_checkpoint(request(300, second, tmp_path / "log")).status == 200, "none of it changed what it remembers"


def test_an_empty_log_has_one_root_only() -> None:
    body = add_checkpoint_request(0, [], sign_checkpoint(log_signer(), 0, b"\x01" * 32).note)
    answer = add_checkpoint(body, [LOG], None, cosigner(), NOW)
    assert isinstance(answer, Response)
    assert answer.status == 422


@given(st.binary(max_size=100), st.integers(0, 300))
def test_no_request_crashes_a_witness(data: bytes, at: int) -> None:
    body = add_checkpoint_request(0, [], sign_checkpoint(log_signer(), 9, b"\x01" * 32).note)
    answer = add_checkpoint(body[:at] + data + body[at + len(data) :], [LOG], None, cosigner(), NOW)
    assert not isinstance(answer, Response) or 400 <= answer.status < 500


def test_a_log_asks_its_witnesses_while_it_grows(tmp_path: Path) -> None:
    async def run() -> None:
        entries = Entries(10)
        storage = TileStorage(tmp_path / "log")
        sequencer = await Sequencer.open(entries.read, storage, log_signer())
        known = cosignatures(tmp_path / "log", 3)
        servers = [witness(tmp_path / "w2"), witness(tmp_path / "w3", 3, "witness.example/w3")]
        clients = [client(servers[0]), client(servers[1], 3, "witness.example/w3")]
        for _ in range(3):
            entries.grow(200)
            await sequencer.step()
            assert await known.request(clients) == {"witness.example/w1": None, "witness.example/w3": None}
            assert known.newest().checkpoint == sequencer.checkpoint.checkpoint
            assert len(known.newest().witnesses) == 2
        assert await known.request([client(servers[0])]) == {"witness.example/w1": None}, "one who forgot the size is told it"
        entries.grow(1)
        await sequencer.step()
        assert known.newest().witnesses == ()
        cosigned = known.cosigned()
        assert cosigned is not None
        assert cosigned.checkpoint.size == 610
        sequencer.close()

    asyncio.run(run())


def test_a_log_that_was_rolled_back_or_rewritten_learns_it_from_its_witness(tmp_path: Path) -> None:
    _, second = build(tmp_path / "log", [300])
    server = witness(tmp_path / "w")
    assert server.add_checkpoint(request(0, second, tmp_path / "log")).status == 200
    build(tmp_path / "back", [200])
    answer = asyncio.run(cosignatures(tmp_path / "back").request([client(server)]))["witness.example/w1"]
    assert answer is not None
    assert (answer.kind, "rolled back" in answer.hint) == (Kind.TAMPERED, True)

    async def forge() -> None:
        entries = Entries(400)
        entries.rows[5] = b"forged"
        sequencer = await Sequencer.open(entries.read, TileStorage(tmp_path / "forged"), log_signer())
        await sequencer.step()
        sequencer.close()

    asyncio.run(forge())
    answer = asyncio.run(cosignatures(tmp_path / "forged").request([client(server)]))["witness.example/w1"]
    assert answer is not None
    assert answer.kind is Kind.TAMPERED


@pytest.mark.parametrize(
    ("why", "status", "body"),
    [
        ("an error page", 500, b"<html>"),
        ("nonsense with success", 200, b"thanks"),
        ("not text", 200, b"\xff"),
        ("nothing", 200, b""),
        ("a conflict without a size", 409, b"sorry\n"),
        ("the same conflict for ever", 409, b"5\n"),
        ("the signature of somebody else", 200, str(cosigner("x.example", 9).cosign("a\n", NOW)).encode()),
        ("its signature on something else", 200, str(cosigner().cosign("a\n", NOW)).encode()),
    ],
)
def test_a_witness_that_misbehaves_is_only_unavailable(tmp_path: Path, why: str, status: int, body: bytes) -> None:
    build(tmp_path, [10])
    known = cosignatures(tmp_path)
    answer = asyncio.run(known.request([answering(status, body)]))["witness.example/w1"]
    assert answer is not None
    assert answer.kind is Kind.UNAVAILABLE
    assert known.cosigned() is None


def test_a_witness_out_of_reach_is_only_unavailable(tmp_path: Path) -> None:
    build(tmp_path, [10])

    async def post(url: str, body: bytes) -> tuple[int, bytes]:
        raise ConnectionRefusedError

    answer = asyncio.run(cosignatures(tmp_path).request([WitnessClient(WITNESS, "https://witness.example", post)]))["witness.example/w1"]
    assert answer is not None
    assert answer.kind is Kind.UNAVAILABLE


def test_cosignatures_that_are_handed_in(tmp_path: Path) -> None:
    _, first, second = build(tmp_path, [10, 10])
    known = cosignatures(tmp_path, 3)
    line = str(cosigner().cosign(second.note.text, NOW))
    assert known.accept(line).witnesses == (WITNESS,)
    other = merge_signatures(second.note, [cosigner("witness.example/w3", 3).cosign(second.note.text, NOW)])
    assert len(known.accept(str(other)).witnesses) == 2, "those of others are kept"
    assert len(known.newest().witnesses) == 2
    older = merge_signatures(first.note, [cosigner().cosign(first.note.text, NOW)])
    assert known.accept(str(older).encode()).checkpoint.size == 10
    cosigned = known.cosigned()
    assert cosigned is not None
    assert cosigned.checkpoint.size == 20, "and a newer one is not given up for an older one"


def test_lines_for_the_cosigned_checkpoint_are_still_taken_when_the_log_has_moved_on(tmp_path: Path) -> None:
    _, first, second = build(tmp_path, [10, 10])
    (tmp_path / "cosigned").write_text(str(merge_signatures(first.note, [cosigner().cosign(first.note.text, NOW)])))
    known = cosignatures(tmp_path, 3)
    line = str(cosigner("witness.example/w3", 3).cosign(first.note.text, NOW))
    assert len(known.accept(line).witnesses) == 2
    assert known.newest().note.text == second.note.text


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("nothing", ""),
        ("nonsense", "— a b\n"),
        ("an unknown witness", str(cosigner("x.example", 9).cosign("a\n", NOW))),
        ("a known witness on something else", str(cosigner().cosign("a\n", NOW))),
        ("a checkpoint of another log", str(sign_checkpoint(log_signer("x.example"), 1, b"\x00" * 32))),
        ("no cosignature on it", str(sign_checkpoint(log_signer(), 1, b"\x00" * 32))),
    ],
)
def test_cosignatures_that_are_refused(tmp_path: Path, why: str, text: str) -> None:
    build(tmp_path, [10])
    with pytest.raises(HandclaspError) as caught:
        cosignatures(tmp_path).accept(text)
    assert caught.value.kind is Kind.VERIFY_FAILED


def test_a_cosignature_from_the_future_is_refused(tmp_path: Path) -> None:
    newest = build(tmp_path, [10])[-1]
    known = cosignatures(tmp_path)
    with pytest.raises(HandclaspError, match="has not come yet"):
        known.accept(str(cosigner().cosign(newest.note.text, NOW + 301_000)))
    known.accept(str(cosigner().cosign(newest.note.text, NOW + 299_000)))


def test_a_log_without_a_checkpoint_and_one_with_a_forged_one(tmp_path: Path) -> None:
    with pytest.raises(HandclaspError) as caught:
        cosignatures(tmp_path).newest()
    assert caught.value.kind is Kind.NOT_FOUND
    (tmp_path / "checkpoint").write_text(str(sign_checkpoint(log_signer(seed=9), 0, b"\x00" * 32)))
    with pytest.raises(HandclaspError) as caught:
        cosignatures(tmp_path).newest()
    assert caught.value.kind is Kind.TAMPERED
