"""Exports: whole, valid, harmless to spreadsheets, and made a page at a time."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from handclasp.clock import rfc3339
from handclasp.inventory.export import CSV_COLUMNS, FORMATS
from handclasp.inventory.filters import parse
from handclasp.inventory.search import Inventory
from handclasp.store.database import Store
from handclasp.wire import Certificate
from support.estate import NOW, Estate
from support.small_world import certificate

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]


def clock() -> int:
    return NOW


async def written(format_: str, pages: list[list[Certificate]], now: int = NOW) -> bytes:
    async def give() -> AsyncIterator[list[Certificate]]:
        for page in pages:
            yield page

    write = FORMATS[format_][0]
    return b"".join([part async for part in write(give(), parse("certificates", {"state": "valid"}, now), now)])


async def exported(url: str, format_: str, **query: str) -> tuple[bytes, Estate]:
    estate = Estate(7)
    store = await Store.open(url, clock, migrate=False)
    await estate.store(store)
    inventory = Inventory(store, clock)
    filters = parse("certificates", query, NOW)
    parts = [part async for part in FORMATS[format_][0](inventory.walk(filters, page=37), filters, NOW)]
    await store.close()
    return b"".join(parts), estate


def assert_valid(data: bytes) -> None:
    """Hold a document against CycloneDX's own schema, strictly: nothing that it does not know."""
    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(data.decode())
    assert error is None, error


def test_a_bill_of_materials_is_valid_and_holds_every_certificate(migrated_url: str) -> None:
    data, estate = asyncio.run(exported(migrated_url, "cbom"))
    assert_valid(data)
    document = json.loads(data)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.7")
    by_type: dict[str, list[dict]] = {}
    references = [one["bom-ref"] for one in document["components"]]
    assert len(set(references)) == len(references)
    for one in document["components"]:
        assert one["type"] == "cryptographic-asset"
        by_type.setdefault(one["cryptoProperties"]["assetType"], []).append(one)
    properties = [one["cryptoProperties"]["certificateProperties"] for one in by_type["certificate"]]
    assert {one["fingerprint"]["content"] for one in properties} == {fact.sha256.hex() for fact in estate.facts}
    assert {one["name"] for one in by_type["algorithm"]} == {fact.key_type for fact in estate.facts}
    known = set(references)
    for one in properties:
        assert {related["ref"] for related in one["relatedCryptographicAssets"]} <= known
    revoked = {fact.sha256.hex() for fact in estate.facts if fact.state == "revoked"}
    assert {one["fingerprint"]["content"] for one in properties if one["certificateState"][0]["state"] == "revoked"} == revoked


STRANGE = [
    {"serial": "", "subject": None, "problem": "it cannot be read", "key_type": "", "key_sha256": None},
    {"origin": "found", "identity": None, "subject": "CN=\u202eevil\x7f", "key_type": "rsa1024", "state": "expired", "is_ca": True},
    {"key_type": "rsa99999999999", "state": "superseded", "uri": ["urn:x:1"], "ip": ["::1"], "email": ["a@example.org"]},
    {"key_type": "other thing\u2028", "not_after": "9999-12-31T23:59:59Z", "issuer": "CN=x"},
]


@pytest.mark.parametrize("changes", [{}, *STRANGE])
def test_strange_certificates_are_valid_too(changes: dict[str, object]) -> None:
    strange = certificate("a1" * 32, "spiffe://example.org/web", state="valid")
    for name, value in changes.items():
        setattr(strange, name, value)
    data = asyncio.run(written("cbom", [[strange]]))
    assert_valid(data)


@pytest.mark.parametrize(("early", "state"), [(0, "active"), (1000, "pre-activation")])
def test_a_certificate_is_active_from_the_second_it_begins(early: int, state: str) -> None:
    begins = NOW - NOW % 1000
    new = certificate("a1" * 32, "spiffe://example.org/web", state="valid")
    new.not_before, new.not_after = rfc3339(begins + early), rfc3339(begins + 60_000)
    document = json.loads(asyncio.run(written("cbom", [[new]], begins + 250)))
    found = [one["cryptoProperties"].get("certificateProperties") for one in document["components"]]
    assert [one["certificateState"] for one in found if one] == [[{"state": state}]]


def test_nothing_is_a_document_too() -> None:
    for format_ in FORMATS:
        data = asyncio.run(written(format_, []))
        if format_ == "cbom":
            assert_valid(data)
        elif format_ == "json":
            assert json.loads(data)["count"] == 0
        else:
            assert data.endswith(b"# 0 certificates\r\n")


def test_json_is_one_document_with_what_was_asked(migrated_url: str) -> None:
    data, estate = asyncio.run(exported(migrated_url, "json", origin="found"))
    document = json.loads(data)
    wanted = [fact.sha256.hex() for fact in estate.facts if fact.origin == "found"]
    assert sorted(one["sha256"] for one in document["items"]) == sorted(wanted)
    assert (document["count"], document["filters"]) == (len(wanted), {"origin": "found"})


def test_csv_has_a_line_for_each_and_says_how_many(migrated_url: str) -> None:
    data, estate = asyncio.run(exported(migrated_url, "csv"))
    header, *lines, last = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert tuple(header) == CSV_COLUMNS
    assert sorted(line[0] for line in lines) == sorted(fact.sha256.hex() for fact in estate.facts)
    assert last == [f"# {len(estate.facts)} certificates"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_calculates(text: str) -> None:
    strange = certificate("a1" * 32, "spiffe://example.org/web", subject=text, owner=text, dns=[text, "b"], issuer=text, problem=text)
    data = asyncio.run(written("csv", [[strange]]))
    _, line, _ = list(csv.reader(io.StringIO(data.decode(), newline="")))
    for name in ("subject", "owner", "dns", "issuer", "problem"):
        cell = line[CSV_COLUMNS.index(name)]
        assert cell.startswith("'")
        assert cell[1:].startswith(text)


@pytest.mark.parametrize(
    ("text", "shown"), [("a;=1+1", "a;'=1+1"), ('a;"-1;@x', "a;\"'-1;'@x"), ("a; b=1;c", "a; b=1;c"), ("a-b=c", "a-b=c")]
)
def test_no_cell_calculates_where_semicolons_part_cells(text: str, shown: str) -> None:
    data = asyncio.run(written("csv", [[certificate("a1" * 32, "spiffe://example.org/web", subject=text)]]))
    _, line, _ = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert line[CSV_COLUMNS.index("subject")] == shown


def test_an_export_holds_one_page_at_a_time() -> None:
    alive = 0
    most = 0

    async def pages() -> AsyncIterator[list[Certificate]]:
        nonlocal alive, most
        for number in range(50):
            alive += 1
            most = max(most, alive)
            yield [certificate(f"{number:064x}", "spiffe://example.org/web", state="valid")] * 10

    async def run() -> None:
        nonlocal alive
        for write, _, _ in FORMATS.values():
            alive = 0
            async for _part in write(pages(), parse("certificates", {}, NOW), NOW):
                alive = 0
            assert most == 1

    asyncio.run(run())
