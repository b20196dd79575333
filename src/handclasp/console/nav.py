"""The menu: what pages there are, in the order in which somebody looks for them."""

from __future__ import annotations

from collections.abc import Callable

NAV: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("See", (("Overview", "/console/", "inventory:read"), ("Timeline", "/console/timeline", "inventory:read"))),
    (
        "Inventory",
        (
            ("Identities", "/console/identities", "certificates:read"),
            ("Certificates", "/console/certificates", "certificates:read"),
            ("Locations", "/console/locations", "inventory:read"),
            ("Saved views", "/console/views", "inventory:read"),
        ),
    ),
    ("Discovery", (("Sources", "/console/sources", "sources:read"), ("Agents", "/console/agents", "agents:read"))),
    ("Ownership", (("Owners", "/console/owners", "owners:read"), ("Triage", "/console/triage", "owners:read"))),
    (
        "Issuance",
        (
            ("Tokens", "/console/tokens", "tokens:read"),
            ("Policy", "/console/policy", "policy:read"),
            ("Profiles", "/console/profiles", "policy:read"),
            ("Rotations", "/console/rotations", "certificates:rotate"),
        ),
    ),
    ("Trust", (("Authorities", "/console/authorities", "authorities:read"), ("Log", "/console/log", "log:read"))),
)
"""Groups of (name, address, the scope that it needs)."""

_SCOPES = {address: scope for _, items in NAV for _, address, scope in items} | {"/console/identity": "inventory:read"}

_ALIASES = {
    "/console/identity": "/console/identities",
    "/console/owner": "/console/owners",
    "/console/agent": "/console/agents",
    "/console/scans": "/console/sources",
    "/console/ownership": "/console/owners",
}


def nav_for(can: Callable[[str], bool]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the part of the menu that somebody may see."""
    shown = [(group, [(name, address) for name, address, scope in items if can(scope)]) for group, items in NAV]
    return [(group, items) for group, items in shown if items]


def opens(can: Callable[[str], bool], address: str) -> bool:
    """Tell whether somebody may see the page at an address: what they may not see is named, and no link."""
    path = address.partition("?")[0]
    scope = _SCOPES.get("/".join(path.split("/")[:3])) or _SCOPES.get(section_of(path))
    return scope is None or can(scope)


def title_of(section: str) -> str:
    """Return what an address is called in the menu; empty for none."""
    return next((name for _, items in NAV for name, address, _ in items if address == section), "")


def section_of(path: str) -> str:
    """Return the address in the menu that a page belongs to; empty for none."""
    addresses = [address for _, items in NAV for _, address, _ in items]
    if path in addresses:
        return path
    parent = "/".join(path.split("/")[:3])
    return _ALIASES.get(parent, parent if parent in addresses else "")
