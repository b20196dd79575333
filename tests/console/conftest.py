"""One installation with a day behind it, one server and one browser, for all tests of the console in a worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.console_browser import PEOPLE, Place
from support.console_oidc import CLIENT, SECRET, Provider
from support.console_world import furnish
from support.live import serving
from support.needs import needs


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("console")
    world = furnish(directory / "data")
    provider = Provider()
    secret = directory / "oidc.secret"
    secret.write_text(SECRET + "\n")
    flags = ["--oidc-allow-http", "--console-oidc-issuer", provider.url, "--console-oidc-client-id", CLIENT]
    flags += ["--console-oidc-secret-file", str(secret), "--console-roles", "claim:groups:platform=operator"]
    for name, role in PEOPLE.items():
        flags += ["--console-roles", f"spiffe://example.org/person/{name}={role}"]
    try:
        with serving(directory, *flags) as live:
            people = {name: live.holder(f"spiffe://example.org/person/{name}") for name in (*PEOPLE, "nobody")}
            yield Place(live, world, provider, people)
    finally:
        provider.close()


@pytest.fixture(scope="module")
def browser(place: Place) -> Iterator[Any]:
    """Debian's Chromium. Of one module: while it is open, no other event loop can run in this thread."""
    program = needs("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(program), args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()
