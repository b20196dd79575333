"""Certificates as the world makes them, all the way: recorded, listed, shown, exported, as lists, tables and bills of materials."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from handclasp.clock import parse_rfc3339, rfc3339
from handclasp.inventory.export import FORMATS
from handclasp.inventory.filters import parse
from handclasp.inventory.identities import Identities
from handclasp.inventory.places import Places
from handclasp.inventory.resolve import Resolver
from handclasp.inventory.search import Inventory
from handclasp.pki import der, keys
from handclasp.wire.observations import Seen
from support.inventory import sha, watch

YEARS = {"1": b"00010101000000Z", "9999": b"99991231235959Z"}


def spki(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


P256 = spki(keys.generate("p256"))
ECDSA = der.sequence(der.oid("1.2.840.10045.4.3.2"))


def name(*parts: tuple[str, bytes]) -> bytes:
    return der.sequence(*(der.set_(der.sequence(der.oid(kind), value)) for kind, value in parts))


CN = "2.5.4.3"


def extension(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.octet_string(value))


def san(*names: bytes) -> bytes:
    return extension("2.5.29.17", der.sequence(*names))


def dns(text: str) -> bytes:
    return der.implicit(2, text.encode())


def made(
    *,
    version: bytes = der.explicit(0, der.integer(2)),
    serial: bytes = der.integer(77),
    algorithm: bytes = ECDSA,
    issuer: bytes = name((CN, der.utf8_string("Somebody Else"))),
    begins: bytes = der.tlv(0x17, b"200101000000Z"),
    ends: bytes = der.tlv(0x17, b"491231235959Z"),
    subject: bytes = name((CN, der.utf8_string("weird.example.net"))),
    key: bytes = P256,
    extensions: tuple[bytes, ...] | None = (),
) -> bytes:
    parts = [version, serial, algorithm, issuer, der.sequence(begins, ends), subject, key]
    if extensions is not None:
        parts.append(der.explicit(3, der.sequence(*extensions)))
    return der.sequence(der.sequence(*parts), algorithm, der.bit_string(b"not a signature"))


_ONE = dns("twice.example.net")
WEIRD: Mapping[str, bytes] = {
    "negative serial": made(serial=der.tlv(0x02, b"\xff\x01")),
    "serial zero": made(serial=der.integer(0)),
    "huge serial": made(serial=der.tlv(0x02, b"\x01" * 300)),
    "empty serial": made(serial=der.tlv(0x02, b"")),
    "version 1": made(version=b"", extensions=None),
    "no extensions": made(extensions=None),
    "year 9999": made(ends=der.tlv(0x18, YEARS["9999"])),
    "year 1": made(begins=der.tlv(0x18, YEARS["1"]), ends=der.tlv(0x18, YEARS["1"])),
    "1950": made(begins=der.tlv(0x17, b"500101000000Z"), ends=der.tlv(0x17, b"500102000000Z")),
    "the end of 1969": made(begins=der.tlv(0x17, b"691231235958Z"), ends=der.tlv(0x17, b"691231235959Z")),
    "not yet": made(begins=der.tlv(0x17, b"480101000000Z")),
    "ends before it begins": made(begins=der.tlv(0x17, b"490101000000Z"), ends=der.tlv(0x17, b"210101000000Z")),
    "4096 names": made(extensions=(san(*(dns(f"n{number}.example.net") for number in range(4096))),)),
    "twice the same extension": made(extensions=(san(_ONE), san(_ONE, dns("also.example.net")))),
    "an empty list of names": made(extensions=(san(),)),
    "BMPString": made(subject=name((CN, der.tlv(0x1E, "bmp ☃".encode("utf-16-be"))))),
    "BMPString of an odd length": made(subject=name((CN, der.tlv(0x1E, b"\x00a\x00")))),
    "UniversalString": made(subject=name((CN, der.tlv(0x1C, "größe".encode("utf-32-be"))))),
    "empty subject": made(subject=der.sequence(), extensions=(san(dns("only.example.net")),)),
    "empty subject and issuer": made(subject=der.sequence(), issuer=der.sequence()),
    "NUL in a name": made(extensions=(san(dns("good.example.net\x00.evil.example.net")),)),
    "a name that is markup": made(subject=name((CN, der.utf8_string('=cmd|"<script>alert(1)</script>')))),
    "not UTF-8": made(subject=name((CN, der.tlv(0x0C, b"\xff\xfe\xfd")))),
    "a name of 100 kB": made(subject=name((CN, der.utf8_string("x" * 100_000)))),
    "other names": made(
        extensions=(san(der.implicit(7, b"\x01\x02"), der.implicit(1, b"nobody"), der.implicit(6, b"urn:x"), der.implicit(8, b"*")),)
    ),
    "Ed448": made(key=spki(ed448.Ed448PrivateKey.generate()), algorithm=der.sequence(der.oid("1.3.101.113"))),
    "RSA 1024, SHA-1": made(
        key=spki(rsa.generate_private_key(65537, 1024)), algorithm=der.sequence(der.oid("1.2.840.113549.1.1.5"), der.tlv(5, b""))
    ),
    "DSA": made(key=spki(dsa.generate_private_key(2048)), algorithm=der.sequence(der.oid("1.2.840.10040.4.3"))),
    "an unknown key": made(
        key=der.sequence(der.sequence(der.oid("1.2.3.4.5.6")), der.bit_string(b"x")), algorithm=der.sequence(der.oid("1.2.3.4"))
    ),
    "no dates": made(begins=der.tlv(0x05, b""), ends=der.tlv(0x05, b"")),
    "31 February": made(ends=der.tlv(0x17, b"400231000000Z")),
    "trailing bytes": made() + b"and more",
    "cut off": made()[:-20],
    "text": b"-----BEGIN CERTIFICATE-----",
    "nothing at all": b"",
}  # fmt: skip


def assert_valid(data: bytes) -> None:
    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(data.decode())
    assert error is None, error


def test_weird_certificates_go_all_the_way(migrated_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with watch(tmp_path, migrated_url) as here:
            clock = here.house.here.clock
            told = [
                Seen(sha256=b"\1" * 32),
                Seen(sha256=b"\2" * 32, not_before=-(1 << 61), not_after=1 << 61, identity="spiffe://elsewhere/x"),
                Seen(sha256=b"\3" * 32, not_after=-1),
            ]
            recorded = await here.see(
                *(here.at(f"tls:{what}", data) for what, data in WEIRD.items()),
                *(here.at(f"told:{number}", seen) for number, seen in enumerate(told)),
            )
            assert recorded.failed == 0
            await here.settle()
            wanted = {sha(data) for data in WEIRD.values()} | {seen.sha256 for seen in told if seen.sha256}
            assert (await here.states()).keys() == wanted, "each of them stands for something, and none is left out"
            inventory = Inventory(here.store, clock)
            shown = {
                bytes.fromhex(one.sha256): one async for page in inventory.walk(parse("certificates", {}, here.now), page=7) for one in page
            }
            assert wanted <= shown.keys()
            for sha256 in wanted:
                one = await inventory.certificate(sha256)
                assert parse_rfc3339(one.not_before) <= parse_rfc3339("9999-12-31T23:59:59Z")
                parse_rfc3339(one.not_after)
                assert all(text.isprintable() for text in (one.subject or "", one.issuer or "", *one.dns, *one.uri, *one.email))
            names = {what: shown[sha(data)] for what, data in WEIRD.items()}
            assert (names["year 1"].not_after, names["year 9999"].not_after) == ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
            assert names["1950"].not_before == "1950-01-01T00:00:00Z"
            assert {names[what].key_type for what in ("Ed448", "RSA 1024, SHA-1", "DSA")} == {"ed448", "rsa1024", "dsa"}
            assert names["empty subject"].identity == "dns:only.example.net"
            assert names["BMPString"].subject == "CN=bmp ☃"
            assert names["cut off"].problem
            assert names["nothing at all"].problem
            identities = Identities(here.store, clock, Resolver(here.store))
            await identities.page(parse("identities", {}, here.now), 100)
            await Places(here.store).locations(parse("locations", {}, here.now), 200)
            for format_, (write, _, _) in FORMATS.items():
                pages = inventory.walk(parse("certificates", {}, here.now), page=5)
                data = b"".join([part async for part in write(pages, parse("certificates", {}, here.now), here.now)])
                if format_ == "cbom":
                    check_bill(data, wanted, names["not yet"].sha256)
                elif format_ == "json":
                    assert {bytes.fromhex(one["sha256"]) for one in json.loads(data)["items"]} >= wanted
                else:
                    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
                    assert len({len(row) for row in rows[:-1]}) == 1
                    assert rows[-1] == [f"# {len(rows) - 2} certificates"]
            assert await here.reconciler.recount() == {}

    asyncio.run(run())


def check_bill(data: bytes, wanted: set[bytes], not_yet: str) -> None:
    assert_valid(data)
    found: dict[str, dict[str, Any]] = {}
    for one in json.loads(data)["components"]:
        if one["cryptoProperties"]["assetType"] == "certificate":
            properties = one["cryptoProperties"]["certificateProperties"]
            found[properties["fingerprint"]["content"]] = properties
    assert {bytes.fromhex(sha256) for sha256 in found} >= wanted
    assert found[not_yet]["certificateState"][0]["state"] == "pre-activation"
    unknown = found[("01" * 32)]
    assert not unknown.keys() & {"notValidBefore", "notValidAfter", "certificateState"}, "nobody said when it ends"


@pytest.mark.parametrize("at", [-62_135_596_800_000, -1, 0, 253_402_300_799_000])
def test_every_year_has_four_digits(at: int) -> None:
    assert parse_rfc3339(rfc3339(at)) == at
