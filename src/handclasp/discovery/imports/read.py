"""Files that hold certificates of another inventory: a PEM bundle, a CSV table, or what Lemur's API exports. Pure.

Each certificate becomes a location of its own, called after its fingerprint (or, in a table, after where it says that it was), so that
the same file twice is the same as once. What cannot be read is a location with a problem. A private key is found by its armour, left out,
and counted: it never leaves the machine.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from handclasp.clock import Clock, parse_rfc3339
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.contents.pem import pem_blocks
from handclasp.wire.observations import Observed, Seen

Format: TypeAlias = Literal["pem", "csv", "lemur"]
FORMATS: tuple[Format, ...] = ("pem", "csv", "lemur")
MAX_FILE = 1024 * 1024 * 1024
MAX_FIELD = 262_144
COLUMNS = ("pem", "sha256", "location", "identity", "not_before", "not_after", "owner", "environment", "host")
"""What a column of a table can mean; ``pem`` or ``sha256`` is needed."""
_USUAL = {
    "pem": ("pem", "certificate", "body", "cert"),
    "sha256": ("sha256", "fingerprint", "fingerprint_sha256", "sha256_fingerprint", "thumbprint"),
    "location": ("location", "place", "path", "where"),
    "identity": ("identity", "spiffe_id", "dns_name", "common_name", "cn", "name"),
    "not_before": ("not_before", "notbefore", "valid_from", "issued"),
    "not_after": ("not_after", "notafter", "valid_to", "expires", "expiry"),
    "owner": ("owner", "team"),
    "environment": ("environment", "env"),
    "host": ("host", "hostname", "server"),
}
_CERTIFICATES = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"})
_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")


@dataclass(slots=True)
class Imported:
    """What reading a file has come to so far."""

    keys: int = 0
    """Private keys that were in it, and were left out."""
    problems: int = 0
    """Entries that could not be read; each is kept with its reason."""
    certificates: int = 0
    seen: dict[bytes, set[bytes]] = field(default_factory=dict)
    """By the mark of a place, the fingerprints that were said to be there."""


def guess_format(name: str, data: bytes) -> Format:
    """Return what a file is, by its beginning; raise ``bad_request`` when it is none of ours."""
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"\0" in head:
        raise HandclaspError(Kind.BAD_REQUEST, "it is no text in UTF-8", hint="of a certificate in DER, openssl x509 -inform der makes PEM")
    if head[:1] in (b"{", b"["):
        return "lemur"
    if b"-----BEGIN " in data[:65_536] and not name.lower().endswith(".csv"):
        return "pem"
    if name.lower().endswith(".csv") or b"," in head.split(b"\n")[0]:
        return "csv"
    if _KEY.search(data) or b"-----BEGIN " in data:
        return "pem"
    raise HandclaspError(Kind.BAD_REQUEST, "it is neither a PEM bundle, a table nor an export", hint="say which with --format")


def read_import(
    data: bytes, format_: Format, clock: Clock, done: Imported, *, columns: Mapping[str, str] | None = None
) -> Iterator[Observed]:
    """Yield the locations that a file comes to, and count in ``done``. ``columns`` says which column of a table means what.

    Raises ``bad_request`` for a file that is not of this format at all.
    """
    if format_ == "pem":
        found = _read_pem(data, clock, done)
    elif format_ == "csv":
        found = _read_csv(data, clock, done, columns or {})
    else:
        found = _read_lemur(data, clock, done)
    for one in found:
        done.problems += one.problem is not None
        done.certificates += len(one.certificates)
        yield one


def split_blocks(data: bytes, done: Imported) -> list[bytes]:
    """Return the certificates (DER, unread) of PEM text; private keys are counted and left out.

    A block whose base64 is broken comes back as it stands, so that it is kept, with a problem.
    """
    found = []
    for label, begin, end in pem_blocks(data, lambda label: label in _CERTIFICATES or b"PRIVATE KEY" in label):
        if label not in _CERTIFICATES:
            done.keys += 1
            continue
        content = data[begin:end]
        lines = [line for line in content.splitlines() if b":" not in line]
        try:
            found.append(base64.b64decode(b"".join(b"".join(lines).split()), validate=True))
        except binascii.Error:
            found.append(content.strip()[:MAX_FIELD])
    return found


def _read_pem(data: bytes, clock: Clock, done: Imported) -> Iterator[Observed]:
    blocks = split_blocks(data, done)
    if not blocks and not done.keys:
        raise HandclaspError(Kind.BAD_REQUEST, "there is no certificate in this file")
    for der in blocks:
        yield from _of_der(der, clock, done)


def _of_der(
    der: bytes, clock: Clock, done: Imported, *, place: str = "", facts: Mapping[str, Any] | None = None, host: str | None = None
) -> Iterator[Observed]:
    digest = hashlib.sha256(der).digest()
    key = _key(place, digest, done)
    if key is None:
        return
    yield Observed(
        key=key, kind="import", shown=place or f"sha256 {digest.hex()[:16]}", host=host, at=clock(),
        certificates=[Seen(der=der[:MAX_FIELD], role="listed")], facts=dict(facts or {}),
    )  # fmt: skip


def _key(place: str, digest: bytes, done: Imported) -> str | None:
    """Return the key of a certificate's location; None where the file said the same before.

    A column of places may be one of data centres: what is the second in a place is a location of its own, and not instead of the first.
    """
    key = f"import:{place or digest.hex()}"
    there = done.seen.setdefault(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:16], set())
    if digest in there:
        return None
    there.add(digest)
    return key if len(there) == 1 else f"{key}#{digest.hex()[:16]}"


# --- tables -----------------------------------------------------------------------------------------------------------------------------


def _read_csv(data: bytes, clock: Clock, done: Imported, columns: Mapping[str, str]) -> Iterator[Observed]:
    csv.field_size_limit(MAX_FIELD)
    text = data.decode("utf-8-sig", "replace").replace("\0", "")
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(rows, None)
        if header is None:
            raise HandclaspError(Kind.BAD_REQUEST, "the table is empty")
        places = _columns(header, columns)
        for number, row in enumerate(rows, 2):
            if any(cell.strip() for cell in row):
                fields = {name: row[index].strip() for name, index in places.items() if index < len(row)}
                yield from _of_row(fields, number, clock, done)
    except csv.Error as error:
        raise HandclaspError(Kind.BAD_REQUEST, f"this is not a table: {error}") from error


def _columns(header: list[str], given: Mapping[str, str]) -> dict[str, int]:
    """Return where in a row each thing is."""
    names = [name.strip().lower().replace(" ", "_") for name in header]
    found = {}
    for meaning, column in given.items():
        if meaning not in COLUMNS:
            raise HandclaspError(Kind.BAD_REQUEST, f"{meaning!r} is not a meaning of a column", hint=f"one of {', '.join(COLUMNS)}")
        if column.strip().lower().replace(" ", "_") not in names:
            raise HandclaspError(Kind.BAD_REQUEST, f"the table has no column {column!r}", hint=f"it has: {', '.join(header)[:400]}")
        found[meaning] = names.index(column.strip().lower().replace(" ", "_"))
    for meaning, usual in _USUAL.items():
        for name in usual:
            if meaning not in found and name in names and names.index(name) not in found.values():
                found[meaning] = names.index(name)
    if "pem" not in found and "sha256" not in found:
        raise HandclaspError(
            Kind.BAD_REQUEST,
            "no column of the table holds certificates or their fingerprints",
            hint="name it: --column pem=COLUMN or --column sha256=COLUMN",
        )
    return found


def _of_row(fields: Mapping[str, str], number: int, clock: Clock, done: Imported) -> Iterator[Observed]:
    facts = {"tags": tags} if (tags := {name: fields[name] for name in ("owner", "environment") if fields.get(name)}) else {}
    place, host = fields.get("location", "")[:4000], fields.get("host") or None
    if _KEY.search(fields.get("pem", "").encode()):
        done.keys += 1
    if fields.get("pem"):
        blocks = split_blocks(fields["pem"].replace("\\n", "\n").encode(), Imported())
        if not blocks:
            yield _broken(f"row {number}", "there is no certificate in it", fields["pem"], clock, place)
            return
        for der in blocks[:1]:
            yield from _of_der(der, clock, done, place=place, facts=facts, host=host)
        return
    digest = _digest(fields.get("sha256", ""))
    if digest is None:
        yield _broken(f"row {number}", "there is neither a certificate nor its SHA-256 in it", repr(sorted(fields.items())), clock, place)
        return
    seen = Seen(
        sha256=digest,
        role="listed",
        identity=fields.get("identity", "")[:4000] or None,
        not_before=_time(fields.get("not_before", "")),
        not_after=_time(fields.get("not_after", "")),
    )
    shown = place or f"sha256 {digest.hex()[:16]}"
    key = _key(place, digest, done)
    if key is not None:
        yield Observed(key=key, kind="import", shown=shown, host=host, at=clock(), certificates=[seen], facts=facts)


def _digest(text: str) -> bytes | None:
    try:
        value = bytes.fromhex(text.lower().removeprefix("sha256:").replace(":", "").replace(" ", ""))
    except ValueError:
        return None
    return value if len(value) == 32 else None


def _time(text: str) -> int | None:
    """Return a time in ms: RFC 3339, the same without a zone (taken as UTC), or a date; None for anything else."""
    for form in (text, f"{text}Z", f"{text}T00:00:00Z"):
        try:
            return parse_rfc3339(form.strip().replace(" ", "T", 1))
        except (HandclaspError, ValueError, OverflowError):
            continue
    return None


def _broken(what: str, problem: str, content: str, clock: Clock, place: str) -> Observed:
    mark = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()
    return Observed(key=f"import:{place or mark}", kind="import", shown=place or what, at=clock(), problem=problem)


# --- Lemur ------------------------------------------------------------------------------------------------------------------------------


def _read_lemur(data: bytes, clock: Clock, done: Imported) -> Iterator[Observed]:
    """Read ``GET /certificates`` as Lemur answers it, ``{"items": […], "total": n}``, a list of such items, or one of them."""
    if (found := len(_KEY.findall(data))) > 0:
        done.keys += found
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HandclaspError(Kind.BAD_REQUEST, "this is not JSON") from error
    items = document.get("items", [document]) if isinstance(document, dict) else document
    if not isinstance(items, list):
        raise HandclaspError(Kind.BAD_REQUEST, "this is not what Lemur exports: there is no list of certificates")
    for number, item in enumerate(items, 1):
        body = item.get("body") if isinstance(item, dict) else None
        blocks = split_blocks(body.encode("utf-8", "replace"), Imported()) if isinstance(body, str) else []
        if not blocks:
            yield _broken(f"item {number}", "there is no certificate in its body", json.dumps(item)[:MAX_FIELD], clock, "")
            continue
        for one in _of_der(blocks[0], clock, done, facts=_lemur_facts(item)):
            one.certificates[0].chain = split_blocks(_text(item.get("chain")).encode(), Imported())[:32]
            one.shown = _text(item.get("name"))[:400] or one.shown
            yield one


def _lemur_facts(item: Mapping[str, Any]) -> dict[str, Any]:
    tags = {name: _text(item.get(name))[:400] for name in ("owner", "description") if _text(item.get(name))}
    return {"tags": tags} if tags else {}


def _text(value: Any) -> str:
    return value.replace("\0", "") if isinstance(value, str) else ""
