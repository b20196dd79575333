from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import sign_checkpoint
from handclasp.log.merkle import consistency_proof
from handclasp.log.notes import merge_signatures
from handclasp.log.proofs import Proof, checkpoint_at, make_proof, parse_proof, verify_proof
from handclasp.log.tiles import HashReader, TileStorage
from support.errors import allowing
from support.logs import NOW, build, cosigner, entry, log_signer

KEYS = [log_signer().vkey]


def refused(call: object, kind: Kind = Kind.VERIFY_FAILED) -> HandclaspError:
    assert callable(call)
    with pytest.raises(HandclaspError) as caught:
        call()
    assert caught.value.kind is kind
    return caught.value


def test_golden_text_of_a_proof(tmp_path: Path) -> None:
    newest = build(tmp_path, [3])[-1]
    proof = make_proof(1, newest, HashReader(TileStorage(tmp_path), 3), b"hello")
    assert str(proof) == (
        "c2sp.org/tlog-proof@v1\nextra aGVsbG8=\nindex 1\n"
        "9uxmndLyrLjUO/G5ba8ttYcAPxbB+92R66EY2AIlggc=\n"
        "1JK9X42/SRJQ6agx86j8ePS8FSJZLzIezWMf5asTJng=\n"
        f"\n{newest}"
    )
    assert parse_proof(str(proof)) == proof
    assert "extra" not in str(make_proof(1, newest, HashReader(TileStorage(tmp_path), 3)))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
def test_every_entry_is_proven_against_a_kept_checkpoint(tmp_path: Path, size: int) -> None:
    kept = str(build(tmp_path, [size])[-1])
    reader = HashReader(TileStorage(tmp_path), size)
    newest = build(tmp_path / "same", [size])[-1]
    for index in {0, size // 2, size - 1}:
        text = str(make_proof(index, newest, reader, entry(index)))
        proven = verify_proof(text, kept, KEYS)
        assert (proven.index, proven.entry, proven.size, proven.witnesses) == (index, entry(index), size, ())
        assert verify_proof(text.encode(), None, KEYS, entry=entry(index)).index == index
        refused(lambda text=text: verify_proof(text, kept, KEYS, entry=b"another entry"))
        refused(lambda text=text, index=index: verify_proof(text.replace(f"index {index}\n", f"index {index + 1}\n"), kept, KEYS))
    refused(lambda: make_proof(size, newest, reader), Kind.NOT_FOUND)


def test_a_checkpoint_kept_since_long(tmp_path: Path) -> None:
    early, newest = build(tmp_path, [300, 700])[1:]
    reader = HashReader(TileStorage(tmp_path), 1000)
    now = str(make_proof(7, newest, reader, entry(7)))
    error = refused(lambda: verify_proof(now, str(early), KEYS))
    assert "300" in error.detail
    assert "size of the kept checkpoint" in error.hint
    again = checkpoint_at(300, newest, log_signer(), reader)
    assert str(again) == str(early), "an earlier checkpoint is signed with the same bytes"
    assert verify_proof(str(make_proof(7, again, reader, entry(7))), str(early), KEYS).size == 300
    assert verify_proof(now, str(early), KEYS, consistency=consistency_proof(300, 1000, reader)).size == 1000
    assert checkpoint_at(1000, newest, log_signer(), reader) is newest
    refused(lambda: checkpoint_at(1001, newest, log_signer(), reader), Kind.NOT_FOUND)


def test_nothing_is_signed_from_tiles_that_were_tampered_with(tmp_path: Path) -> None:
    newest = build(tmp_path, [300, 700])[-1]
    tile = tmp_path / "tile/0/000"
    tile.write_bytes(b"\x00" + tile.read_bytes()[1:])
    reader = HashReader(TileStorage(tmp_path), 1000)
    refused(lambda: checkpoint_at(100, newest, log_signer(), reader))


def test_another_history_of_the_same_log_does_not_pass(tmp_path: Path) -> None:
    newest = build(tmp_path, [20])[-1]
    text = str(make_proof(4, newest, HashReader(TileStorage(tmp_path), 20), entry(4)))
    other = build(tmp_path / "other", [21])[-1].checkpoint
    refused(lambda: verify_proof(text, str(sign_checkpoint(log_signer(), 20, other.root)), KEYS))
    refused(
        lambda: verify_proof(
            text, str(sign_checkpoint(log_signer("other.example"), 20, newest.checkpoint.root)), [*KEYS, log_signer("other.example").vkey]
        )
    )
    refused(lambda: verify_proof(text, None, [log_signer(seed=8).vkey]))


def test_witnesses_of_a_proof_are_named(tmp_path: Path) -> None:
    newest = build(tmp_path, [20])[-1]
    proof = make_proof(4, newest, HashReader(TileStorage(tmp_path), 20), entry(4))
    cosigned = Proof(
        proof.index, proof.path, merge_signatures(proof.checkpoint, [cosigner().cosign(proof.checkpoint.text, NOW)]), proof.entry
    )
    assert verify_proof(str(cosigned), None, KEYS, witnesses=[cosigner().vkey]).witnesses == ("witness.example/w1",)


def test_a_proof_without_its_entry_needs_the_entry(tmp_path: Path) -> None:
    newest = build(tmp_path, [2])[-1]
    text = str(make_proof(1, newest, HashReader(TileStorage(tmp_path), 2)))
    refused(lambda: verify_proof(text, None, KEYS))
    assert verify_proof(text, None, KEYS, entry=entry(1)).entry == entry(1)


SEED = "c2sp.org/tlog-proof@v1\nextra aGVsbG8=\nindex 1\n" + "A" * 43 + "=\n\nlog.example\n2\n" + "A" * 43 + "=\n\n— log.example AAAAAAAA\n"


def test_the_seed_is_a_proof() -> None:
    assert str(parse_proof(SEED)) == SEED


@given(st.data())
def test_reading_a_proof_never_crashes(data: st.DataObject) -> None:
    text = bytearray(SEED.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 40))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\n", b"\n\n", b"index 0", b"extra "])
        )
    for form in (bytes(text), text.decode("utf-8", "surrogateescape")):
        for call in (
            lambda form=form: parse_proof(form),
            lambda form=form: verify_proof(form, None, KEYS),
            lambda form=form: verify_proof(SEED, form, KEYS),
        ):
            with allowing(Kind.VERIFY_FAILED):
                call()
