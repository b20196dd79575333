from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.checkpoint import (
    add_checkpoint_request,
    open_checkpoint,
    parse_add_checkpoint_request,
    parse_checkpoint,
    sign_checkpoint,
)
from handclasp.log.merkle import EMPTY_ROOT
from handclasp.log.notes import (
    COSIGNATURE_ML_DSA_44,
    MAX_NOTE,
    Note,
    Signature,
    b64,
    make_vkey,
    merge_signatures,
    ml_dsa_message,
    parse_note,
    parse_signatures,
    parse_vkey,
    verify_note,
    verify_signature,
)
from support.errors import allowing
from support.logs import NOW, ORIGIN, cosigner, log_signer

# The example of C2SP signed-note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
ROOT = bytes(range(32))
SIGNED = sign_checkpoint(log_signer(), 70_000, ROOT)


def refused(kind: Kind, call: Callable[[], object]) -> HandclaspError:
    with pytest.raises(HandclaspError) as caught:
        call()
    assert caught.value.kind is kind
    return caught.value


def test_the_example_of_the_standard() -> None:
    key = parse_vkey(VKEY)
    assert str(key) == VKEY
    note = parse_note(NOTE)
    assert str(note) == NOTE
    assert verify_note(note, [key]) == (key,)
    refused(Kind.VERIFY_FAILED, lambda: verify_note(parse_note(NOTE.replace("an example", "no example")), [key]))


def test_golden_bytes_of_keys_and_checkpoints() -> None:
    assert str(log_signer().vkey) == "log.example.org/handclasp+83c77f90+AYqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
    assert str(cosigner().vkey) == "witness.example/w1+df1c0a35+BIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU"
    assert str(SIGNED) == (
        "log.example.org/handclasp\n"
        "70000\n"
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
        "\n"
        "— log.example.org/handclasp g8d/kK03DzfJld0PfWklS7v5+3Z0PHGqxAtAtorLV7EsiIzNB+I0AF9r9LLvyAjQ2DkZihcuBpS+dmq9b/Kl+VCsKg0=\n"
    )
    assert str(cosigner().cosign(SIGNED.note.text, NOW)) == (
        "— witness.example/w1 3xwKNQAAAABpVbkAyPocuFOSbfMZmQTko5ryT6kBvGVYPqZG6ecAWS89DnOxPPF1KxSn9kMWvAfWLmN4XoiOiSPmGs4HdqHeqc60Ag==\n"
    )


def test_a_checkpoint_opens_with_the_key_of_its_log_only() -> None:
    log, witness = log_signer().vkey, cosigner().vkey
    opened = open_checkpoint(str(SIGNED), [log], [witness])
    assert (opened.checkpoint.origin, opened.checkpoint.size, opened.checkpoint.root) == (ORIGIN, 70_000, ROOT)
    assert (opened.signers, opened.witnesses) == ((log,), ())
    error = refused(Kind.VERIFY_FAILED, lambda: open_checkpoint(str(SIGNED), [log_signer("other.example").vkey]))
    assert "whose key is not given" in error.detail
    refused(Kind.VERIFY_FAILED, lambda: open_checkpoint(str(SIGNED), [log_signer(seed=9).vkey]))
    cosigned_only = Note(SIGNED.note.text, (cosigner().cosign(SIGNED.note.text, NOW),))
    refused(Kind.VERIFY_FAILED, lambda: open_checkpoint(cosigned_only, [log], [witness]))


def test_cosignatures_are_over_the_checkpoint_and_the_time() -> None:
    log, witness = log_signer().vkey, cosigner().vkey
    line = cosigner().cosign(SIGNED.note.text, NOW)
    note = merge_signatures(SIGNED.note, [line])
    opened = open_checkpoint(str(note), [log], [witness])
    assert opened.witnesses == (witness,)
    assert verify_signature(line, SIGNED.note.text, witness) == NOW // 1000
    moved = Signature(line.name, line.key_id, struct.pack(">Q", NOW // 1000 + 1) + line.data[8:])
    refused(Kind.VERIFY_FAILED, lambda: verify_signature(moved, SIGNED.note.text, witness))
    refused(Kind.VERIFY_FAILED, lambda: open_checkpoint(merge_signatures(SIGNED.note, [moved]), [log], [witness]))
    assert open_checkpoint(merge_signatures(SIGNED.note, [moved]), [log]).witnesses == (), (
        "of an unknown witness nothing is believed or refused"
    )


def test_a_newer_signature_of_the_same_key_takes_the_place_of_the_older() -> None:
    first, second = (cosigner().cosign(SIGNED.note.text, NOW + wait) for wait in (0, 5000))
    note = merge_signatures(merge_signatures(SIGNED.note, [first]), [second])
    assert note.signatures == (*SIGNED.note.signatures, second)


def test_an_ml_dsa_witness_is_understood() -> None:
    key = MLDSA44PrivateKey.generate()
    vkey = make_vkey("witness.example/pq", COSIGNATURE_ML_DSA_44, key.public_key().public_bytes_raw())
    assert parse_vkey(str(vkey)) == vkey
    message = ml_dsa_message(SIGNED.note.text, 1_700_000_000, vkey.name)
    assert message == (
        b"subtree/v1\n\x00\x12witness.example/pq" + (1_700_000_000).to_bytes(8) + bytes([len(ORIGIN)]) + ORIGIN.encode() + bytes(8)
        + (70_000).to_bytes(8) + ROOT
    )  # fmt: skip
    line = Signature(vkey.name, vkey.key_id, struct.pack(">Q", 1_700_000_000) + key.sign(message))
    assert open_checkpoint(merge_signatures(SIGNED.note, [line]), [log_signer().vkey], [vkey]).witnesses == (vkey,)
    renamed = make_vkey("witness.example/qq", COSIGNATURE_ML_DSA_44, vkey.public)
    refused(Kind.VERIFY_FAILED, lambda: verify_signature(line, SIGNED.note.text, renamed))
    refused(Kind.VERIFY_FAILED, lambda: verify_signature(line, "not a checkpoint\n1\n", vkey))


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("empty", ""),
        ("two parts", "name+00000000"),
        ("no base64", "example.com/foo+530d903a+!!!"),
        ("an id of another key", VKEY.replace("530d903a", "530d903b")),
        ("a space in the name", VKEY.replace("foo", "f o")),
        ("no name", "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"),
        ("an unknown signature type", "example.com/foo+530d903a+AukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"),
        ("a key too short", "example.com/foo+530d903a+Aeky"),
    ],
)
def test_what_is_no_verifier_key(why: str, text: str) -> None:
    refused(Kind.BAD_KEY, lambda: parse_vkey(text))


LINE = NOTE.split("\n\n")[1]


@pytest.mark.parametrize(
    ("why", "note"),
    [
        ("empty", ""),
        ("no signature", "text\n\n"),
        ("no empty line", "text\n" + LINE),
        ("no text", "\n\n" + LINE),
        ("the last newline is missing", NOTE[:-1]),
        ("a control character", NOTE.replace("example message", "example\tmessage")),
        ("a carriage return", NOTE.replace("\n", "\r\n")),
        ("not UTF-8", b"\xff\n\n" + LINE.encode()),
        ("a hyphen for the dash", NOTE.replace("—", "-")),
        ("base64 with stray bits", NOTE.replace("aQM=", "aQN=")),
        ("a signature without bytes", "text\n\n— name Uw2QOg==\n"),
        ("a line too many", NOTE + "\n"),
        ("too long", "x" * MAX_NOTE + "\n\n" + LINE),
        ("too many signatures", "text\n\n" + LINE * 65),
    ],
)
def test_what_is_no_note(why: str, note: str | bytes) -> None:
    refused(Kind.VERIFY_FAILED, lambda: parse_note(note))


def test_sixteen_signatures_are_read() -> None:
    assert len(parse_note("text\n\n" + LINE * 16).signatures) == 16


GOOD = f"{ORIGIN}\n12\n{b64(ROOT)}\n"


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("two lines", f"{ORIGIN}\n12\n"),
        ("no newline at the end", GOOD[:-1]),
        ("an empty origin", GOOD.replace(ORIGIN, "")),
        ("a size with a zero in front", GOOD.replace("12", "012")),
        ("a negative size", GOOD.replace("12", "-12")),
        ("a size in Arabic digits", GOOD.replace("12", "\u0661\u0662")),
        ("a size beyond 63 bits", GOOD.replace("12", str(2**63))),
        ("a root of 31 bytes", f"{ORIGIN}\n12\n{b64(ROOT[1:])}\n"),
        ("an empty line among the extensions", GOOD + "a\n\nb\n"),
    ],
)
def test_what_is_no_checkpoint(why: str, text: str) -> None:
    refused(Kind.VERIFY_FAILED, lambda: parse_checkpoint(text))


def test_extension_lines_of_others_are_kept() -> None:
    assert str(parse_checkpoint(GOOD + "more\n")) == GOOD + "more\n"


def test_a_request_to_a_witness_reads_back() -> None:
    body = add_checkpoint_request(7, [ROOT, EMPTY_ROOT], SIGNED.note)
    assert body == f"old 7\n{b64(ROOT)}\n{b64(EMPTY_ROOT)}\n\n{SIGNED}".encode()
    assert parse_add_checkpoint_request(body) == (7, [ROOT, EMPTY_ROOT], SIGNED.note)
    assert parse_add_checkpoint_request(add_checkpoint_request(0, [], SIGNED.note)) == (0, [], SIGNED.note)
    too_long = add_checkpoint_request(7, [ROOT] * 64, SIGNED.note)
    refused(Kind.VERIFY_FAILED, lambda: parse_add_checkpoint_request(too_long))


SEEDS = [NOTE.encode(), str(SIGNED).encode(), add_checkpoint_request(7, [ROOT], SIGNED.note), VKEY.encode(), GOOD.encode()]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(
            st.sampled_from([b"", b"\n", b"\n\n", b" ", b"+", b"\x00", b"9", "—".encode()]) | st.binary(max_size=3)
        )
    return bytes(data)


@given(st.binary(max_size=200) | mutated())
def test_reading_never_crashes_and_what_reads_is_written_the_same(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse, kind in (
        (lambda: parse_note(data), Kind.VERIFY_FAILED),
        (lambda: parse_note(text), Kind.VERIFY_FAILED),
        (lambda: parse_add_checkpoint_request(data), Kind.VERIFY_FAILED),
        (lambda: parse_checkpoint(text), Kind.VERIFY_FAILED),
        (lambda: parse_signatures(text), Kind.VERIFY_FAILED),
        (lambda: parse_vkey(text), Kind.BAD_KEY),
        (lambda: open_checkpoint(data, [log_signer().vkey]), Kind.VERIFY_FAILED),
    ):
        with allowing(kind):
            found: object = parse()
            assert not isinstance(found, Note) or str(found).encode() == data
