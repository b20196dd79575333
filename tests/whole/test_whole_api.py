"""What only an administrator of a whole installation does over the API: authorities retired, foreign CRLs published; floods of refusals."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handclasp.authority import offline
from handclasp.authority.keyfile import load_key_file, write_key_file
from handclasp.client.csr import new_request
from handclasp.clock import system_clock
from handclasp.errors import Kind
from handclasp.pki import keys
from handclasp.server.local import import_issuing
from handclasp.server.settings import Settings
from support.live import DOMAIN, Client, Holder, Live, serving
from support.servers import WEB, Server, init
from support.waiting import eventually

PASSPHRASE = b"known to two people"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server, for tests that leave it as it was."""
    with serving(tmp_path_factory.mktemp("whole")) as running:
        yield running


@pytest.fixture
def admin(live: Live) -> Iterator[Client]:
    with live.client(live.admin_token) as client:
        yield client


# --- labels -----------------------------------------------------------------------------------------------------------------------------

POLICY = f"""\
version: 1
grants:
  - name: vaults
    principals: [{{agent: {{role: vault}}}}]
    identities: ["spiffe://{DOMAIN}/vault"]
    profiles: [workload]
    actions: [issue, renew]
"""


def test_an_agent_has_the_labels_of_its_own_enrolment_and_never_those_of_a_later_one(live: Live, admin: Client) -> None:
    """Labels belong to the token by which a line began: the holder of an old certificate gains nothing when its name is enrolled anew."""
    admin("PUT", "/v1/policy", {"text": POLICY}).ok()
    name, wanted = f"spiffe://{DOMAIN}/agent/host1", {"identity": f"spiffe://{DOMAIN}/vault", "profile": "workload"}
    exactly = {"allow": [name], "profiles": ["agent"]}  # another token would not be let near a name that is taken
    weak = live.holder(name, profile="agent", token=live.token(agent=True, labels={"role": "web"}, allow=[WEB], profiles=["workload"]))

    def may_obtain(holder: Holder) -> str:
        with live.client(None, holder) as client:
            return client("POST", "/v1/certificates", {"csr": new_request("p256", identity=None)[1], **wanted}).kind or "issued"

    assert may_obtain(weak) == Kind.NAME_NOT_ALLOWED.value
    strong = live.holder(name, profile="agent", token=live.token(agent=True, labels={"role": "vault"}, **exactly))
    assert may_obtain(strong) == "issued"
    assert may_obtain(weak) == Kind.NAME_NOT_ALLOWED.value
    with live.client(None, weak) as client:  # a renewal stays in its line
        key, csr = new_request("p256", identity=None)
        renewed = live.keep(client("POST", f"/v1/certificates/{weak.sha256}:renew", {"csr": csr}).ok(201), key)
    assert may_obtain(renewed) == Kind.NAME_NOT_ALLOWED.value
    # And the other way round: a weaker enrolment of the same name takes nothing from the stronger one, nor gives it away.
    live.holder(name, profile="agent", token=live.token(agent=True, labels={}, **exactly))
    assert may_obtain(strong) == "issued"
    assert may_obtain(renewed) == Kind.NAME_NOT_ALLOWED.value
    admin("PUT", "/v1/policy", {"text": "version: 1\ngrants: []\n"}).ok()


# --- a flood ----------------------------------------------------------------------------------------------------------------------------


def refusals(admin: Client) -> int:
    """Return how many refusals the log holds."""
    return sum(len(page) for page in admin.pages("/v1/log/entries", type="issuance.refused", limit=1000))


def test_refusals_are_limited_and_do_not_flood_the_log_however_they_are_packed(tmp_path: Path) -> None:
    """Ten a second, and bursts of twenty; what others are allowed gets through all the same, from the same address too."""
    with serving(tmp_path, "--rate-refused", "10") as live, live.client(live.admin_token) as admin:
        csr = new_request("p256", identity=None)[1]
        wrong, nonsense = {"csr": csr, "identity": f"spiffe://{DOMAIN}/not-mine"}, {"csr": "nonsense", "identity": WEB}
        packed, single, garbled, good = (live.issuing_token(WEB) for _ in range(4))
        with live.client(packed) as client:
            results = client("POST", "/v1/certificates:batch", {"requests": [wrong] * 1000}).ok()["results"]
            seen = Counter((one["problem"]["status"], one["problem"]["kind"]) for one in results)
            assert set(seen) == {(403, Kind.NAME_NOT_ALLOWED.value), (429, Kind.RATE_LIMITED.value)}
            logged = refusals(admin)
            assert logged == seen[403, Kind.NAME_NOT_ALLOWED.value] <= 300
            for _ in range(10):
                answer = client("POST", "/v1/certificates:batch", {"requests": [wrong] * 100})
                answer.refused(Kind.RATE_LIMITED)
                assert int(answer.headers["retry-after"]) >= 1
            assert refusals(admin) == logged
        for token, request in ((single, wrong), (garbled, nonsense)):
            logged = refusals(admin)
            with live.client(token) as client:
                answers = [client("POST", "/v1/certificates", request) for _ in range(200)]
            assert answers[-1].kind == Kind.RATE_LIMITED.value
            assert refusals(admin) - logged < 100
        with live.client(good) as client:
            client("POST", "/v1/certificates", {"csr": csr, "identity": WEB}).ok(201)


# --- authorities ------------------------------------------------------------------------------------------------------------------------


def test_publishing_a_crl_is_refused_in_words(live: Live, admin: Client, tmp_path: Path) -> None:
    """The root's key is here, so its CRLs are made here; and nobody without the scope publishes any."""
    foreign = offline.root_create(tmp_path / "root", trust_domain=DOMAIN, passphrase=PASSPHRASE, now=system_clock())
    pem = foreign.crl.read_text()
    admin("PUT", "/v1/authorities/root/crl", {"pem": pem}).refused(Kind.CONFLICT, "made here")
    admin("PUT", "/v1/authorities/none/crl", {"pem": pem}).refused(Kind.UNKNOWN_AUTHORITY)
    admin("PUT", "/v1/authorities/root/crl", {}).refused(Kind.BAD_REQUEST)
    admin("PUT", "/v1/authorities/root/crl", {"pem": 1}).refused(Kind.BAD_REQUEST)
    with live.client(live.token("authorities:read")) as reader, live.client() as nobody:
        reader("PUT", "/v1/authorities/root/crl", {"pem": pem}).refused(Kind.NOT_ALLOWED)
        nobody("PUT", "/v1/authorities/root/crl", {"pem": pem}).refused(Kind.NOT_AUTHENTICATED)


def test_the_crl_of_an_offline_root(tmp_path: Path) -> None:
    """Published once; the same again is no event; garbage, an older one and one of another root are refused, and change nothing."""
    home = tmp_path / "vault"
    root = offline.root_create(home, trust_domain=DOMAIN, passphrase=PASSPHRASE, now=system_clock())
    foreign = offline.root_create(tmp_path / "foreign", trust_domain=DOMAIN, passphrase=PASSPHRASE, now=system_clock())
    key, csr, crt = issuing_request(tmp_path)
    offline.sign_issuing(root, csr, crt, passphrase=PASSPHRASE, now=system_clock())
    assert init(tmp_path / "data", "--offline-root").returncode == 0
    older = root.crl.read_text()
    asyncio.run(import_issuing(Settings(data=tmp_path / "data"), crt, key, name="issuing", root_file=root.certificate))
    offline.root_crl(root, passphrase=PASSPHRASE, now=system_clock())
    newer = root.crl.read_text()
    with Server(tmp_path / "data", verb="serve") as server:
        live = Live(tmp_path, server.ready())
        with live.client(live.admin_token) as admin, live.plain() as plain:
            before = plain("GET", "/crl/root/0.crl").body
            for text in (foreign.crl.read_text(), "nonsense", crt.read_text(), newer.replace("A", "B", 40), newer[: len(newer) // 2], ""):
                admin("PUT", "/v1/authorities/root/crl", {"pem": text}).refused(Kind.BAD_CERTIFICATE, status=400)
            assert plain("GET", "/crl/root/0.crl").body == before
            entry = admin("PUT", "/v1/authorities/root/crl", {"pem": newer}).ok()["log_entry"]
            assert admin.get(f"/v1/log/entries/{entry}")["entry"]["type"] == "crl.imported"
            assert admin("PUT", "/v1/authorities/root/crl", {"pem": newer}).ok()["log_entry"] is None
            admin("PUT", "/v1/authorities/root/crl", {"pem": older}).refused(Kind.BAD_CERTIFICATE, "is not above", status=400)
            published = x509.load_pem_x509_crl(newer.encode()).public_bytes(Encoding.DER)
            assert plain("GET", "/crl/root/0.crl").body == published
            assert newer.strip() in admin("GET", f"/v1/crls/{DOMAIN}.pem").text
            admin("PUT", "/v1/authorities/issuing/crl", {"pem": newer}).refused(Kind.CONFLICT)
        assert server.stop() == 0
        live.check_written()


def issuing_request(directory: Path) -> tuple[Path, Path, Path]:
    """Make the encrypted key of an issuing authority and its request; return the paths of key, request and certificate to be."""
    (directory / "passphrase").write_bytes(PASSPHRASE)
    (directory / "passphrase").chmod(0o600)
    key, csr = directory / "issuing.key", directory / "issuing.csr"
    write_key_file(key, keys.generate("p256"), PASSPHRASE)
    csr.write_bytes(offline.request_pem(load_key_file(key, PASSPHRASE), DOMAIN))
    return key, csr, directory / "issuing.crt"


def test_retiring(tmp_path: Path) -> None:
    """Afterwards nothing is signed any more, and what was signed can still be revoked."""
    with serving(tmp_path) as live, live.client(live.admin_token) as admin:
        path = "/v1/authorities/issuing:retire"
        with live.client(live.token("authorities:read")) as reader, live.client() as nobody:
            reader("POST", path).refused(Kind.NOT_ALLOWED)
            nobody("POST", path).refused(Kind.NOT_AUTHENTICATED)
        admin("POST", "/v1/authorities/none:retire").refused(Kind.UNKNOWN_AUTHORITY)
        admin("POST", "/v1/authorities/root:retire").refused(Kind.CONFLICT)
        holder, token = live.holder(WEB), live.issuing_token(WEB)
        logged = admin.get(f"/v1/log/entries/{admin('POST', path).ok()['log_entry']}")["entry"]
        assert (logged["type"], logged["what"]["authority"]) == ("authority.retired", "issuing")
        assert admin.get("/v1/authorities/issuing")["state"] == "retired"
        admin("POST", path).refused(Kind.CONFLICT)
        admin("POST", "/v1/authorities/root:retire").refused(Kind.CONFLICT)
        csr = new_request("p256", identity=None)[1]
        with live.client(token) as client, live.client(None, holder) as bearer:
            client("POST", "/v1/certificates", {"csr": csr, "identity": WEB}).refused(Kind.UNKNOWN_AUTHORITY)
            bearer("POST", f"/v1/certificates/{holder.sha256}:renew", {"csr": csr}).refused(Kind.UNKNOWN_AUTHORITY)
        admin("POST", f"/v1/certificates/{holder.sha256}:revoke", {"reason": "superseded"}).ok()
        eventually(lambda: is_revoked(live, holder), what="its CRLs go on")
        assert "BEGIN CERTIFICATE" in admin("GET", f"/v1/bundles/{DOMAIN}.pem").text


def is_revoked(live: Live, holder: Holder) -> bool:
    """Look into the CRL that the certificate names."""
    leaf = x509.load_pem_x509_certificate(holder.issued["certificate"].encode())
    [point] = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    with live.plain() as plain:
        crl = x509.load_der_x509_crl(plain("GET", point.full_name[0].value.removeprefix(live.facts["http"])).body)
    return crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
