"""Make the pictures of the console in docs/images: each page, of an installation with a day behind it, in a real browser.

    make screenshots

Needs Chromium on the PATH, and the console's browser libraries (make assets). The pictures are small: few colours, and no more pixels than
the documentation shows.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 400, "height": 780}
COLOURS = 96

sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]


def pages(world: Any) -> dict[str, tuple[str, str, dict[str, int]]]:
    """Return what is taken: name -> (path, light or dark, size)."""
    return {
        "console-overview": ("", "light", WIDE),
        "console-overview-dark": ("", "dark", WIDE),
        "console-overview-narrow": ("", "light", NARROW),
        "console-timeline": ("timeline?span=day", "light", WIDE),
        "console-identities": ("identities", "light", WIDE),
        "console-identity": (f"identity?name={world.identity}", "light", {"width": 1280, "height": 1340}),
        "console-identity-narrow": (f"identity?name={world.identity}", "dark", NARROW),
        "console-certificates": ("certificates?state=valid", "light", WIDE),
        "console-certificate": (f"certificates/{world.unissued}", "dark", WIDE),
        "console-locations": ("locations", "light", WIDE),
        "console-location": (f"locations/{world.location}", "light", WIDE),
        "console-views": ("views", "light", WIDE),
        "console-sources": ("sources", "light", WIDE),
        "console-source": ("sources/own", "light", WIDE),
        "console-source-new": ("sources/new", "light", WIDE),
        "console-scan": (f"scans/{world.scan}", "light", WIDE),
        "console-agents": ("agents", "light", WIDE),
        "console-agent": (f"agent?name={world.agent}", "light", WIDE),
        "console-owners": ("owners", "light", WIDE),
        "console-owner": ("owner?name=payments", "light", WIDE),
        "console-ownership": ("ownership", "light", WIDE),
        "console-triage": ("triage", "light", WIDE),
        "console-tokens": ("tokens", "light", WIDE),
        "console-token": (
            "tokens/new?name=web&allow=spiffe://example.org/prod/web&profiles=workload&expires=10m&uses=1",
            "light",
            {"width": 1280, "height": 1240},
        ),
        "console-policy": ("policy", "light", WIDE),
        "console-profiles": ("profiles", "light", WIDE),
        "console-authorities": ("authorities", "light", WIDE),
        "console-rotation": (f"rotations/{world.rotation}", "light", WIDE),
        "console-log": ("log", "light", WIDE),
        "console-entry": ("log/40", "light", WIDE),
    }


RUN_VARIABLE = "PYTEST_HANDCLASP_RUN"
"""Where the helpers of the tests, which are used here, keep what they share."""


def take(directory: Path) -> None:
    """Make the installation, serve it, and take every picture."""
    from playwright.sync_api import sync_playwright

    from support.console_browser import visiting
    from support.console_world import furnish
    from support.live import serving

    world = furnish(directory / "data", hostile=False)
    with serving(directory) as live, sync_playwright() as playwright:
        world.scan = scan_itself(live)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with visiting(browser, live) as visitor:
            visitor.go("sign-in")
            save("console-sign-in", visitor.page.screenshot(clip={"x": 0, "y": 0, "width": 1280, "height": 520}))
        with visiting(browser, live) as visitor:
            visitor.sign_in()
            for name, (path, scheme, size) in pages(world).items():
                visitor.page.emulate_media(color_scheme=scheme)
                visitor.page.set_viewport_size(size)
                visitor.go(path)
                save(name, visitor.page.screenshot())
        browser.close()


def scan_itself(live: Any) -> str:
    """Have the server read its own listener, as a source that a scan can be shown of; return the scan."""
    host, port = live.https
    scope = {"allow": [host], "loopback": True}
    with live.client(live.admin_token) as admin:
        source = {"name": "own", "kind": "network", "scope": scope, "settings": {"ports": [str(port)]}, "every": "1h"}
        admin("POST", "/v1/sources", source).ok(201)
        scan = admin("POST", "/v1/sources/own:run", {}).json
        while admin.get(f"/v1/scans/{scan['id']}")["state"] in ("planning", "running"):
            time.sleep(0.2)
    return str(scan["id"])


def save(name: str, data: bytes) -> None:
    """Write a picture with few colours: a page has not many, and a quarter of the bytes is enough."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    small = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    target = IMAGES / f"{name}.png"
    small.save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}  {target.stat().st_size // 1024} KB")


def main() -> None:
    """Take them all."""
    if shutil.which("chromium") is None:
        sys.exit("Chromium is not on the PATH; install it, e.g.: apt-get install chromium")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault(RUN_VARIABLE, directory)
        take(Path(directory))


if __name__ == "__main__":
    main()
