"""``handclasp cert``: issue, sign and revoke; renewing, inspecting, and looking at what is known are modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.inspections import inspect
from handclasp.cli.inventories import export, list_, show, triage
from handclasp.cli.renewals import renew

if TYPE_CHECKING:
    from handclasp.wire import Issued

_NAMES = (
    click.option("--dns", multiple=True, metavar="NAME", help="DNS name to put in."),
    click.option("--ip", multiple=True, metavar="ADDRESS", help="IP address to put in."),
    click.option("--email", multiple=True, metavar="ADDRESS", help="E-mail address to put in."),
    click.option("--profile", metavar="NAME", help="What kind of certificate; not needed where the token names one."),
    click.option("--ttl", metavar="DURATION", help="Lifetime, such as 1h; without it the profile's."),
)


def _request_options(function: Any) -> Any:
    for option in reversed(_NAMES):
        function = option(function)
    return function


@click.group(cls=Group)
def cert() -> None:
    """Issue, renew, revoke and look at certificates."""


cert.add_command(renew)
cert.add_command(inspect)
cert.add_command(list_)
cert.add_command(show)
cert.add_command(export)
cert.add_command(triage)


@cert.command(
    client=True,
    example="handclasp cert issue spiffe://example.org/prod/web --dns web.example.org --out-dir /etc/web/tls\n"
    "handclasp cert issue --key web.key --cert web.pem --bundle ca.pem   (the token names the identity)",
)
@click.argument("identity", required=False, metavar="[SPIFFE-ID]", help="Identity to ask for; not needed where the token names one.")
@_request_options
@click.option("--key-type", default="p256", show_default=True, metavar="TYPE", help="p256, p384, ed25519, rsa2048, ml-dsa-44 …")
@click.option("--out-dir", metavar="DIR", help="Write key.pem, cert.pem (with chain) and bundle.pem there.")
@click.option("--key", metavar="FILE", help="Write the key there (mode 0600).")
@click.option("--cert", "cert_file", metavar="FILE", help="Write the certificate with its chain there.")
@click.option("--bundle", metavar="FILE", help="Write the trust bundle there.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Write key, certificate and chain to stdout, and no file.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@pass_state
def issue(state: State, identity: str | None, key_type: str, to_stdout: bool, force: bool, **options: Any) -> None:
    """Make a key here and obtain a certificate for it. The key never leaves this machine."""
    files = _destination(to_stdout, state.json, options)
    from handclasp.cli.files import refuse_existing
    from handclasp.cli.pem import check_pair, served_chain
    from handclasp.client.csr import new_request
    from handclasp.pki import keys

    if files is not None:
        refuse_existing(*files.paths, force=force)
        files.check_writable()
    # A CSR made here cannot hold e-mail addresses; then it holds no names, and all of them are asked for beside it.
    named = {} if options["email"] else {"dns": options["dns"], "ip": options["ip"]}
    pem, csr = new_request(key_type, identity=None if options["email"] else identity, **named)
    issued = _ask(state, csr, identity, options)
    check_pair(keys.from_pem(pem), issued.certificate, "the certificate that the server sent")
    chain = served_chain(issued)
    if files is None:
        terminal.write(pem.decode() + chain)
    else:
        files.install(pem, chain.encode(), issued.bundle.encode())
    if state.json:
        terminal.write_json(issued)
    _say_issued(issued, [str(path) for path in files.paths] if files else [])


def _destination(to_stdout: bool, as_json: bool, options: dict[str, Any]) -> Any:
    """Return the files to write, or None for stdout; wrong usage when that is not clear."""
    from handclasp.cli.credentials import CredentialFiles

    out_dir, key, cert_file, bundle = (options.pop(name) for name in ("out_dir", "key", "cert_file", "bundle"))
    if to_stdout:
        if out_dir or key or cert_file or bundle:
            raise click.UsageError("--stdout goes with no file")
        if as_json:
            raise click.UsageError("--stdout and --json do not go together: name a file for the key with --key or --out-dir")
        return None
    if out_dir:
        key, cert_file, bundle = (
            given or str(Path(out_dir) / name) for given, name in ((key, "key.pem"), (cert_file, "cert.pem"), (bundle, "bundle.pem"))
        )
    if not key or not cert_file:
        raise click.UsageError("say where the key and the certificate are to go: --out-dir DIR, or --key FILE and --cert FILE, or --stdout")
    return CredentialFiles(Path(key), Path(cert_file), Path(bundle) if bundle else None)


def _ask(state: State, csr: str, identity: str | None, options: dict[str, Any]) -> Issued:
    from handclasp.wire import Issued, IssueRequest

    lists = {name: list(options[name]) for name in ("dns", "ip", "email")}
    request = IssueRequest(csr=csr, identity=identity, profile=options["profile"], ttl=options["ttl"], **lists)
    return state.api().call("POST", "/v1/certificates", Issued, body=request)


def _say_issued(issued: Issued, files: Sequence[str]) -> None:
    where = f" in {', '.join(files)}" if files else ""
    terminal.say(f"{issued.identity}, until {issued.not_after}, renew after {issued.renew_after} (log entry {issued.log_entry}){where}")


@cert.command(client=True, example="handclasp cert sign web.csr --identity spiffe://example.org/prod/web --cert web.pem")
@click.argument("csr_file", metavar="CSRFILE|-", help="The signing request, PEM or DER.")
@click.option("--identity", metavar="SPIFFE-ID", help="Identity to ask for; without it the names in the request, or the token's.")
@_request_options
@click.option("--cert", "cert_file", metavar="FILE", help="Write the certificate with its chain there instead of stdout.")
@click.option("--bundle", metavar="FILE", help="Write the trust bundle there.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@pass_state
def sign(state: State, csr_file: str, identity: str | None, cert_file: str | None, bundle: str | None, force: bool, **options: Any) -> None:
    """Obtain a certificate for a signing request that was made elsewhere (PEM or DER)."""
    from handclasp.cli.files import read_bytes, refuse_existing, write_file
    from handclasp.cli.pem import served_chain

    targets = [Path(name) for name in (cert_file, bundle) if name]
    refuse_existing(*targets, force=force)
    issued = _ask(state, _csr_text(read_bytes(csr_file), csr_file), identity, options)
    chain = served_chain(issued)
    if cert_file:
        write_file(Path(cert_file), chain.encode(), 0o644)
    if bundle:
        write_file(Path(bundle), issued.bundle.encode(), 0o644)
    if state.json:
        terminal.write_json(issued)
    elif not cert_file:
        terminal.write(chain)
    _say_issued(issued, [str(path) for path in targets])


def _csr_text(data: bytes, source: str) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    from handclasp.errors import HandclaspError, Kind

    try:
        csr = x509.load_pem_x509_csr(data) if b"-----BEGIN" in data else x509.load_der_x509_csr(data)
    except ValueError as error:
        raise HandclaspError(
            Kind.BAD_CSR, f"{source} holds no signing request that can be read", hint="handclasp cert inspect tells what it is"
        ) from error
    return csr.public_bytes(serialization.Encoding.PEM).decode()


@cert.command(client=True, example="handclasp cert revoke web.pem --reason key-compromise --comment 'laptop stolen'")
@click.argument("certificate", metavar="SHA256|FILE", help="Its fingerprint, or a file that holds it.")
@click.option(
    "--reason",
    default="unspecified",
    show_default=True,
    metavar="REASON",
    help="key-compromise (also blocks the key everywhere), superseded, cessation-of-operation, privilege-withdrawn, affiliation-changed.",
)
@click.option("--comment", default="", help="Why, for the log.")
@pass_state
def revoke(state: State, certificate: str, reason: str, comment: str) -> None:
    """Revoke a certificate. After a key compromise everything with the same key goes with it."""
    from handclasp.cli.pem import fingerprint_of
    from handclasp.wire import Revoked, RevokeRequest

    request = RevokeRequest(reason=reason.replace("-", "_"), comment=comment)
    done = state.api().call("POST", f"/v1/certificates/{fingerprint_of(certificate)}:revoke", Revoked, body=request)
    if state.json:
        terminal.write_json(done)
    else:
        for sha256 in done.revoked:
            terminal.write(sha256)
    count = len(done.revoked)
    if done.log_entry is None:
        terminal.say(f"it was revoked before: {done.reason}, at {done.revoked_at}")
    else:
        terminal.say(f"revoked {count} certificate{'' if count == 1 else 's'}: {done.reason} (log entry {done.log_entry})")
