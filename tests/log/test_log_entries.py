from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.log.entries import ENTRY_TYPES, MAX_ENTRY, make_entry, parse_entry, salted_hash
from support.errors import allowing

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def test_golden_bytes_of_an_entry() -> None:
    made = make_entry(
        "certificate.issued",
        at=1_767_225_600_250,
        who={"kind": "token", "id": "abcd"},
        what={"sha256": "00ff", "dns": ["b.example", "a.example"], "count": 2, "ok": True, "none": None},
        why={"grant": "token:abcd"},
        source={"address": "192.0.2.7"},
        personal={"email": "ann@example.org"},
        subjects=["token:abcd"],
        random=lambda size: b"\x07" * size,
    )
    assert made.data == (
        b'{"at":"2026-01-01T00:00:00.250Z","from":{"address":"192.0.2.7"},'
        b'"personal":{"email":{"salted":"a5a0025748d03b25d5b55d6f9d2fdaef21dae769f55d15ad6150e7f70cd14412"}},'
        b'"type":"certificate.issued","v":1,'
        b'"what":{"count":2,"dns":["b.example","a.example"],"none":null,"ok":true,"sha256":"00ff"},'
        b'"who":{"id":"abcd","kind":"token"},"why":{"grant":"token:abcd"}}'
    )
    assert made.personal == (("email", b"\x07" * 16, "ann@example.org"),)
    assert made.subjects == ("token:abcd",)
    assert b"ann@" not in made.data


def test_what_is_empty_is_left_out() -> None:
    made = make_entry("server.started", at=0, who={}, what={})
    assert made.data == b'{"at":"1970-01-01T00:00:00Z","type":"server.started","v":1,"what":{},"who":{}}'
    assert (made.personal, made.subjects) == ((), ())


def test_a_member_of_an_enumeration_is_written_as_its_text() -> None:
    assert b'{"kind":"bad_csr"}' in make_entry("issuance.refused", at=0, who={}, what={"kind": Kind.BAD_CSR}).data


def test_keys_are_in_the_order_of_rfc_8785() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]  # the example of RFC 8785 section 3.2.3
    made = make_entry("server.started", at=0, who={}, what=dict.fromkeys(keys, 1))
    assert list(json.loads(made.data)["what"]) == ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_strings_are_escaped_as_rfc_8785_says() -> None:
    text = "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028€'
    made = make_entry("server.started", at=0, who={}, what={"t": text})
    escaped = (
        "\\u0000\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\b\\t\\n\\u000b\\f\\r\\u000e\\u000f"
        "\\u0010\\u0011\\u0012\\u0013\\u0014\\u0015\\u0016\\u0017\\u0018\\u0019\\u001a\\u001b\\u001c\\u001d\\u001e\\u001f"
    )
    assert f'{{"t":"{escaped}\\"\\\\/\x7f\u2028€"}}'.encode() in made.data


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("why", "type_", "what", "kind"),
    [
        ("a type nobody declared", "certificate.eaten", {}, Kind.INTERNAL),
        ("a float has no one canonical form here", "server.started", {"a": 1.5}, Kind.INTERNAL),
        ("an integer that a double cannot hold", "server.started", {"a": 2**53}, Kind.INTERNAL),
        ("and a negative one", "server.started", {"a": -(2**53)}, Kind.INTERNAL),
        ("bytes are not JSON", "server.started", {"a": b""}, Kind.INTERNAL),
        ("a key that is not text", "server.started", {1: "a"}, Kind.INTERNAL),
        ("a lone surrogate in a value", "server.started", {"a": "\ud800"}, Kind.BAD_REQUEST),
        ("a lone surrogate in a key", "server.started", {"\ud800": "a"}, Kind.BAD_REQUEST),
        ("endless nesting", "server.started", {"a": nested(40)}, Kind.INTERNAL),
        ("more than a bundle can hold", "server.started", {"a": "x" * MAX_ENTRY}, Kind.TOO_LARGE),
    ],
)
def test_what_cannot_be_an_entry(why: str, type_: str, what: dict[str, Any], kind: Kind) -> None:
    with pytest.raises(HandclaspError) as caught:
        make_entry(type_, at=0, who={}, what=what)
    assert caught.value.kind is kind


def test_the_longest_entry() -> None:
    room = MAX_ENTRY - len(make_entry("server.started", at=0, who={}, what={"a": ""}).data)
    assert len(make_entry("server.started", at=0, who={}, what={"a": "x" * room}).data) == MAX_ENTRY
    with pytest.raises(HandclaspError, match="over the limit"):
        make_entry("server.started", at=0, who={}, what={"a": "x" * (room + 1)})


def test_each_type_has_a_meaning() -> None:
    for name, meaning in ENTRY_TYPES.items():
        assert name.count(".") == 1
        assert name.islower()
        assert meaning.endswith(".")


def test_salts_are_fresh_so_that_equal_values_do_not_look_equal() -> None:
    one, two = (make_entry("server.started", at=0, who={}, what={}, personal={"p": "ann"}) for _ in range(2))
    assert one.data != two.data
    for made in (one, two):
        ((field, salt, value),) = made.personal
        assert parse_entry(made.data)["personal"][field] == {"salted": salted_hash(salt, value)}


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_every_entry_is_canonical_and_reads_back(what: dict[str, Any]) -> None:
    made = make_entry("server.started", at=5, who={"a": "b"}, what=what)
    document = parse_entry(made.data)
    assert document == json.loads(made.data)
    assert document["what"] == what
    shuffled = dict(reversed(list(what.items())))
    assert make_entry("server.started", at=5, who={"a": "b"}, what=shuffled).data == made.data


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: json.dumps({"a": text}).encode()))
def test_reading_an_entry_never_crashes(data: bytes) -> None:
    with allowing(Kind.TAMPERED):
        parse_entry(data)


@pytest.mark.parametrize("data", [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1.0}', b'{"a":1,"a":1}', b"[]", b'{"a":"\\u0061"}', b"[" * 100_000])
def test_json_that_is_not_canonical_is_no_entry(data: bytes) -> None:
    with pytest.raises(HandclaspError) as caught:
        parse_entry(data)
    assert caught.value.kind is Kind.TAMPERED


@pytest.mark.parametrize(
    ("who", "shown", "kept"),
    [
        (
            {"kind": "oidc", "issuer": "https://i", "subject": "ann@x.org"},
            {"kind": "oidc", "issuer": "https://i"},
            {"who.subject": "ann@x.org"},
        ),
        (
            {"kind": "console", "id": "oidc:ann@x.org", "role": "admin"},
            {"kind": "console", "id": "oidc", "role": "admin"},
            {"who.id": "oidc:ann@x.org"},
        ),
        ({"kind": "console", "id": "oidc:u-1", "role": "admin"}, {"kind": "console", "id": "oidc:u-1", "role": "admin"}, {}),
        ({"kind": "oidc", "subject": "repo:org/x:ref"}, {"kind": "oidc", "subject": "repo:org/x:ref"}, {}),
    ],
)
def test_who_is_known_by_an_address_can_be_erased(who: dict[str, str], shown: dict[str, str], kept: dict[str, str]) -> None:
    made = make_entry("server.started", at=0, who=who, what={}, personal={"reason": "why"})
    assert b"ann" not in made.data
    assert parse_entry(made.data)["who"] == shown
    assert {name: value for name, _, value in made.personal} == {"reason": "why", **kept}
