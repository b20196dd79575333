"""``config_dump`` as ztunnel and Envoy write it, made from the descriptions of their shapes."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from support.fake_server import FakeAuthority, pem

REDACTED = "W3JlZGFjdGVkXQ=="


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def _cert(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "pem": b64(pem(certificate)),
        "serialNumber": str(certificate.serial_number),
        "validFrom": certificate.not_valid_before_utc.isoformat(),
        "expirationTime": certificate.not_valid_after_utc.isoformat(),
    }


def ztunnel(authority: FakeAuthority, identities: list[str], *, pretty: bool = True, padding: int = 100) -> tuple[bytes, dict[str, bytes]]:
    """A ztunnel's whole dump, and the DER of each identity's certificate."""
    key, leaves, entries = ec.generate_private_key(ec.SECP256R1()).public_key(), {}, []
    for identity in identities:
        leaf = authority.issue(key, spiffe=identity)
        leaves[identity] = leaf.public_bytes(Encoding.DER)
        entries.append(
            {
                "identity": identity,
                "state": "Available",
                "certChain": [_cert(leaf), _cert(authority.issuing)],
                "rootCerts": [_cert(authority.root)],
            }
        )
    entries.insert(0, {"identity": "spiffe://cluster.local/ns/new/sa/new", "state": {"Unavailable": "no response"}, "certChain": []})
    workloads = [
        {"uid": f"c//Pod/ns/pod-{index}", "workloadIps": ["10.0.0.1"], "name": 'odd "name" \\ }{', "certificates": [{"not": "one of ours"}]}
        for index in range(padding)
    ]
    document = {
        "config": {"localNode": "node-1", "caRootCert": {"File": "/x"}},
        "certificates": entries,
        "policies": [[[]]],
        "services": [],
        "stagedServices": {},
        "version": {"version": "1"},
        "workloadState": {},
        "workloads": workloads,
    }
    return json.dumps(document, indent=2 if pretty else None).encode(), leaves


def envoy(authority: FakeAuthority, spiffe: str) -> tuple[bytes, bytes]:
    """A sidecar's whole dump, with more in it than secrets, and the DER of its certificate."""
    chain, _ = authority.credential(spiffe=spiffe)
    leaf = x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)
    kind = "type.googleapis.com/envoy"
    secrets: list[dict[str, Any]] = [
        {
            "name": "default",
            "version_info": "1",
            "last_updated": "2026-01-01T00:00:00Z",
            "secret": {
                "@type": f"{kind}.extensions.transport_sockets.tls.v3.Secret",
                "name": "default",
                "tls_certificate": {"certificate_chain": {"inline_bytes": b64(chain)}, "private_key": {"inline_bytes": REDACTED}},
            },
        },
        {
            "name": "ROOTCA",
            "secret": {"name": "ROOTCA", "validation_context": {"trusted_ca": {"inline_bytes": b64(pem(authority.root))}}},
        },
        {
            "name": "federated",
            "secret": {
                "validation_context": {
                    "custom_validator_config": {
                        "name": "envoy.tls.cert_validator.spiffe",
                        "typed_config": {
                            "trust_domains": [{"name": "other", "trust_bundle": {"inline_bytes": b64(pem(authority.issuing))}}]
                        },
                    }
                }
            },
        },
    ]
    document = {
        "configs": [
            {"@type": f"{kind}.admin.v3.BootstrapConfigDump", "bootstrap": {"static_resources": {"secrets": [{"name": "no"}]}}},
            {"@type": f"{kind}.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [{"cluster": {"name": "x" * 2000}}] * 50},
            {
                "@type": f"{kind}.admin.v3.SecretsConfigDump",
                "static_secrets": secrets[2:],
                "dynamic_active_secrets": secrets[:2],
                "dynamic_warming_secrets": [{"name": "kubernetes://late"}],
            },
        ]
    }
    return json.dumps(document, indent=1).encode(), leaf
