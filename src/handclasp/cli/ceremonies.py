"""``handclasp ca root``, ``request``, ``sign-issuing``, ``import`` and ``issuing``: making authorities, on the machine that has the key.

Nothing here speaks to a server. ``root``, ``request`` and ``sign-issuing`` need files only, so that a root can live on a machine without a
network; ``import`` and ``issuing create`` work on the server's own data directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Command, Group, State, pass_state
from handclasp.cli.parts import finish, server_part
from handclasp.cli.settings import SettingsCommand, load_settings

if TYPE_CHECKING:
    from handclasp.authority.offline import RootFiles

_PASSPHRASE = click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File with the passphrase of the key [env: HANDCLASP_PASSPHRASE_FILE].",
)
_KEY_TYPE = click.option("--key-type", default="p256", show_default=True, metavar="TYPE", help="p256, p384, ed25519, rsa3072, ml-dsa-65 …")
_PATH = click.Path(path_type=Path)
_STORE = ("data", "database", "passphrase_file", "pkcs11_module", "http", "http_url", "name", "crl_shards")


def _passphrase(directory: Path, explicit: Path | None) -> bytes:
    import os

    from handclasp.authority.passphrase import find_passphrase

    return find_passphrase(directory, explicit, os.environ, hint="give --passphrase-file FILE; openssl rand -base64 32 makes a good one")


def _seconds(text: str | None, default: float) -> float:
    from handclasp.clock import parse_duration

    return default if text is None else parse_duration(text)


@click.group(cls=Group)
def root() -> None:
    """A root that is made and kept on a machine of its own."""


@root.command("create", example="handclasp ca root create ./root --trust-domain example.org --passphrase-file /media/stick/passphrase")
@click.argument("directory", metavar="DIR", type=_PATH, help="Where root.key, root.crt and root.crl are to be.")
@click.option("--trust-domain", required=True, metavar="NAME", help="Trust domain of the root, such as example.org.")
@click.option("--lifetime", metavar="DURATION", help="How long it is to live; without it ten years.")
@_KEY_TYPE
@_PASSPHRASE
@pass_state
def root_create(
    state: State, directory: Path, trust_domain: str, lifetime: str | None, key_type: str, passphrase_file: Path | None
) -> None:
    """Make a root: an encrypted key that never leaves this directory, its certificate, and its first revocation list."""
    from handclasp.authority import offline

    files = offline.root_create(
        directory,
        trust_domain=trust_domain,
        passphrase=_passphrase(directory, passphrase_file),
        now=terminal.clock(),
        key_type=key_type,
        lifetime=_seconds(lifetime, offline.ROOT_LIFETIME),
    )
    _tell_root(state, files)
    terminal.say("keep root.key here; root.crt and root.crl may go anywhere")


@root.command(
    "crl",
    example="handclasp ca root crl ./root --passphrase-file /media/stick/passphrase\n"
    "handclasp ca root crl ./root --revoke old-issuing.crt --reason key-compromise --passphrase-file /media/stick/passphrase",
)
@click.argument("directory", metavar="DIR", type=_PATH, help="Where the root is.")
@click.option("--revoke", multiple=True, metavar="FILE", type=_PATH, help="Certificate of an issuing authority to revoke.")
@click.option("--reason", default="cessation-of-operation", show_default=True, metavar="REASON", help="Why.")
@click.option("--validity", metavar="DURATION", help="How long the list is to count; without it 180 days.")
@_PASSPHRASE
@pass_state
def root_crl(
    state: State, directory: Path, revoke: tuple[Path, ...], reason: str, validity: str | None, passphrase_file: Path | None
) -> None:
    """Write a new revocation list of a root, before the last one ends, or to revoke an issuing authority."""
    from handclasp.authority import offline
    from handclasp.pki.crl import REASONS

    number = REASONS.get(reason.replace("-", "_"))
    if number is None:
        known = ", ".join(name.replace("_", "-") for name in REASONS)
        raise click.BadParameter(f"{reason!r} is not a reason: {known}", param_hint="--reason")
    files = offline.RootFiles(directory)
    offline.root_crl(
        files,
        passphrase=_passphrase(directory, passphrase_file),
        now=terminal.clock(),
        revoke=dict.fromkeys(revoke, number),
        validity=_seconds(validity, offline.OFFLINE_CRL_VALIDITY),
    )
    _tell_root(state, files)


def _tell_root(state: State, files: RootFiles) -> None:
    import hashlib

    from cryptography.hazmat.primitives.serialization import Encoding

    from handclasp.cli.files import read_bytes
    from handclasp.cli.pem import load_certificates

    certificate = load_certificates(read_bytes(str(files.certificate)), str(files.certificate))[0]
    sha256 = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    facts = {"key": str(files.key), "certificate": str(files.certificate), "crl": str(files.crl), "sha256": sha256}
    if state.json:
        terminal.write_json(facts)
    else:
        terminal.write_fields(list(facts.items()))


@click.command(
    "request",
    cls=Command,
    example="handclasp ca request --trust-domain example.org --key issuing.key --out issuing.csr --passphrase-file passphrase",
)
@click.option("--trust-domain", required=True, metavar="NAME", help="Trust domain that it is to issue for.")
@click.option(
    "--key", required=True, metavar="FILE", type=_PATH, help="Where the new, encrypted key is to be; an existing one is used again."
)
@click.option("--out", required=True, metavar="FILE", type=_PATH, help="Where the request is to be; carry it to the root.")
@_KEY_TYPE
@_PASSPHRASE
@pass_state
def request(state: State, trust_domain: str, key: Path, out: Path, key_type: str, passphrase_file: Path | None) -> None:
    """Make the key of an issuing authority, and the request that the root's holder signs."""
    from handclasp.authority.files import PUBLIC, write_new
    from handclasp.authority.keyfile import load_key_file, write_key_file
    from handclasp.authority.offline import request_pem
    from handclasp.pki import keys
    from handclasp.pki.names import check_trust_domain

    check_trust_domain(trust_domain)
    passphrase = _passphrase(key.parent, passphrase_file)
    if not key.exists():
        write_key_file(key, keys.generate(key_type), passphrase)
    write_new(out, request_pem(load_key_file(key, passphrase), trust_domain), PUBLIC)
    if state.json:
        terminal.write_json({"key": str(key), "request": str(out)})
    terminal.say(f"carry {out} to the root: handclasp ca sign-issuing {out.name} --root DIR --out issuing.crt")


@click.command(
    "sign-issuing",
    cls=Command,
    example="handclasp ca sign-issuing issuing.csr --root ./root --out issuing.crt --passphrase-file /media/stick/passphrase \\\n"
    "  --dns-zone example.org --base-url http://ca.example.org",
)
@click.argument("request_file", metavar="REQUEST", type=_PATH, help="The request of the issuing authority.")
@click.option("--root", "directory", required=True, metavar="DIR", type=_PATH, help="Where the root is.")
@click.option("--out", required=True, metavar="FILE", type=_PATH, help="Where the certificate is to be.")
@click.option("--lifetime", metavar="DURATION", help="How long it is to live; without it a year.")
@click.option("--dns-zone", "dns_zones", multiple=True, metavar="ZONE", help="DNS zone that it is constrained to.")
@click.option("--uri-constraint", is_flag=True, help="Constrain URIs to the trust domain too (some verifiers refuse such chains).")
@click.option("--base-url", default="", metavar="URL", help="Public HTTP address of the server, for the root's revocation list.")
@click.option("--root-name", default="root", show_default=True, metavar="NAME", help="Name of the root on the server.")
@click.option("--trust-domain", default="", metavar="NAME", help="Trust domain; without it the root's.")
@_PASSPHRASE
@pass_state
def sign_issuing(
    state: State, request_file: Path, directory: Path, out: Path, lifetime: str | None, passphrase_file: Path | None, **given: Any
) -> None:
    """Sign the request of an issuing authority with an offline root, and renew the root's revocation list."""
    from handclasp.authority import offline

    files = offline.RootFiles(directory)
    offline.sign_issuing(
        files,
        request_file,
        out,
        passphrase=_passphrase(directory, passphrase_file),
        now=terminal.clock(),
        lifetime=_seconds(lifetime, offline.ISSUING_LIFETIME),
        **given,
    )
    if state.json:
        terminal.write_json({"certificate": str(out), "root": str(files.certificate), "crl": str(files.crl)})
    terminal.say(
        f"carry {out}, {files.certificate} and {files.crl} to the server: handclasp ca import {out.name} --root {files.certificate.name}"
    )


@click.command(
    "import",
    cls=SettingsCommand,
    settings=_STORE,
    example="handclasp ca import issuing.crt --key issuing.key --root root.crt --as issuing-2 --data /var/lib/handclasp",
)
@click.argument("cert_file", metavar="CERTFILE", type=_PATH, help="Certificate of the issuing authority, signed by the root's holder.")
@click.option("--key", "key_file", required=True, metavar="FILE", type=_PATH, help="Its encrypted key, as `ca request` made it.")
@click.option("--root", "root_file", metavar="FILE", type=_PATH, help="The root's certificate, where the server does not have it yet.")
@click.option("--as", "authority", default="issuing", show_default=True, metavar="NAME", help="The authority's name on the server.")
@pass_state
def import_(state: State, cert_file: Path, key_file: Path, root_file: Path | None, authority: str, **flags: Any) -> None:
    """Take an issuing authority that was signed elsewhere into the server's data directory. With SQLite, stop the server first."""
    settings = load_settings(flags)
    made = finish(server_part("server.local", "import_issuing")(settings, cert_file, key_file, name=authority, root_file=root_file))
    _tell_authority(state, made, authority, alone=settings.database_url.startswith("sqlite:"))


@click.group(cls=Group)
def issuing() -> None:
    """Issuing authorities under a root whose key the server has."""


@click.command(
    "create",
    cls=SettingsCommand,
    settings=(*_STORE, "dns_zone", "uri_constraint", "key_type", "issuing_lifetime"),
    example="handclasp ca issuing create issuing-2 --trust-domain example.org --dns-zone example.org --data /var/lib/handclasp",
)
@click.argument("authority", metavar="NAME", help="The new authority's name.")
@click.option("--trust-domain", "domain", required=True, metavar="NAME", help="Trust domain that it is to issue for.")
@pass_state
def issuing_create(state: State, authority: str, domain: str, **flags: Any) -> None:
    """Make another issuing authority in the server's data directory. With SQLite, stop the server first."""
    settings = load_settings(flags)
    made = finish(server_part("server.local", "create_issuing")(settings, authority, domain))
    _tell_authority(state, made, authority, alone=settings.database_url.startswith("sqlite:"))


issuing.add_command(issuing_create)


def _tell_authority(state: State, made: Any, name: str, *, alone: bool) -> None:
    if state.json:
        terminal.write_json(made if hasattr(made, "__struct_fields__") else {"name": name})
    terminal.say(f"authority {name} is there; " + ("start the server again" if alone else "a running server sees it within a second"))
