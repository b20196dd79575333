"""Files of other inventories: what they come to, and that no key of theirs goes anywhere."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclasp.discovery.imports.read import FORMATS, Imported, guess_format, read_import
from handclasp.discovery.imports.record import check_import
from handclasp.errors import HandclaspError, Kind
from handclasp.wire.observations import Covered, Observed, Seen, SeenKey, Sightings
from support.errors import allowing, refused
from support.fake_server import FakeAuthority

NOW = 1_800_000_000_000
AUTHORITY = FakeAuthority()
CHAIN, KEY = AUTHORITY.credential(dns=["old.example"])
LEAF_PEM = CHAIN.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
LEAF = base64.b64decode("".join(LEAF_PEM.splitlines()[1:-1]))
DIGEST = hashlib.sha256(LEAF).hexdigest()


def read(data: bytes | str, format_: Any = None, name: str = "file", **columns: str) -> tuple[list[Observed], Imported]:
    raw = data.encode() if isinstance(data, str) else data
    done = Imported()
    return list(read_import(raw, format_ or guess_format(name, raw), lambda: NOW, done, columns=columns)), done


def table(*rows: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def test_a_bundle_is_a_location_for_each_certificate_and_its_keys_stay_here() -> None:
    found, done = read(b"# ours\n" + CHAIN + KEY + CHAIN)
    assert found[0].certificates[0].der == LEAF
    assert found[0].key == f"import:{DIGEST}"
    assert (len(found), done.keys, done.problems, done.certificates) == (2, 1, 0, 2)
    sent = msgspec.json.encode(found)
    assert b"PRIVATE" not in sent
    assert base64.b64encode(KEY)[40:80] not in sent
    assert [one.key for one in read(CHAIN)[0]] == [one.key for one in found]  # twice is the same as once


@pytest.mark.parametrize(
    "hostile",
    [
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----\n",
        b"-----BEGIN A-----\n-----END B-----\n",
    ],
)
def test_blocks_that_never_end_are_passed_over_in_one_pass(hostile: bytes) -> None:
    """Each of them searched to the end of the file would be hours."""
    found, done = read(hostile * (8_000_000 // len(hostile)) + CHAIN)
    assert (len(found), done.problems) == (len(read(CHAIN)[0]), 0)


def test_text_between_blocks_and_broken_blocks_do_no_harm() -> None:
    broken = b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n"
    found, done = read(b"Bag Attributes\n  x: y\n" + broken + CHAIN)
    assert len(found) == 3
    assert found[0].certificates[0].der == b"not base64!"  # kept as it is: the inventory says what is wrong with it
    assert done.problems == 0


def test_tables_by_their_usual_names_and_by_given_ones() -> None:
    rows = [["Certificate", "Location", "Owner", "Hostname"], [LEAF_PEM, "lb-1:443", "team-web", "lb-1"]]
    (one,), _ = read(table(*rows), name="x.csv")
    assert (one.key, one.shown, one.host, one.facts) == ("import:lb-1:443", "lb-1:443", "lb-1", {"tags": {"owner": "team-web"}})
    assert one.certificates[0].der == LEAF
    rows = [["Body of it", "Where"], [LEAF_PEM.replace("\n", "\\n"), "here"]]
    (one,), _ = read(table(*rows), "csv", pem="body of it", location="Where")
    assert (one.certificates[0].der, one.key) == (LEAF, "import:here")


def test_two_certificates_in_one_place_are_both_kept() -> None:
    other = AUTHORITY.credential(dns=["new.example"])[0].decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    rows = [["pem", "sha256", "location"], [LEAF_PEM, "", "dc-1"], [other, "", "dc-1"], [LEAF_PEM, "", "dc-1"], ["", "ab" * 32, "dc-1"]]
    found, done = read(table(*rows), "csv")
    assert found[0].key == "import:dc-1"
    assert (len({one.key for one in found}), {one.shown for one in found}, done.certificates) == (3, {"dc-1"}, 3)
    assert [one.key for one in read(table(*rows), "csv")[0]] == [one.key for one in found]


def test_a_table_with_fingerprints_alone() -> None:
    colons = ":".join(DIGEST[at : at + 2] for at in range(0, 64, 2)).upper()
    rows = [["SHA256 fingerprint", "Common Name", "Valid from", "Not after"], [colons, "old.example", "2026-01-01", "2026-06-01 12:00:00"]]
    (one,), _ = read(table(*rows), "csv", sha256="SHA256 fingerprint")
    seen = one.certificates[0]
    assert (seen.der, bytes(seen.sha256 or b"").hex(), seen.identity) == (None, DIGEST, "old.example")
    assert (seen.not_before, seen.not_after) == (1_767_225_600_000, 1_780_315_200_000)


def test_rows_that_hold_nothing_are_kept_with_the_reason() -> None:
    rows = [["pem", "sha256", "location"], ["", "", ""], ["nothing", "", "lb-2"], ["", "1234", "lb-3"], [KEY.decode(), "", "lb-4"]]
    found, done = read(table(*rows), "csv")
    assert [(one.key, one.problem is not None, one.certificates) for one in found] == [
        (f"import:lb-{number}", True, []) for number in (2, 3, 4)
    ]
    assert (done.problems, done.keys) == (3, 1)
    assert b"PRIVATE" not in msgspec.json.encode(found)


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("", {}, "empty"),
        ("a,b\n1,2\n", {}, "no column"),
        ("a,b\n1,2\n", {"pem": "c"}, "no column 'c'"),
        ("a,b\n1,2\n", {"colour": "a"}, "not a meaning"),
    ],
)
def test_what_is_no_table_of_certificates_is_refused(text: str, columns: dict[str, str], words: str) -> None:
    with refused(Kind.BAD_REQUEST, words):
        read(text, "csv", **columns)


LEMUR = {
    "id": 7, "name": "old.example-Test-20260101-20270101", "owner": "team-web@example.org", "description": "front door", "body": LEAF_PEM,
    "chain": CHAIN.decode().removeprefix(LEAF_PEM), "cn": "old.example", "privateKey": KEY.decode(), "active": True,
}  # fmt: skip


@pytest.mark.parametrize("document", [{"items": [LEMUR], "total": 1}, [LEMUR], LEMUR], ids=["a page", "a list", "one"])
def test_what_lemur_exports(document: Any) -> None:
    (one,), done = read(json.dumps(document))
    assert one.key == f"import:{DIGEST}"
    assert one.shown == LEMUR["name"]
    assert one.facts == {"tags": {"owner": "team-web@example.org", "description": "front door"}}
    assert (one.certificates[0].der, one.certificates[0].role) == (LEAF, "listed")
    assert len(one.certificates[0].chain) == 1
    assert done.keys == 1
    assert b"PRIVATE" not in msgspec.json.encode(one)


def test_items_without_a_certificate_are_kept_with_the_reason() -> None:
    found, done = read(json.dumps({"items": [LEMUR, {"id": 8}, 9, None, {"body": 7}]}))
    assert [one.problem is None for one in found] == [True, False, False, False, False]
    assert done.problems == 4


@given(st.binary(max_size=600), st.sampled_from(FORMATS))
@settings(max_examples=300)
def test_no_file_does_more_than_be_refused(data: bytes, format_: Any) -> None:
    for text in (
        data,
        b"-----BEGIN CERTIFICATE-----\n" + data + b"-----END CERTIFICATE-----",
        b"pem,sha256\n" + data,
        b'{"items": [' + data,
    ):
        with allowing(Kind.BAD_REQUEST):
            for one in read_import(text, format_, lambda: NOW, Imported()):
                msgspec.convert(msgspec.json.decode(msgspec.json.encode(one)), Observed)  # it can be sent
                assert one.key.startswith("import:")
    with allowing(Kind.BAD_REQUEST):
        guess_format("x", data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just(LEAF_PEM),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["body", "chain", "name", "owner", "items"]), inner),
    max_leaves=10,
)


@given(JSON)
@settings(max_examples=200)
def test_no_export_does_more_than_be_refused(document: Any) -> None:
    with allowing(Kind.BAD_REQUEST):
        for one in read_import(json.dumps(document).encode(), "lemur", lambda: NOW, Imported()):
            msgspec.convert(msgspec.json.decode(msgspec.json.encode(one)), Observed)


def imported(**changes: Any) -> Sightings:
    one = Observed(key="import:x", kind="import", shown="x", at=NOW + 5, certificates=[Seen(der=LEAF, role="listed")])
    for name, value in changes.items():
        setattr(one, name, value)
    return Sightings(observed=[one])


@pytest.mark.parametrize(
    "sightings",
    [
        imported(kind="endpoint"),
        imported(key="tls:web:443/"),
        imported(private_key=SeenKey()),
        imported(certificates=[Seen(der=LEAF, role="served")]),
        imported(certificates=[Seen(der=LEAF, role="stored")]),
        imported(certificates=[Seen(der=LEAF, role="anchor")]),
        Sightings(covered=[Covered(unit="x", began_at=1)]),
    ],
)
def test_an_import_cannot_say_what_only_discovery_sees(sightings: Sightings) -> None:
    with pytest.raises(HandclaspError) as caught:
        check_import(sightings, {}, NOW)
    assert caught.value.kind is Kind.BAD_REQUEST


def test_an_import_is_never_from_the_future_and_has_its_sources_facts() -> None:
    (one,) = check_import(imported(facts={"tags": {"owner": "a"}}), {"environment": "prod"}, NOW).observed
    assert one.at == NOW
    assert one.facts == {"environment": "prod", "tags": {"owner": "a"}}
