"""``handclasp agent discover``: what a scan would find, told to the person who asks."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner

from handclasp.cli.agents import discover
from support.certfiles import Maker, key_pem, p12, pem, put

MAKER = Maker()
LEAF, KEY = MAKER.leaf()


def test_what_is_found_and_what_is_not_allowed(tmp_path: Path) -> None:
    root = Path(os.path.realpath(tmp_path)) / "srv"
    put(root / "tls.pem", key_pem(KEY) + pem(LEAF, MAKER.root), 0o640)
    put(root / "ca.crt", pem(MAKER.root))
    put(root / "store.p12", p12("web", KEY, LEAF, [], "of-our-own"))
    passwords = put(tmp_path / "passwords", b"of-our-own\n")
    done = CliRunner().invoke(discover, [str(root), "--passwords-file", str(passwords), "--json"])
    assert done.exit_code == 0, done.output
    found = {Path(one["path"]).name: one for one in json.loads(done.stdout)["files"]}
    assert {name: (one["kind"], one["format"]) for name, one in found.items()} == {
        "ca.crt": ("file", "pem"),
        "store.p12": ("keystore", "pkcs12"),
        "tls.pem": ("file", "pem"),
    }
    (leaf,) = found["tls.pem"]["certificates"]
    assert (leaf["identity"], leaf["role"], leaf["chain"]) == ("dns:web.elsewhere.test", "stored", 1)
    assert found["tls.pem"]["private_key"]["others_read"]
    locked = CliRunner().invoke(discover, [str(root)], standalone_mode=False)
    assert locked.return_value == 1
    assert "a private key that others may read" in locked.stdout
    config = put(tmp_path / "agent.yaml", b"identities: [{dns: [a.test]}]\ndiscover: {allow: [/nowhere]}\n")
    refused = CliRunner().invoke(discover, [str(root), "-c", str(config), "--json"], standalone_mode=False)
    assert refused.return_value == 1
    assert json.loads(refused.stdout)["files"] == []
    assert "does not name it" in json.loads(refused.stdout)["problem"]


def test_a_path_that_is_not_there_is_said(tmp_path: Path) -> None:
    missing = CliRunner().invoke(discover, [str(tmp_path / "typo")], standalone_mode=False)
    assert (missing.return_value, missing.stderr.splitlines()[0]) == (1, f"{tmp_path}/typo: it is not there")
