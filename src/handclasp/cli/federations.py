"""``handclasp federation``: other trust domains whose bundles are fetched and handed to our agents."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from handclasp.cli import terminal
from handclasp.cli.command import Group, State, pass_state
from handclasp.cli.terminal import When

if TYPE_CHECKING:
    from handclasp.wire import Federation

_TRUST_DOMAIN = click.argument("trust_domain", metavar="TRUST-DOMAIN", help="The other trust domain, such as partner.example.")


@click.group(cls=Group)
def federation() -> None:
    """Other trust domains: their bundles, fetched from their bundle endpoints and never merged with ours."""


@federation.command(
    client=True,
    example="handclasp federation add partner.example https://spiffe.partner.example/bundle\n"
    "handclasp federation add partner.example https://ca.partner.example:8443/bundle/partner.example \\\n"
    "    --endpoint-id spiffe://partner.example/handclasp/server --bundle partner.pem",
)
@_TRUST_DOMAIN
@click.argument("address", metavar="ADDRESS", help="The address of its bundle endpoint, https://…")
@click.option(
    "--endpoint-id", metavar="SPIFFE-ID", help="Know the endpoint by this SPIFFE ID (https_spiffe) and not by its web certificate."
)
@click.option("--bundle", metavar="FILE", help="The bundle to begin with, PEM or SPIFFE; https_spiffe needs it. - reads stdin.")
@pass_state
def add(state: State, trust_domain: str, address: str, endpoint_id: str | None, bundle: str | None) -> int:
    """Federate with a trust domain, or change how its bundle is fetched; then fetch it. Exits 1 when it could not be fetched."""
    from handclasp.cli.files import read_text
    from handclasp.wire import Federation, FederationRequest

    api = state.api()
    profile = "https_web" if endpoint_id is None else "https_spiffe"
    body = FederationRequest(url=address, profile=profile, endpoint_id=endpoint_id, bundle=None if bundle is None else read_text(bundle))
    api.call("PUT", _path(trust_domain), Federation, body=body)
    return _told(state, api.call("POST", f"{_path(trust_domain)}:refresh", Federation))


@federation.command("list", client=True, example="handclasp federation list")
@pass_state
def list_(state: State) -> None:
    """List federated trust domains and how fresh their bundles are."""
    from handclasp.wire import FederationList

    found = state.api().get("/v1/federation", FederationList)
    if state.json:
        terminal.write_json(found)
        return
    terminal.write_table(
        ["trust domain", "state", "profile", "anchors", "jwt keys", "fetched", "problem"],
        [[f.trust_domain, f.state, f.profile, f.anchors, f.jwt_keys, _when(f.fetched_at), f.problem] for f in found.items],
        empty="there is no federated trust domain",
    )


@federation.command(client=True, example="handclasp federation show partner.example")
@_TRUST_DOMAIN
@pass_state
def show(state: State, trust_domain: str) -> None:
    """Show one federated trust domain. Its bundle: handclasp ca bundle TRUST-DOMAIN."""
    from handclasp.wire import Federation

    found = state.api().get(_path(trust_domain), Federation)
    if state.json:
        terminal.write_json(found)
    else:
        _write(found)


@federation.command(client=True, example="handclasp federation refresh partner.example")
@_TRUST_DOMAIN
@pass_state
def refresh(state: State, trust_domain: str) -> int:
    """Fetch a bundle now. Exits 1 when that failed; the last good bundle stays."""
    from handclasp.wire import Federation

    return _told(state, state.api().call("POST", f"{_path(trust_domain)}:refresh", Federation))


@federation.command(client=True, example="handclasp federation remove partner.example")
@_TRUST_DOMAIN
@pass_state
def remove(state: State, trust_domain: str) -> None:
    """Trust a trust domain's bundle no more: agents drop it with their next look at the server."""
    from handclasp.wire import Done

    done = state.api().call("DELETE", _path(trust_domain), Done)
    if state.json:
        terminal.write_json(done)
    terminal.say(f"{trust_domain} is not federated any more (log entry {done.log_entry})")


def _path(trust_domain: str) -> str:
    return f"/v1/federation/{quote(trust_domain, safe='')}"


def _told(state: State, found: Federation) -> int:
    if state.json:
        terminal.write_json(found)
    else:
        _write(found)
    if found.problem is None:
        terminal.say(f"the bundle of {found.trust_domain} is fetched: anchors {found.anchors}, JWT keys {found.jwt_keys}")
        return 0
    terminal.warn(f"the bundle of {found.trust_domain} was not fetched: {found.problem}")
    return 1


def _write(found: Federation) -> None:
    fields: list[tuple[str, terminal.Cell]] = []
    for field in found.__struct_fields__:
        value = getattr(found, field)
        fields.append((field.replace("_", " "), _when(value) if field.endswith("_at") else value))
    terminal.write_fields(fields)


def _when(text: str | None) -> terminal.Cell:
    return When(text) if text else None
