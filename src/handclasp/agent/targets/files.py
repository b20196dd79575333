"""Files: PEM, and keystores for Java, as complete sets in generations."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from handclasp.agent.content import Content, join_pem
from handclasp.agent.generations import File
from handclasp.pki.chains import split_pem, to_pem

FILES = {
    "key": "key.pem",
    "certificate": "cert.pem",
    "chain": "chain.pem",
    "bundle": "bundle.pem",
    "combined": "combined.pem",
    "crl": "crl.pem",
}
"""What a files target can deliver: the word in the configuration, and the name in a generation."""

Order: TypeAlias = Literal["", "certificate-first", "key-first"]
"""Order in ``combined.pem``; empty: there is none."""


@dataclass(frozen=True, slots=True)
class Generated(ABC):
    """Generations of files below ``directory``, and links elsewhere that lead into them. ``owner`` and ``group`` are numeric, -1: the same.

    ``mode`` is that of everything with a private key in it. ``keep`` generations stay, the current and the last good one always.
    ``include_root`` puts the root after the chain.
    """

    directory: Path
    links: tuple[tuple[str, Path], ...] = ()
    include_root: bool = False
    owner: int = -1
    group: int = -1
    mode: int = 0o600
    keep: int = 3

    @property
    @abstractmethod
    def kind(self) -> str:
        """Its word in the configuration."""

    @property
    @abstractmethod
    def adopts(self) -> tuple[frozenset[str], ...]:
        """Sets of names, one of which must stand where links will be for files that were there before to be worth keeping."""

    @abstractmethod
    def digest(self, content: Content, /) -> str:
        """Digest of what this place is to hold."""

    @abstractmethod
    def render(self, content: Content) -> dict[str, File]:
        """Return the files of a generation. Raises HandclaspError for a content or a setting that cannot be used, ``OSError``."""

    @property
    def name(self) -> str:
        """Unique: no two targets have one directory."""
        return f"{self.kind}:{self.directory}"

    @property
    def settings(self) -> object:
        """What all of these have in common, for the digest."""
        links = [(name, str(path)) for name, path in self.links]
        return (self.kind, str(self.directory), links, self.include_root, self.owner, self.group, self.mode)


@dataclass(frozen=True, slots=True)
class Files(Generated):
    """PEM files. ``crl``: the revocation lists too."""

    combine: Order = ""
    crl: bool = False

    @property
    def kind(self) -> str:
        """Its word in the configuration."""
        return "files"

    @property
    def adopts(self) -> tuple[frozenset[str], ...]:
        """Key and certificate, in two files or in one."""
        return frozenset({FILES["key"], FILES["certificate"]}), frozenset({FILES["combined"]})

    def digest(self, content: Content, /) -> str:
        """Digest of what this place is to hold."""
        return digest_of(content, self.crl, (self.settings, self.combine))

    def render(self, content: Content) -> dict[str, File]:
        """Return the files of a generation: leaf before chain (RFC 8446 section 4.4.2), the root only where it is asked for."""
        root = root_above(content) if self.include_root else b""
        served = join_pem(content.certificate, content.chain, root)
        files = {
            "key.pem": File(content.key, self.mode),
            "cert.pem": File(served),
            "chain.pem": File(join_pem(content.chain, root)),
            "bundle.pem": File(content.bundle),
        }
        if self.combine:
            both = (content.key, served) if self.combine == "key-first" else (served, content.key)
            files["combined.pem"] = File(join_pem(*both), self.mode)
        if self.crl:
            files["crl.pem"] = File(content.crl)
        return files


def digest_of(content: Content, crl: bool, settings: object) -> str:
    """Digest of a content and of the settings of the place that is to hold it."""
    parts = (content.sha256.encode(), content.chain, content.bundle, content.crl if crl else b"", msgspec.json.encode(settings))
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def root_above(content: Content) -> bytes:
    """Return the self-signed anchors (PEM) that stand above the chain; nothing when the bundle holds none."""
    from cryptography import x509

    issuer = x509.load_der_x509_certificate(split_pem(join_pem(content.certificate, content.chain).decode("ascii"))[-1]).issuer
    found = [(der, x509.load_der_x509_certificate(der)) for der in split_pem(content.bundle.decode("ascii"))]
    return b"".join(to_pem(der).encode() for der, anchor in found if anchor.subject == issuer and anchor.subject == anchor.issuer)
