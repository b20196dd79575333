"""Java's own keystores, JKS and JCEKS, read without their password: certificates are not encrypted in them, keys are and stay so.

A file is: magic, version, number of entries, entries, and a digest keyed by the password, which is not looked at. An entry is a tag, an
alias and a date, and then what the tag says. All numbers are big-endian; each length is held against what is there before it is believed.
"""

from __future__ import annotations

from handclasp.pki.contents.model import MAX_CERTIFICATES, MAX_CHAIN, MAX_DER, Contents, Entry, PrivateKey, is_ca, spki_of_certificate

JKS, JCEKS = b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce"
_KEY, _TRUSTED, _SECRET = 1, 2, 3
_SEALED = b"\xac\xed\x00\x05"  # Java serialization, by which JCEKS stores secret keys


class _Cut(Exception):  # noqa: N818  (it is what happened)
    """The file ends before what it promised."""


class _Reader:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data, self._at = data, 4

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise _Cut
        found = bytes(self._data[self._at : end])
        self._at = end
        return found

    def skip(self, size: int) -> None:
        if self._at + size > len(self._data):
            raise _Cut
        self._at += size

    def number(self, size: int = 4) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self) -> str:
        return self.take(self.number(2)).decode("utf-8", "replace")


def read_jks(data: bytes | bytearray) -> Contents:
    """Return certificates and key entries of a JKS or JCEKS file; what comes after a part that cannot be read is noted, not guessed."""
    contents = Contents("jceks" if data[:4] == JCEKS else "jks")
    reader = _Reader(data)
    try:
        version, count = reader.number(), reader.number()
        if version not in (1, 2):
            contents.problem = f"version {version} of this keystore is not known"
            return contents
        for _ in range(count):
            if not _entry(reader, version, contents):
                break
    except _Cut:
        contents.notes.append("the file is cut off")
        if contents.empty:
            contents.problem = "the keystore is cut off"
    return contents


def _entry(reader: _Reader, version: int, contents: Contents) -> bool:
    tag, alias = reader.number(), reader.text()[:255]
    reader.skip(8)  # its date
    if tag == _KEY:
        reader.skip(reader.number())
        chain = _chain(reader, version)
        contents.keys.append(PrivateKey(spki_of_certificate(chain[0]) if chain else None, encrypted=True, alias=alias))
        if chain:
            contents.entries.append(Entry(chain[0], tuple(chain[1 : MAX_CHAIN + 1]), alias))
    elif tag == _TRUSTED:
        certificate = _certificate(reader, version)
        contents.entries.append(Entry(certificate, alias=alias, anchor=is_ca(certificate)))
    else:
        # A secret key is a serialized Java object: how long it is shows only to who runs it.
        what = "a secret key" if tag == _SECRET else "an entry of an unknown kind"
        contents.notes.append(f"{what} ({alias[:80]!r}) and what comes after it is not read")
        return False
    if len(contents.entries) >= MAX_CERTIFICATES:
        contents.notes.append(f"only the first {MAX_CERTIFICATES} entries are taken")
        return False
    return True


def _chain(reader: _Reader, version: int) -> list[bytes]:
    count = reader.number()
    if count > 1000:
        raise _Cut
    return [_certificate(reader, version) for _ in range(count)]


def _certificate(reader: _Reader, version: int) -> bytes:
    if version == 2:
        reader.text()  # its type: X.509
    size = reader.number()
    if size > MAX_DER:
        raise _Cut
    return reader.take(size)
