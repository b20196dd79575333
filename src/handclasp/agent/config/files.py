"""Targets that are files: PEM, and keystores."""

from __future__ import annotations

import grp
import hashlib
import pwd
from pathlib import Path
from typing import Any

from handclasp.agent.config import values
from handclasp.agent.config.after import with_after
from handclasp.agent.config.table import Table
from handclasp.agent.config.targets import About
from handclasp.agent.targets.base import Target
from handclasp.agent.targets.files import FILES, Files, Order


def read_files(table: Table, _kind: str, about: About) -> Target:
    """Read a target of the kind ``files``."""
    directory, links = _place(table, about, FILES)
    linked = {name for name, _ in links}
    combine: Order = table.take("combine", _combine, "") or ("certificate-first" if "combined.pem" in linked else "")
    place = Files(
        directory,
        links,
        combine=combine,
        include_root=table.take("include_root", values.flag, False),
        crl=table.take("crl", values.flag, False) or "crl.pem" in linked,
        **_ownership(table),
    )
    return with_after(place, table, about)


def read_keystore(table: Table, kind: str, about: About) -> Target:
    """Read a target of the kind ``pkcs12`` or ``jks``."""
    from handclasp.agent.targets.keystore import NAMES, Keystore

    directory, links = _place(table, about, NAMES[kind])
    if about.key_type.startswith("ml-dsa"):
        table.problem(f"a keystore has no room for a key of the type {about.key_type}; use p256 or rsa3072")
    place = Keystore(
        directory,
        links,
        format=kind,
        alias=table.take("alias", _alias, "handclasp"),
        password_file=table.take("password_file", table.path_of),
        include_root=table.take("include_root", values.flag, False),
        **_ownership(table),
    )
    return with_after(place, table, about)


def _place(table: Table, about: About, words: dict[str, str]) -> tuple[Path, tuple[tuple[str, Path], ...]]:
    """Read where generations are kept, and the names elsewhere that lead into them."""
    directory = table.take("directory", table.path_of)
    paths = table.table("paths")
    links: list[tuple[str, Path]] = []
    if paths is not None:
        taken = [(name, paths.take(word, paths.path_of)) for word, name in words.items()]
        links = [(name, path) for name, path in taken if path is not None]
        paths.done()
    if directory is None and not links:
        table.problem("a target of files needs a directory or paths")
    if directory is None:
        # Beside the first link, so that whoever can reach the link can reach what it leads to.
        home = links[0][1].parent if links else table.source.base
        directory = home / f".handclasp-{hashlib.sha256(about.name.encode()).hexdigest()[:12]}"
    return directory, tuple(links)


def _ownership(table: Table) -> dict[str, Any]:
    return {
        "owner": table.take("owner", values.account(lambda name: pwd.getpwnam(name).pw_uid, "user"), -1),
        "group": table.take("group", values.account(lambda name: grp.getgrnam(name).gr_gid, "group"), -1),
        "mode": table.take("mode", values.mode, 0o600),
        "keep": table.take("keep", values.whole(1, 100), 3),
    }


def _combine(value: Any) -> str:
    if value in ("certificate-first", "key-first"):
        return str(value)
    return "certificate-first" if values.flag(value) else ""


def _alias(value: Any) -> str:
    text = values.text(value)
    # Java lowers the case of aliases in what it reads; one that is lower case already has one name everywhere.
    if not text.isascii() or not text.isprintable() or text != text.lower() or len(text) > 128:
        raise ValueError("an alias is printable ASCII in lower case")
    return text
