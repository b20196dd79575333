"""Authorities by the command line alone: an offline root, several issuing authorities, two trust domains; OpenSSL judges everything."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from handclasp.errors import Kind
from support.live import DOMAIN, Live
from support.needs import needs
from support.programs import Shell, free_port
from support.servers import WEB, Server
from support.waiting import eventually

OTHER = "other.example"


@dataclass
class Site:
    """The machine of a server: ``data`` and everything that is carried to it. The root's machine is ``vault``, without a network."""

    directory: Path
    port: int

    @property
    def shell(self) -> Shell:
        return Shell(self.directory)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serving(self) -> Iterator[tuple[Live, Shell]]:
        """Run the server, and give a command line that talks to it as admin."""
        with Server(self.directory / "data", "--http", f"127.0.0.1:{self.port}", verb="serve") as server:
            live = Live(self.directory, server.ready())
            yield live, Shell(self.directory, live.environment)
            assert server.stop() == 0
        live.check_written()

    def vault(self, name: str) -> Path:
        """Return a new directory with a passphrase, for a root that stays offline."""
        home = self.directory / name
        home.mkdir()
        (home / "passphrase").write_text(f"the passphrase of {name}, known to two people\n")
        (home / "passphrase").chmod(0o600)
        return home

    def signed(self, vault: str, name: str, trust_domain: str, *options: str) -> tuple[Path, Path]:
        """Make a request here, carry it to the root and the answer back; return certificate and key."""
        shell, key, csr, out = self.shell, Path(f"requests/{name}.key"), f"requests/{name}.csr", Path(f"requests/{name}.crt")
        shell("ca", "request", "--trust-domain", trust_domain, "--key", key, "--out", csr)
        signing = ("--root", f"{vault}/root", "--passphrase-file", f"{vault}/passphrase", "--base-url", self.http)
        shell("ca", "sign-issuing", csr, "--out", out, *signing, *options)
        return out, key

    def take(self, certificate: Path, key: Path, vault: str, name: str) -> None:
        """Import an issuing authority, with its root and the root's CRL."""
        public = self.directory / "carried" / vault
        public.mkdir(parents=True, exist_ok=True)
        for file in ("root.crt", "root.crl"):
            shutil.copy(self.directory / vault / "root" / file, public)
        here = ("--data", "data", "--http-url", self.http)
        self.shell("ca", "import", certificate, "--key", key, "--root", public / "root.crt", "--as", name, *here)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    needs("openssl")
    requests = tmp_path / "requests"
    requests.mkdir()
    (requests / "passphrase").write_text("the passphrase of what is under way\n")
    (requests / "passphrase").chmod(0o600)
    return Site(tmp_path, free_port())


def issue(shell: Shell, identity: str, out: str, *options: str, dns: str = "", profile: str = "workload") -> str:
    """Issue with a token of its own, and return the name of the authority that signed."""
    names = ("--allow", identity, *(("--allow-dns", dns) if dns else ()), "--profile", profile)
    shell("token", "create", "once", *names, "--out", f"{out}.token")
    wanted = (*(("--dns", dns) if dns else ()), "--profile", profile)
    shell("cert", "issue", identity, *wanted, "--out-dir", out, *options, HANDCLASP_TOKEN_FILE=f"{out}.token")
    authority: str = shell.json("cert", "show", f"{out}/cert.pem")["authority"]
    return authority


def verify(shell: Shell, out: str, trust_domain: str = DOMAIN) -> str:
    """Return OpenSSL's opinion of what was issued, with the CRLs of everybody above it: "ok", or what it has against it."""
    here = shell.directory
    shell("ca", "bundle", trust_domain, "--out", "bundle.pem")
    shell("ca", "crl", trust_domain, "--out", "crls.pem")
    return openssl(here, here / out / "cert.pem", "-crl_check_all", "-extended_crl", "-CRLfile", "crls.pem")


def openssl(here: Path, cert: Path, *options: str) -> str:
    command = ["openssl", "verify", "-x509_strict", "-CAfile", "bundle.pem", *options, "-untrusted", cert, cert]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return "ok" if done.returncode == 0 else done.stderr


def publish(shell: Shell, file: str, *, status: int = 200) -> str:
    """Publish a CRL; return what the command line says, or the reason of the refusal."""
    if status == 200:
        return shell.run("ca", "publish-crl", file).stderr
    problem = shell.refused("ca", "publish-crl", file)
    assert (problem["status"], problem["kind"]) == (status, Kind.BAD_CERTIFICATE.value), problem
    return str(problem["detail"])


# --- the offline root -------------------------------------------------------------------------------------------------------------------


def test_a_root_that_never_meets_a_network(site: Site) -> None:
    shell, here = site.shell, site.directory
    site.vault("vault"), site.vault("foreign")
    for vault in ("vault", "foreign"):
        root = ("--trust-domain", DOMAIN, "--passphrase-file", f"{vault}/passphrase")
        shell("ca", "root", "create", f"{vault}/root", *root)
    shell("init", "--offline-root", "--trust-domain", DOMAIN, "--data", "data")
    site.take(*site.signed("vault", "first", DOMAIN, "--dns-zone", DOMAIN), "vault", "issuing")
    shutil.copy(here / "vault/root/root.crl", here / "old.crl")
    assert not list((here / "data/keys").glob("root*")), "the root's key is not here"
    with site.serving() as (_, admin):
        assert {one["name"]: one["dns_zones"] for one in admin.json("ca", "list")["items"]} == {"root": [], "issuing": [DOMAIN]}
        assert issue(admin, WEB, "web", dns=f"web.{DOMAIN}") == "issuing"
        assert verify(admin, "web") == "ok"
        the_zone_holds(admin)
    # The key of the issuing authority is feared lost: another one takes its place, and the root says so.
    site.take(*site.signed("vault", "second", DOMAIN, "--dns-zone", DOMAIN), "vault", "issuing-2")
    crl = ("ca", "root", "crl", "vault/root", "--passphrase-file", "vault/passphrase")
    shell(*crl, "--revoke", "requests/first.crt", "--reason", "key-compromise")
    with site.serving() as (_, admin):
        admin("ca", "retire", "issuing")
        assert issue(admin, WEB, "again") == "issuing-2"
        assert verify(admin, "web") == "ok", "not published yet"
        assert "published (log entry" in publish(admin, "vault/root/root.crl")
        assert "it was published before" in publish(admin, "vault/root/root.crl")
        assert "is not above" in publish(admin, "old.crl", status=400)
        assert publish(admin, "foreign/root/root.crl", status=400)
        assert publish(admin, "requests/first.crt", status=400)
        assert "certificate revoked" in verify(admin, "web")
        assert verify(admin, "again") == "ok"
        assert admin.json("audit", "list", "--type", "crl.imported")["items"][0]["entry"]["what"]["authority"] == "root"
        shell(*crl)
        publish(admin, "vault/root/root.crl")
        assert "certificate revoked" in verify(admin, "web"), "a later CRL keeps what was revoked before"


def the_zone_holds(admin: Shell) -> None:
    """Names outside of the zone: the server issues none, and what is signed behind its back convinces nobody."""
    admin("token", "create", "outside", "--allow", WEB, "--allow-dns", "web.example.com", "--profile", "workload", "--out", "outside.token")
    wanted = ("cert", "issue", WEB, "--dns", "web.example.com", "--out-dir", "outside")
    assert admin.refused(*wanted, HANDCLASP_TOKEN_FILE="outside.token")["kind"] == Kind.NAME_NOT_ALLOWED.value
    here = admin.directory
    assert forged(here, f"stolen.{DOMAIN}") == "ok", "the forgery is good but for its name"
    assert "permitted subtree violation" in forged(here, "web.example.com")
    assert list((here / "outside").iterdir()) == [], "no key is left lying about for a certificate that was refused"


def forged(here: Path, name: str) -> str:
    """Sign a certificate with the stolen key of the issuing authority, and return OpenSSL's opinion of it."""
    key = load_pem_private_key((here / "requests/first.key").read_bytes(), (here / "requests/passphrase").read_bytes().strip())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate((here / "requests/first.crt").read_bytes())
    public, now = ec.generate_private_key(ec.SECP256R1()).public_key(), datetime.now(UTC)
    ski = x509.SubjectKeyIdentifier.from_public_key(public)
    aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )
    builder = x509.CertificateBuilder(issuer.subject, x509.Name([]), public, 1, now - timedelta(minutes=1), now + timedelta(hours=1))
    for extension, critical in ((x509.SubjectAlternativeName([x509.DNSName(name)]), True), (ski, False), (aki, False)):
        builder = builder.add_extension(extension, critical)
    leaf = builder.sign(key, hashes.SHA256())
    path = here / "forged.pem"
    path.write_bytes(leaf.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM))
    return openssl(here, path)


# --- several authorities ----------------------------------------------------------------------------------------------------------------

PROFILES = "version: 1\nprofiles:\n  payments: {extend: workload, authority: issuing-2}\n"


def test_several_authorities_and_two_trust_domains_in_one_installation(site: Site) -> None:
    shell = site.shell
    shell("init", "--trust-domain", DOMAIN, "--data", "data", "--http-url", site.http, "--crl-shards", "2")
    made = ("--trust-domain", DOMAIN, "--data", "data", "--http-url", site.http, "--crl-shards", "2", "--key-type", "p384")
    assert shell.json("ca", "issuing", "create", "issuing-2", *made)["name"] == "issuing-2"
    assert shell.refused("ca", "issuing", "create", "issuing-2", *made)["kind"] == Kind.CONFLICT.value
    site.vault("vault")
    shell("ca", "root", "create", "vault/root", "--trust-domain", OTHER, "--passphrase-file", "vault/passphrase")
    site.take(*site.signed("vault", "other", OTHER, "--root-name", "root-2"), "vault", "other-issuing")
    (site.directory / "profiles.yaml").write_text(PROFILES)
    with site.serving() as (live, admin):
        listed = {one["name"]: (one["kind"], one["trust_domain"]) for one in admin.json("ca", "list")["items"]}
        assert listed == {
            "root": ("root", DOMAIN), "issuing": ("issuing", DOMAIN), "issuing-2": ("issuing", DOMAIN),
            "root-2": ("root", OTHER), "other-issuing": ("issuing", OTHER),
        }  # fmt: skip
        admin("profile", "apply", "-f", "profiles.yaml")
        assert issue(admin, WEB, "web") == "issuing"
        assert issue(admin, f"spiffe://{DOMAIN}/prod/pay", "pay", profile="payments") == "issuing-2"
        assert issue(admin, f"spiffe://{OTHER}/prod/web", "far") == "other-issuing"
        assert [verify(admin, "web"), verify(admin, "pay"), verify(admin, "far", OTHER)] == ["ok", "ok", "ok"]
        assert "unable to get local issuer certificate" in verify(admin, "far"), "trust ends where the trust domain does"
        only_one_trust_domain_at_a_time(admin)
        one_retires_and_the_next_takes_over(live, admin)


def only_one_trust_domain_at_a_time(admin: Shell) -> None:
    problem = admin.refused("ca", "bundle")
    assert problem["kind"] == Kind.BAD_REQUEST.value
    admin("token", "create", "mixed", "--allow", f"spiffe://{OTHER}/prod/pay", "--profile", "payments", "--out", "mixed.token")
    wanted = ("cert", "issue", f"spiffe://{OTHER}/prod/pay", "--profile", "payments", "--out-dir", "mixed")
    kind = admin.refused(*wanted, HANDCLASP_TOKEN_FILE="mixed.token")["kind"]
    assert kind == Kind.NAME_NOT_ALLOWED.value, "an authority of one trust domain signs no names of another"


def one_retires_and_the_next_takes_over(live: Live, admin: Shell) -> None:
    admin("ca", "retire", "issuing")
    assert admin.refused("ca", "retire", "issuing")["kind"] == Kind.CONFLICT.value
    assert admin.refused("ca", "retire", "root")["kind"] == Kind.CONFLICT.value, "certificates under it live"
    assert issue(admin, f"spiffe://{DOMAIN}/prod/new", "new") == "issuing-2"
    files = ("--cert", "web/cert.pem", "--key", "web/key.pem", "--bundle", "web/bundle.pem")
    before = admin.json("cert", "show", "web/cert.pem")
    shutil.copy(admin.directory / "web/cert.pem", admin.directory / "old.pem")
    admin("cert", "renew", *files)
    after = admin.json("cert", "show", "web/cert.pem")
    assert (before["authority"], after["authority"], after["line"]) == ("issuing", "issuing-2", before["line"])
    assert verify(admin, "web") == "ok"
    # What the retired one issued can still be revoked, and everybody hears of it.
    (admin.directory / "old").mkdir()
    shutil.move(admin.directory / "old.pem", admin.directory / "old/cert.pem")
    assert verify(admin, "old") == "ok"
    admin("cert", "revoke", "old/cert.pem", "--reason", "superseded")
    eventually(lambda: "certificate revoked" in verify(admin, "old"), what="the CRL of the retired authority")
    with live.plain() as plain:
        assert plain("GET", "/crl/issuing/0.crl").status == plain("GET", "/crl/root/0.crl").status == 200
