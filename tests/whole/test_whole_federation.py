"""Two installations that federate: real servers, the command line between them, and a Web PKI of the test's own."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from handclasp.pki import keys
from handclasp.pki.bundles import SpiffeBundle, parse_spiffe_bundle
from handclasp.pki.chains import split_pem, to_pem
from handclasp.pki.jwt_svid import verify_jwt_svid
from handclasp.pki.names import Names
from handclasp.pki.profiles import BUILT_IN
from support.authorities import MadeAuthority, csr_of, key_of, make_authority, plan_of
from support.installation import add_root
from support.live import DOMAIN, Live
from support.programs import Shell
from support.servers import Server
from support.waiting import eventually

PARTNER = "partner.example"
ENDPOINT = f"spiffe://{PARTNER}/handclasp/server"
WEB = f"spiffe://{PARTNER}/app/web"
QUICK = ("--bundle-refresh-hint", "1s", "--jwt-key-period", "8s")
POLICY = f"""
version: 1
workloads:
  - {{name: web, agents: {{role: web}}, selectors: ["unix:uid:33"], identity: {WEB}, jwt: true}}
"""


@contextmanager
def serving(directory: Path, trust_domain: str, *flags: str) -> Iterator[Live]:
    directory.mkdir(exist_ok=True)
    with Server(directory / "data", "--trust-domain", trust_domain, "--federation-allow-local", *flags) as server:
        live = Live(directory, server.ready())
        yield live
        assert server.stop() == 0, live.output
    live.check_written()


@dataclass
class Side:
    """One of the two, and the command line of its administrator."""

    live: Live

    def cli(self, *arguments: str, exit_code: int = 0) -> Any:
        done = Shell(self.live.directory, self.live.environment).run(*arguments, "--json")
        assert done.returncode == exit_code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def refreshed(self, trust_domain: str) -> Any:
        with self.live.client(self.live.admin_token) as admin:
            return admin("POST", f"/v1/federation/{trust_domain}:refresh").ok()

    def bundle_of(self, trust_domain: str) -> SpiffeBundle:
        with self.live.client() as client:
            return parse_spiffe_bundle(client("GET", f"/v1/bundles/{trust_domain}").body, trust_domain)

    def entries(self, type_: str) -> list[Any]:
        with self.live.client(self.live.admin_token) as admin:
            return [item["entry"] for item in admin.get("/v1/log/entries", type=type_, limit=100)["items"]]

    def endpoint(self, trust_domain: str, host: str = "127.0.0.1") -> str:
        return f"{self.live.facts['https'].replace('127.0.0.1', host)}/bundle/{trust_domain}"

    def has_key(self, trust_domain: str) -> None:
        eventually(lambda: self.bundle_of(trust_domain).jwt_keys, 20, "a key for JWT-SVIDs")


def agent_of(live: Live) -> Any:
    with live.client(live.admin_token) as admin:
        admin("PUT", "/v1/policy", {"text": POLICY}).ok()
    own = f"spiffe://{PARTNER}/agent/a"
    return live.holder(own, token=live.token(agent=True, labels={"role": "web"}, allow=[own], profiles=["agent"]), profile="agent")


def jwt_svid(live: Live, agent: Any) -> tuple[str, str]:
    """Have the agent obtain a JWT-SVID; return it with the key ID in its header."""
    with live.client(holder=agent) as client:
        token = str(client("POST", "/v1/jwt-svids", {"identity": WEB, "audience": ["shop"]}).ok(201)["token"])
    head = token.split(".")[0]
    import base64

    return token, json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]


def accepts(bundle: SpiffeBundle, token: str) -> bool:
    verify_jwt_svid(token, ["shop"], {PARTNER: bundle.jwt_keys}, time.time_ns() // 1_000_000)
    return True


def test_two_installations_federate_by_spiffe_id(tmp_path: Path) -> None:
    with serving(tmp_path / "here", DOMAIN) as here:
        ours = Side(here)
        with serving(tmp_path / "there", PARTNER, *QUICK) as there:
            theirs = Side(there)
            theirs.has_key(PARTNER)
            # Both ways, by the SPIFFE ID of the other's server, begun with the bundle that a person carried over.
            spiffe = ("--endpoint-id", ENDPOINT, "--bundle", there.facts["ca_file"])
            added = ours.cli("federation", "add", PARTNER, theirs.endpoint(PARTNER), *spiffe)
            assert (added["state"], added["problem"], added["anchors"], added["profile"]) == ("ok", None, 1, "https_spiffe")
            back = ("--endpoint-id", f"spiffe://{DOMAIN}/handclasp/server", "--bundle", here.facts["ca_file"])
            assert theirs.cli("federation", "add", DOMAIN, ours.endpoint(DOMAIN), *back)["problem"] is None
            assert theirs.bundle_of(DOMAIN).content == ours.bundle_of(DOMAIN).content
            # What is issued there is good here, with the bundle that is stored here.
            agent = agent_of(there)
            token, first = jwt_svid(there, agent)
            assert accepts(ours.bundle_of(PARTNER), token)
            # A key is here before it signs there: what is signed with it is good with a bundle that was fetched before.
            eventually(lambda: ours.refreshed(PARTNER)["jwt_keys"] > 1, 60, "the next key, ahead of its use")
            stored = ours.bundle_of(PARTNER)
            signed = [jwt_svid(there, agent)]

            def signs() -> bool:
                signed.append(jwt_svid(there, agent))
                return signed[-1][1] != first

            eventually(signs, 60, "and then it signs")
            assert all(accepts(stored, token) for token, _ in signed)
            assert any(entry["what"].get("jwt_keys_added") for entry in ours.entries("federation.changed"))
            # Somebody who is not who he must be: another workload's name is expected, and the last good bundle stays.
            wrong = ("--endpoint-id", f"spiffe://{PARTNER}/handclasp/other")
            bad = ours.cli("federation", "add", PARTNER, theirs.endpoint(PARTNER), *wrong, exit_code=1)
            assert f"shows {ENDPOINT}, and not" in bad["problem"]
            assert ours.bundle_of(PARTNER).authorities == stored.authorities
            # Another installation that claims to be it has another root.
            with serving(tmp_path / "forged", PARTNER) as forged:
                stands_in = Side(forged).endpoint(PARTNER)
                bad = ours.cli("federation", "add", PARTNER, stands_in, "--endpoint-id", ENDPOINT, exit_code=1)
                assert "not one that we trust" in bad["problem"]
                assert ours.bundle_of(PARTNER).authorities == stored.authorities
        add_root(tmp_path / "there" / "data", PARTNER)
        with serving(tmp_path / "there", PARTNER, *QUICK) as there:
            theirs = Side(there)
            # It moved, and has a root more: the bundle from before still says who it is.
            theirs.has_key(PARTNER)
            moved = ours.cli("federation", "add", PARTNER, theirs.endpoint(PARTNER), "--endpoint-id", ENDPOINT)
            assert (moved["problem"], moved["anchors"]) == (None, 2)
            with here.client() as client:
                assert len(split_pem(client("GET", f"/v1/bundles/{PARTNER}.pem").text)) == 2
        assert ours.cli("federation", "list")["items"][0]["trust_domain"] == PARTNER
        failed = ours.cli("federation", "refresh", PARTNER, exit_code=1)
        assert "cannot be reached" in failed["problem"]
        assert failed["anchors"] == 2
        with here.client(here.token("metrics:read")) as client:
            eventually(lambda: f'handclasp_federation_stale{{trust_domain="{PARTNER}"}}' in client("GET", "/metrics").text, 20, "a figure")
            assert client("GET", "/readyz").status == 200, "a partner that is away makes nobody unready"
        ours.cli("federation", "remove", PARTNER)
        assert [entry["what"]["trust_domain"] for entry in ours.entries("federation.removed")] == [PARTNER]


def web_files(directory: Path, made: MadeAuthority, name: str) -> tuple[Path, Path]:
    """Write a Web PKI certificate for ``localhost``, as an ACME client would."""
    plan = plan_of(Names(dns=(name,)), made=made, profile=BUILT_IN["server"], csr=csr_of(), now=time.time_ns() // 1_000_000)
    certificate, key = directory / "web.pem", directory / "web.key"
    for path, data in ((key, keys.to_pem(key_of("p256"))), (certificate, (to_pem(made.sign(plan)) + to_pem(made.certificate)).encode())):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.rename(path)
    return certificate, key


def test_two_installations_federate_by_the_web_pki(tmp_path: Path) -> None:
    made = make_authority(trust_domain="web.invalid", now=time.time_ns() // 1_000_000)
    certificate, key = web_files(tmp_path, made, "localhost")
    ca = tmp_path / "web-ca.pem"
    ca.write_text(to_pem(made.root))
    web = ("--web-name", "localhost", "--web-certificate", str(certificate), "--web-key", str(key))
    with serving(tmp_path / "there", PARTNER, *web) as there, serving(tmp_path / "here", DOMAIN, "--federation-ca", str(ca)) as here:
        ours, theirs = Side(here), Side(there)
        theirs.has_key(PARTNER)
        by_address = ours.cli("federation", "add", PARTNER, theirs.endpoint(PARTNER), exit_code=1)
        assert (by_address["state"], by_address["anchors"]) == ("waiting", 0)
        assert "not one that we trust" in by_address["problem"], "under any other name it shows its own certificate"
        added = ours.cli("federation", "add", PARTNER, theirs.endpoint(PARTNER, "localhost"))
        assert (added["state"], added["problem"], added["anchors"], added["jwt_keys"]) == ("ok", None, 1, 1)
        token, _ = jwt_svid(there, agent_of(there))
        assert accepts(ours.bundle_of(PARTNER), token)
        # By itself: a change of address is fetched by the leader's job, nobody asks for it.
        with here.client(here.admin_token) as admin:
            admin("PUT", f"/v1/federation/{PARTNER}", {"url": theirs.endpoint(PARTNER, "localhost") + "?"}).ok()
            eventually(lambda: admin.get(f"/v1/federation/{PARTNER}")["tried_at"], 30, "the job fetches it")
            assert admin.get(f"/v1/federation/{PARTNER}")["problem"] is None
        # The files are renewed, and what is served follows; a file that is broken changes nothing.
        before = served(there, ca)
        web_files(tmp_path, made, "localhost")
        eventually(lambda: served(there, ca) != before, 20, "the new certificate")
        before = served(there, ca)
        certificate.write_text("broken")
        eventually(lambda: "web certificate cannot be used" in there.output, 20, "that is said")
        assert served(there, ca) == before
        with there.client() as client:
            assert client("GET", "/healthz").status == 200, "and clients that trust our root are served as before"


def served(live: Live, ca: Path) -> bytes:
    context = ssl.create_default_context(cafile=str(ca))
    import socket

    with socket.create_connection(live.https) as bare, context.wrap_socket(bare, server_hostname="localhost") as connection:
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return der


def test_a_web_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    made = make_authority(trust_domain="web.invalid", now=time.time_ns() // 1_000_000)
    certificate, _ = web_files(tmp_path, made, "localhost")
    web = ("--web-name", "localhost", "--web-certificate", str(certificate), "--web-key", str(certificate))
    with Server(tmp_path / "data", "--trust-domain", DOMAIN, *web) as server:
        assert server.process.wait(60) == 1
        assert "bad_key" in server.errors() or "cannot be used" in server.errors()
    with Server(tmp_path / "data", "--trust-domain", DOMAIN, "--web-name", "localhost") as server:
        assert server.process.wait(60) == 1
        assert "belong together" in server.errors()
    with pytest.raises(FileNotFoundError):
        server.ready_file.read_text()
