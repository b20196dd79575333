"""``handclasp ca``: authorities, bundles and revocation lists as the server publishes them. Making them is in :mod:`ceremonies`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.ceremonies import import_, issuing, request, root, sign_issuing
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.connection import Api
from handclasp.cli.terminal import When
from handclasp.errors import HandclaspError, Kind

_OUT = click.option("--out", metavar="FILE", help="Write it to FILE, in one rename, instead of stdout.")


@click.group(cls=Group)
def ca() -> None:
    """Authorities, trust bundles and revocation lists; roots that stay offline."""


for _command in (root, request, sign_issuing, import_, issuing):
    ca.add_command(_command)


@ca.command("list", client=True, example="handclasp ca list")
@pass_state
def list_(state: State) -> None:
    """List every authority: roots and issuing ones."""
    from handclasp.wire import AuthorityList

    found = state.api().get("/v1/authorities", AuthorityList)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["name", "kind", "trust domain", "state", "key", "ends", "dns zones"],
        [[a.name, a.kind, a.trust_domain, a.state, a.key_type, When(a.not_after), a.dns_zones] for a in found.items],
        empty="there are no authorities",
    )


@ca.command(client=True, example="handclasp ca show root\nhandclasp ca show issuing --pem > issuing.pem")
@click.argument("name", help="The authority's name, as `ca list` shows it.")
@click.option("--pem", is_flag=True, help="Write only its certificate.")
@pass_state
def show(state: State, name: str, pem: bool) -> None:
    """Show one authority. The sha256 of a root is what clients give as --ca sha256:… for first contact."""
    from handclasp.wire import Authority

    found = state.api().get(f"/v1/authorities/{quote(name, safe='')}", Authority)
    if state.json:
        terminal.write_json(found)
    elif pem:
        terminal.write(found.certificate)
    else:
        times = {"not_before", "not_after"}
        fields: list[tuple[str, terminal.Cell]] = []
        for field in found.__struct_fields__:
            if field != "certificate":
                value = getattr(found, field)
                fields.append((field.replace("_", " "), When(value) if field in times else value))
        terminal.write_fields(fields)


@ca.command(client=True, example="handclasp ca retire issuing")
@click.argument("name", help="The authority's name, as `ca list` shows it.")
@pass_state
def retire(state: State, name: str) -> None:
    """Retire an authority: an issuing one signs no more certificates, a root leaves the bundles. Its CRLs stay published."""
    from handclasp.wire import Done

    done = state.api().call("POST", f"/v1/authorities/{quote(name, safe='')}:retire", Done)
    if state.json:
        terminal.write_json(done)
    terminal.say(f"{name} is retired (log entry {done.log_entry})")


@ca.command("publish-crl", client=True, example="handclasp ca publish-crl root.crl --authority root")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path), help="The CRL that `ca root crl` wrote, PEM.")
@click.option("--authority", default="root", show_default=True, metavar="NAME", help="The root that signed it, by its name on the server.")
@pass_state
def publish_crl(state: State, file: Path, authority: str) -> None:
    """Publish the revocation list of an offline root. Do it before the one that is published ends."""
    from handclasp.cli.files import read_text
    from handclasp.wire import CrlDocument, Published

    body = CrlDocument(pem=read_text(str(file)))
    done = state.api().call("PUT", f"/v1/authorities/{quote(authority, safe='')}/crl", Published, body=body)
    if state.json:
        terminal.write_json(done)
    terminal.say("it was published before" if done.log_entry is None else f"published (log entry {done.log_entry})")


@ca.command(
    client=True, example="handclasp ca bundle --ca sha256:5f1c… --out /etc/ssl/handclasp.pem\nhandclasp ca bundle example.org --format jwks"
)
@click.argument("trust_domain", required=False, metavar="[TRUST-DOMAIN]", help="Needed where the server has more than one.")
@click.option(
    "--format", "format_", type=click.Choice(["pem", "jwks"]), default="pem", show_default=True, help="PEM, or a SPIFFE bundle (JWKS)."
)
@_OUT
@pass_state
def bundle(state: State, trust_domain: str | None, format_: str, out: str | None) -> None:
    """Get the trust bundle of a trust domain: what others verify its certificates with."""
    api = state.api()
    domain = trust_domain or _only_trust_domain(api)
    suffix = ".pem" if format_ == "pem" else ""
    _deliver(state, domain, format_, api.raw(f"/v1/bundles/{quote(domain, safe='')}{suffix}"), out)


@ca.command(client=True, example="handclasp ca crl example.org --out /etc/nginx/handclasp.crl")
@click.argument("trust_domain", required=False, metavar="[TRUST-DOMAIN]", help="Needed where the server has more than one.")
@_OUT
@pass_state
def crl(state: State, trust_domain: str | None, out: str | None) -> None:
    """Get every revocation list of a trust domain (PEM), the roots' too."""
    api = state.api()
    domain = trust_domain or _only_trust_domain(api)
    _deliver(state, domain, "pem", api.raw(f"/v1/crls/{quote(domain, safe='')}.pem"), out)


def _deliver(state: State, trust_domain: str, kind: str, data: bytes, out: str | None) -> None:
    from handclasp.cli.files import write_file

    if out:
        write_file(Path(out), data, 0o644)
    text = data.decode("utf-8", "replace")
    if state.json:
        import json

        terminal.write_json(json.loads(text) if kind == "jwks" else {"trust_domain": trust_domain, "pem": text})
    elif not out:
        terminal.write_text(text)
    else:
        terminal.say(f"{trust_domain}: written to {out}")


def _only_trust_domain(api: Api) -> str:
    from handclasp.client.first_contact import Bundles

    names = [item.trust_domain for item in api.get("/v1/bundles", Bundles).items]
    if len(names) == 1:
        return names[0]
    if not names:
        raise HandclaspError(Kind.NOT_FOUND, "the server has no trust domain yet", hint="handclasp init --trust-domain example.org")
    raise HandclaspError(Kind.BAD_REQUEST, f"the server has {len(names)} trust domains: {', '.join(names)}", hint="name one of them")
