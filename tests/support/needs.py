"""External programs that tests drive: find one, or skip the test in a way the closing summary can count."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGES = {
    "nginx": ("nginx", "nginx"),
    "postgresql": ("initdb", "postgresql"),
    "softhsm2": ("softhsm2-util", "softhsm2"),
    "openssl": ("openssl", "openssl"),
    "curl": ("curl", "curl"),
    "haproxy": ("haproxy", "haproxy"),
    "apache2": ("apache2", "apache2-bin"),
    "redis": ("redis-server", "redis-server"),
    "mariadb": ("mariadbd", "mariadb-server-core"),
    "mariadb-client": ("mariadb", "mariadb-client-core"),
    "chromium": ("chromium", "chromium"),
    "keytool": ("keytool", "default-jre-headless"),
    "exim": ("exim4", "exim4-daemon-light"),
    "dovecot": ("dovecot", "dovecot-imapd"),
    "slapd": ("slapd", "slapd"),
    "mariadb-install-db": ("mariadb-install-db", "mariadb-server-core"),
}
"""What a test calls it: (the program that must be there, the Debian package that has it)."""

_REASON = re.compile(r"needs (\S+)$")


def _version(directory: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", directory.parent.name))


def postgresql_bin() -> Path | None:
    """Return the directory with ``initdb`` and ``pg_ctl`` of the newest PostgreSQL here.

    Debian keeps them in a directory for each version, off the PATH.
    """
    versions = sorted((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), key=_version)
    if versions:
        return versions[-1]
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def find(program: str) -> Path | None:
    """Return the path of a program of :data:`PACKAGES` (or of any other name on the PATH), None when it is not installed."""
    executable = PACKAGES.get(program, (program, program))[0]
    if program == "postgresql":
        directory = postgresql_bin()
        return directory / executable if directory else None
    # Debian puts daemons in /usr/sbin, which is not on every user's PATH.
    found = shutil.which(executable) or shutil.which(executable, path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def needs(program: str) -> Path:
    """Return the path of a program, or skip the running test. For tests and fixtures."""
    found = find(program)
    if found is None:
        pytest.skip(f"needs {program}")
    return found


def summary(reasons: Iterable[str]) -> str | None:
    """Return the one line that says which tests were not run for want of a program; None when every one was there.

    ``reasons`` are the skip reasons of all skipped tests, ``needs PROGRAM`` among others.
    """
    counts = Counter(match[1] for reason in reasons if (match := _REASON.search(reason)))
    if not counts:
        return None
    parts = []
    for name, count in counts.most_common():
        noun = "" if parts else "test " if count == 1 else "tests "
        parts.append(f"{count} {noun}{'needs' if count == 1 else 'need'} {name}")
    packages = " ".join(sorted(PACKAGES.get(name, (name, name))[1] for name in counts))
    return f"not run: {', '.join(parts)} (install: apt-get install {packages})"
