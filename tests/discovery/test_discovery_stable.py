"""What is as it was is told as it was: only then does it cost the inventory no more than a timestamp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from handclasp.discovery.consul.kind import CONSUL
from handclasp.discovery.consul.settings import ConsulSettings
from handclasp.discovery.istio.kind import ISTIO
from handclasp.discovery.kubernetes.kind import KUBERNETES
from handclasp.discovery.spire import SPIRE, SpireSettings
from handclasp.inventory.rows import digest
from handclasp.proto import spire_pb2 as pb
from handclasp.wire.observations import Observed
from support.certfiles import Maker, der, pem
from support.consul import FakeConsul, config_dump
from support.fake_server import FakeAuthority
from support.istio_dumps import envoy, ztunnel
from support.kube_api import fill, kube_api
from support.reading import read
from support.sources import observed, tools
from support.sources import read as read_source
from support.spire import FakeSpire

MAKER, OTHER = Maker("One"), Maker("Other")


def same(first: Sequence[Observed], second: Sequence[Observed]) -> None:
    assert first
    assert {one.key: digest(one) for one in first} == {one.key: digest(one) for one in second}


def test_a_cluster_and_its_mesh(tmp_path: Path) -> None:
    authority = FakeAuthority("Mesh")
    identities = [f"spiffe://cluster.local/ns/prod/sa/s{number}" for number in range(6)]
    with kube_api(tmp_path / "cluster") as api:
        fill(api, 30)
        labels = {"security.istio.io/tlsMode": "istio"}
        api.put("pods", "web", "team-01", labels=labels, spec={"nodeName": "n1"}, status={"phase": "Running"})
        api.put("pods", "ztunnel-1", "istio-system", labels={"app": "ztunnel"}, spec={"nodeName": "n1"}, status={"phase": "Running"})
        api.proxied["istio-system", "ztunnel-1:15000/config_dump"] = ztunnel(authority, identities)[0]
        api.proxied["team-01", "web:15000/config_dump"] = envoy(authority, identities[0])[0]
        for name in ("one", "two"):
            tls = [{"secretName": "app-00001-tls", "hosts": [f"{name}.example.org", "b.example.org"]}]
            api.put("ingresses", name, "team-01", spec={"tls": tls})
        cluster = api.access(rate=1000.0, tls_secrets=["*"], opaque_secrets=["*"], config_maps=["*"])
        mesh = api.access(rate=1000.0, ztunnels=True, sidecars=["*"])
        for kind, settings in ((KUBERNETES, cluster), (ISTIO, mesh)):
            same(read(kind, settings, api.home).observed, read(kind, settings, api.home).observed)


def test_consul() -> None:
    with FakeConsul() as server:
        server.roots = [{"ID": "a", "RootCert": pem(MAKER.root).decode(), "Active": True}]
        server.proxies = {"web": config_dump(pem(MAKER.root).decode(), pem(OTHER.root).decode(), secret=pem(MAKER.root).decode())}
        settings = ConsulSettings(url=server.url, envoys=[f"web={server.url}/proxy/web/config_dump"])
        first, second = (list(observed(read_source(CONSUL, settings, tools())).values()) for _ in range(2))
        same(first, second)


def test_spire(tmp_path: Path) -> None:
    with FakeSpire(tmp_path / "api.sock") as server:
        server.bundle.x509_authorities.add(asn1=der(MAKER.root))
        server.bundle.x509_authorities.add(asn1=der(OTHER.root))
        selectors = [pb.Selector(type="k8s", value=value) for value in ("ns:a", "sa:b")]
        server.entries = [pb.Entry(id="e", spiffe_id=pb.SpiffeId(trust_domain="example.org", path="/x"), selectors=selectors)]
        first = list(observed(read_source(SPIRE, SpireSettings(socket="api.sock"), tools(secrets=tmp_path))).values())
        del server.bundle.x509_authorities[:]
        for one in (OTHER, MAKER):
            server.bundle.x509_authorities.add(asn1=der(one.root))
        second = list(observed(read_source(SPIRE, SpireSettings(socket="api.sock"), tools(secrets=tmp_path))).values())
        same(first, second)
