"""The encoder agrees with the standard's examples, and the reader refuses what is not DER."""

from __future__ import annotations

import contextlib

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from handclasp.pki import der


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (der.integer(0), "020100"),
        (der.integer(127), "02017f"),
        (der.integer(128), "02020080"),
        (der.integer(256), "02020100"),
        (der.integer(-1), "0201ff"),
        (der.integer(-128), "020180"),
        (der.integer(-129), "0202ff7f"),
        (der.boolean(True), "0101ff"),
        (der.boolean(False), "010100"),
        (der.oid("1.2.840.113549.1.1.11"), "06092a864886f70d01010b"),
        (der.oid("2.5.29.15"), "0603551d0f"),
        (der.oid("2.16.840.1.101.3.4.3.17"), "0609608648016503040311"),
        (der.oid("2.999.3"), "0603883703"),
        (der.named_bits(0), "03020780"),
        (der.named_bits(5, 6), "03020106"),
        (der.named_bits(8), "0303070080"),
        (der.named_bits(), "030100"),
        (der.bit_string(b"\xaa"), "030200aa"),
        (der.octet_string(b"ab"), "04026162"),
        (der.utf8_string("é"), "0c02c3a9"),
        (der.sequence(der.integer(1), der.TRUE), "30060201010101ff"),
        (der.set_(der.integer(2), der.integer(1)), "3106020101020102"),
        (der.explicit(0, der.integer(2)), "a003020102"),
        (der.implicit(6, b"u"), "860175"),
        (der.time_(0), "170d3730303130313030303030305a"),
        (der.time_(2_524_607_999_999), "170d3439313233313233353935395a"),  # the last second of 2049
        (der.time_(2_524_608_000_000), "180f32303530303130313030303030305a"),  # the first of 2050
    ],
)
def test_values_are_encoded_as_x690_says(made, expected):
    assert made.hex() == expected


@pytest.mark.parametrize(
    ("length", "head"), [(0, "0400"), (127, "047f"), (128, "048180"), (255, "0481ff"), (256, "04820100"), (65536, "0483010000")]
)
def test_lengths_are_the_shortest(length, head):
    encoded = der.octet_string(bytes(length))
    assert encoded[: len(head) // 2].hex() == head
    assert der.read(encoded) == (4, len(head) // 2, len(encoded))


@pytest.mark.parametrize(
    "data",
    ["", "30", "3001", "3080", "308100", "30817f", "30820080" + "00" * 128, "3085010000000000", "1f0100", "30ff"],
)
def test_the_reader_refuses_what_is_truncated_indefinite_or_not_shortest(data):
    with pytest.raises(ValueError):
        der.read(bytes.fromhex(data))


def test_children_must_fill_their_container_exactly():
    assert der.children(der.sequence(der.integer(1), der.NULL)) == [der.integer(1), der.NULL]
    for data in (der.sequence(der.NULL) + b"\x00", der.octet_string(der.NULL), b"\x30\x03\x05\x01\x00\x00", b"\x30\x02\x05\x05"):
        with pytest.raises(ValueError):
            der.children(data)


@given(st.binary(max_size=300))
def test_the_reader_only_ever_raises_value_error(data):
    for reader in (der.children, der.elements, der.read):
        with contextlib.suppress(ValueError):
            reader(data)


@given(st.lists(st.integers(0, 2**40), max_size=8), st.integers(0, 2), st.integers(0, 39))
def test_object_identifiers_agree_with_cryptography(rest, first, second):
    dotted = ".".join(map(str, [first, second, *rest]))
    try:
        other = x509.ObjectIdentifier(dotted)
    except ValueError:
        return
    encoded = x509.Name([x509.NameAttribute(other, "a")]).public_bytes() if other.dotted_string != "2.5.4.6" else der.oid(dotted)
    assert der.oid(dotted) in encoded


@given(st.integers(-(2**200), 2**200))
def test_integers_read_back(value):
    encoded = der.integer(value)
    _, start, end = der.read(encoded)
    assert int.from_bytes(encoded[start:end], "big", signed=True) == value
    assert end - start == 1 or encoded[start : start + 2] not in (b"\x00\x00", b"\xff\xff")
