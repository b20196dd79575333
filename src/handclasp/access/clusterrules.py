"""The ``clusters:`` section of a policy: whose service accounts are taken, and how their tokens are checked.

.. code-block:: yaml

    clusters:
      - name: Kubernetes                      # the cluster id that its workloads send
        issuer: https://kubernetes.default.svc.cluster.local
        audiences: [istio-ca]
        jwks: '{"keys": [...]}'               # or jwks_url; or neither: of the API server below, or found through the issuer
        review:                               # the cluster's API server
          url: https://10.0.0.1:6443
          ca: |
            -----BEGIN CERTIFICATE-----
            …
          token_file: cluster-a.token         # in the directory that the setting cluster_tokens names
          mode: require                       # or off: it is asked for keys and for the pods of a node only
          rate: 50                            # questions a second at most
        node_accounts: [istio-system/ztunnel]
        trust_domain: example.org             # of its workloads; default: the installation's first
        profile: mesh
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from handclasp.access.grants import KubernetesRule
from handclasp.access.patterns import ClaimPattern
from handclasp.pki import chains
from handclasp.pki.names import check_trust_domain
from handclasp.pki.yamlshape import Part, each_once

AUDIENCES = ("istio-ca",)
"""The audience that meshes ask for where nothing else is set."""
PROFILE = "mesh"
RATE = 50.0
PLACEHOLDERS = frozenset({"namespace", "service_account", "cluster"})
"""What a service account can fill in the patterns of a grant."""

# RFC 1123, as Kubernetes checks namespaces and the names of service accounts, pods and nodes.
KUBE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MODES = ("require", "off")


@dataclass(frozen=True, slots=True)
class Review:
    """A cluster's API server, and how it is asked."""

    url: str
    """``https://HOST[:PORT]``, without a slash at the end."""
    ca: str
    """PEM certificates that its own must lead to."""
    token_file: str
    """Name of the file, in the server's own directory for these, that holds the bearer token."""
    require: bool
    """Whether each token is also reviewed there."""
    rate: float = RATE
    """Requests a second that it is asked at most."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One Kubernetes cluster whose service accounts may be somebody here."""

    name: str
    issuer: str
    audiences: tuple[str, ...] = AUDIENCES
    jwks: str | None = None
    jwks_url: str | None = None
    review: Review | None = None
    node_accounts: frozenset[tuple[str, str]] = frozenset()
    """(namespace, service account) of those who may ask for the pods of their own node."""
    trust_domain: str | None = None
    profile: str = PROFILE


def parse_clusters(top: Part) -> tuple[Cluster, ...]:
    """Return the clusters of a policy; what is wrong is noted with its line."""
    parts = top.parts("clusters")
    clusters = [_cluster(part) for part in parts]
    seen: dict[object, str] = {}
    each_once(parts, "name")
    for part, cluster in zip(parts, clusters, strict=True):
        keys = (cluster.issuer, cluster.jwks, cluster.jwks_url, None if cluster.jwks or cluster.jwks_url else _url_of(cluster.review))
        if keys in seen:
            part.problem("issuer", f"issuer and keys are those of {seen[keys]!r}: a token of the one would be one of the other")
        seen[keys] = cluster.name
    return tuple(clusters)


def _url_of(review: Review | None) -> str:
    return review.url if review is not None else ""


def _cluster(part: Part) -> Cluster:
    part.keys("name", "issuer", "audiences", "jwks", "jwks_url", "review", "node_accounts", "trust_domain", "profile")
    if "jwks" in part.value and "jwks_url" in part.value:
        part.problem("jwks", "give jwks or jwks_url, and not both")
    issuer = _url(part, "issuer")
    review = _review(part.part("review")) if "review" in part.value else None
    accounts = frozenset(_account(part, index, text) for index, text in enumerate(part.texts("node_accounts")))
    if accounts and review is None:
        part.problem("node_accounts", "node_accounts need review: only the API server knows which pods a node runs")
    trust_domain = part.text("trust_domain") if "trust_domain" in part.value else None
    if trust_domain:
        part.attempt("trust_domain", lambda: check_trust_domain(trust_domain))
    return Cluster(
        part.name(),
        issuer,
        tuple(part.texts("audiences")) or AUDIENCES,
        _jwks(part) if "jwks" in part.value else None,
        _url(part, "jwks_url") if "jwks_url" in part.value else None,
        review,
        accounts,
        trust_domain or None,
        part.text("profile") if "profile" in part.value else PROFILE,
    )


def _url(part: Part, key: str) -> str:
    url = part.text(key)
    if url and not url.startswith(("https://", "http://")):
        part.problem(key, f"{key} must be an https:// URL")
    return url


def _jwks(part: Part) -> str:
    from handclasp.access.jwks import read_keys  # a policy without it must not load a JOSE library

    value = part.value["jwks"]
    if not isinstance(value, str) or not 0 < len(value) <= 65_536:
        part.problem("jwks", "jwks is a key set as JSON text")
        return ""
    try:
        read_keys(value.encode())
    except Exception as error:  # of JSON, of text that has no UTF-8, of keys: it is one mistake at one line
        part.problem("jwks", f"jwks is not a key set with a key that can be used: {error}".partition("\n")[0])
    return value


def _review(part: Part) -> Review:
    part.keys("url", "ca", "token_file", "mode", "rate")
    url = part.text("url")
    if url and (not url.startswith("https://") or url.count("/") > 2 + url.endswith("/") or any(sign in url for sign in "?#@ ")):
        part.problem("url", "url is https://HOST:PORT of the API server and nothing after it: a token is sent there")
    given = part.value.get("ca")
    ca = given if isinstance(given, str) and len(given) <= 65_536 else ""
    if part.attempt("ca", lambda: chains.split_pem(ca)) is None:
        part.problem("ca", "ca is the PEM certificate of the authority behind the API server's own")
    token_file = part.text("token_file")
    if token_file and _FILE_NAME.fullmatch(token_file) is None:
        part.problem("token_file", "token_file is the name of a file in the directory of the setting cluster_tokens, without a path")
    mode = part.value.get("mode", "require")
    if mode not in _MODES:
        part.problem("mode", f"mode is {' or '.join(_MODES)}")
    rate = part.value.get("rate", RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 10_000:
        part.problem("rate", "rate is the number of requests a second, above 0")
        rate = RATE
    return Review(url.removesuffix("/"), ca, token_file, mode == "require", float(rate))


def _account(part: Part, index: int, text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not slash or not KUBE_NAME.fullmatch(namespace) or not KUBE_NAME.fullmatch(name):
        part.problem(("node_accounts", index), "write it as NAMESPACE/SERVICE-ACCOUNT")
    return namespace, name


def cluster_meaning(cluster: Cluster) -> dict[str, Any]:
    """Return what a cluster's entry means, for a comparison that people read: long texts by their hash."""
    review = cluster.review
    return {
        "issuer": cluster.issuer,
        "audiences": sorted(cluster.audiences),
        "jwks": _digest(cluster.jwks),
        "jwks_url": cluster.jwks_url,
        "review": None
        if review is None
        else {
            "url": review.url,
            "ca": _digest(review.ca),
            "token_file": review.token_file,
            "mode": _MODES[not review.require],
            "rate": review.rate,
        },
        "node_accounts": sorted("/".join(account) for account in cluster.node_accounts),
        "trust_domain": cluster.trust_domain,
        "profile": cluster.profile,
    }


def _digest(text: str | None) -> str | None:
    return None if text is None else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def kubernetes_rule(part: Part, clusters: frozenset[str]) -> KubernetesRule | None:
    """Return the rule ``- kubernetes: CLUSTER`` of a grant, or None where it is wrong."""
    cluster = part.text("kubernetes")
    if cluster not in clusters:
        part.problem("kubernetes", f"{cluster!r} is not under clusters: in this policy")
        return None
    return KubernetesRule(cluster, _names(part, "namespace"), _names(part, "service_account"))


def _names(part: Part, key: str) -> ClaimPattern | None:
    if key not in part.value:
        return None
    value = part.value[key]
    if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
        part.problem(key, f"{key} is a text, * or a list of texts")
        return None
    return part.attempt(key, lambda: ClaimPattern(value))
