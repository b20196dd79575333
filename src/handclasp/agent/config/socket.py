"""The section ``socket:``: the Workload API and SDS, for the processes of this host."""

from __future__ import annotations

import grp
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from handclasp.agent.config import values
from handclasp.agent.config.table import Table

DEFAULT_PATH = Path("/run/handclasp/workload.sock")
_HASH_LIMIT = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """Where the kubelet is, and how it knows us. ``server_name``: the name in its certificate, where the address is not in it."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class SdsNames:
    """What Envoy's configuration calls the default certificate, its bundle, and all bundles.

    ``spiffe`` is False where the SPIFFE validator is not wanted: then there is no secret ``all_bundles``. ``crl`` gives revocation lists to
    Envoy too, where they are complete.
    """

    certificate: str = "default"
    bundle: str = "ROOTCA"
    all_bundles: str = "ALL"
    spiffe: bool = True
    crl: bool = False


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """The whole section. ``group`` is numeric, -1: unchanged; ``wait`` and ``keep`` in seconds, ``hash_limit`` in bytes."""

    path: Path = DEFAULT_PATH
    mode: int = 0o666
    group: int = -1
    wait: float = 15.0
    keep: float = 86400.0
    connections: int = 200
    hash_limit: int = _HASH_LIMIT
    kubelet: KubeletSettings | None = None
    docker: Path | None = None
    sds: SdsNames = SdsNames()
    proc: Path = Path("/proc")


def read_socket(top: Table, key: str) -> SocketSettings:
    """Read the section."""
    table = top.table(key) or Table(top.source, {}, (key,))
    usual = SocketSettings()
    path = table.take("path", table.path_of, usual.path)
    if len(str(path)) > 90:  # sockaddr_un has room for 107 bytes, and the file is made under a longer name first
        table.problem("path is too long for a socket; at most 90 characters", "path")
    mode = table.take("mode", _mode, usual.mode)
    group = table.take("group", values.account(lambda name: grp.getgrnam(name).gr_gid, "group"), usual.group)
    wait = table.take("wait", values.duration, usual.wait)
    keep = table.take("keep", values.duration, usual.keep)
    connections = table.take("connections_per_user", values.whole(1, 10_000), usual.connections)
    attestors = table.table("attestors")
    kubelet = docker = None
    limit = usual.hash_limit
    if attestors is not None:
        limit = attestors.take("hash_limit_mb", values.whole(0, 16_384), limit >> 20) << 20
        kubelet = _kubelet(attestors.table("kubernetes"))
        docker = _docker(attestors.table("docker"))
        attestors.done()
    sds = _sds(table.table("sds"))
    table.done()
    return SocketSettings(path, mode, group, wait, keep, connections, limit, kubelet, docker, sds)


def _kubelet(table: Table | None) -> KubeletSettings | None:
    if table is None:
        return None
    url = table.take("kubelet", _kubelet_url, "https://127.0.0.1:10250")
    token_file, ca_file = table.take("token_file", table.path_of), table.take("ca_file", table.path_of)
    server_name = table.take("server_name", values.text, "")
    if token_file is not None and url.startswith("http:"):
        table.problem("a token is not sent without TLS", "token_file")
    table.done()
    return KubeletSettings(url, token_file, ca_file, server_name)


def _docker(table: Table | None) -> Path | None:
    if table is None:
        return None
    path: Path = table.take("socket", table.path_of, Path("/var/run/docker.sock"))
    table.done()
    return path


def _sds(table: Table | None) -> SdsNames:
    usual = SdsNames()
    if table is None:
        return usual
    names = SdsNames(
        certificate=table.take("certificate", values.text, usual.certificate),
        bundle=table.take("bundle", values.text, usual.bundle),
        all_bundles=table.take("all_bundles", values.text, usual.all_bundles),
        spiffe=table.take("spiffe_validator", values.flag, usual.spiffe),
        crl=table.take("crl", values.flag, usual.crl),
    )
    if len({names.certificate, names.bundle, names.all_bundles}) < 3:
        table.problem("the three names must be different")
    table.done()
    return names


def _kubelet_url(value: Any) -> str:
    parts = urlsplit(values.text(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("an address such as https://127.0.0.1:10250 is expected")
    if parts.port == 0:
        raise ValueError("that is not a port")
    return str(value).rstrip("/")


def _mode(value: Any) -> int:
    # YAML keeps 0660 as text here, so that nobody gets 660 decimal.
    word = values.text(str(value))
    number = int(word, 8) if word.isascii() and word.isdigit() and len(word) <= 4 and not set(word) & set("89") else -1
    if not 0o600 <= number <= 0o777:
        raise ValueError("a mode such as 0660 is expected")
    return number
