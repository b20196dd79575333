"""A ``kubernetes.io/tls`` Secret, written by server-side apply, and only ever the agent's own.

The Secret says whose it is: a label and an annotation name the agent that made it. One that exists without them is somebody else's, and is
never touched, taken over or deleted. What was delivered is read back, because what counts is what a pod would get.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import ssl
from dataclasses import dataclass, field
from typing import Any

from handclasp.agent.content import Content, join_pem
from handclasp.agent.kubernetes_api import Cluster, KubernetesApi, metadata, version_of
from handclasp.agent.state import slug
from handclasp.agent.targets.base import Around, Drift
from handclasp.agent.targets.files import digest_of
from handclasp.client.material import Material
from handclasp.errors import HandclaspError, Kind
from handclasp.faults import declare, fault

declare("kubernetes.applied")

LABEL = "handclasp/agent"
"""Label (a digest, labels are short) and annotation (the SPIFFE ID) that say which agent a Secret belongs to."""
_MAX_DATA = 1_000_000  # Kubernetes refuses Secrets of more than 1 MiB
_log = logging.getLogger("handclasp.agent")


@dataclass(frozen=True, slots=True)
class KubernetesSecret:
    """One Secret. ``labels`` and ``annotations`` are put on it besides our own; ``force`` takes fields from other managers."""

    namespace: str
    secret: str
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    cluster: Cluster = field(default_factory=Cluster)
    crl: bool = False
    force: bool = False

    @property
    def kind(self) -> str:
        """Its word in the configuration."""
        return "kubernetes_secret"

    @property
    def name(self) -> str:
        """Unique: no two targets write one Secret."""
        at = f"@{self.cluster.url}" if self.cluster.url else ""
        return f"{self.kind}:{self.namespace}/{self.secret}{at}"

    def digest(self, content: Content, /) -> str:
        """Digest of what this place is to hold."""
        return digest_of(content, self.crl, (self.name, self.labels, self.annotations))

    def deliver(self, content: Content, confirmed: str, around: Around, /) -> str:  # noqa: ARG002  (what is there says it all)
        """Apply the Secret unless it is as it should be, read it back, and return the name of the state that it was found in."""
        Material(content.credential, content.bundle).check()
        wanted = self.render(content, around)
        api = KubernetesApi(self.cluster, timeout=around.timeout)
        found = api.secret(self.namespace, self.secret)
        if found is not None:
            self._check_owner(found, around)
            if _holds(found, wanted):
                return version_of(found)
        self._apply(api, found, wanted)
        fault("kubernetes.applied")
        found = api.secret(self.namespace, self.secret)
        if found is None or not _holds(found, wanted) or served_leaf(found) != content.sha256:
            raise HandclaspError(Kind.DELIVERY_FAILED, f"the Secret {self._where} was applied and does not hold the new certificate")
        return version_of(found)

    def drift(self, confirmed: str, around: Around, /) -> Drift | None:
        """Say how the Secret is no longer as it was delivered. Reads metadata only, so no key goes over the wire."""
        version = KubernetesApi(self.cluster, timeout=around.timeout).version(self.namespace, self.secret)
        if not version:
            return Drift(f"the Secret {self._where} was deleted")
        return None if version == confirmed else Drift(f"the Secret {self._where} was changed by somebody else")

    def render(self, content: Content, around: Around) -> dict[str, Any]:
        """Return the object to apply: leaf and intermediates in ``tls.crt``, as ingress controllers and the kubelet expect it."""
        data = {"tls.crt": join_pem(content.certificate, content.chain), "tls.key": content.key, "ca.crt": content.bundle}
        if self.crl:
            data["ca.crl"] = content.crl
        if sum(map(len, data.values())) > _MAX_DATA:
            raise HandclaspError(Kind.DELIVERY_FAILED, f"the Secret {self._where} would be larger than Kubernetes accepts; leave crl out")
        ours = {LABEL: slug(around.agent), "app.kubernetes.io/managed-by": "handclasp"}
        notes = {LABEL: around.agent, "handclasp/identity": around.identity, "handclasp/sha256": content.sha256}
        # By this it is seen that there are fields of ours which are not wanted any more.
        notes["handclasp/content"] = self.digest(content)
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "namespace": self.namespace,
                "name": self.secret,
                "labels": dict(self.labels) | ours,
                "annotations": dict(self.annotations) | notes,
            },
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(value).decode("ascii") for name, value in data.items()},
        }

    def _apply(self, api: KubernetesApi, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
        if found is not None:
            _log.info("%s: applied again", self.name)
            # Only on the object that was looked at: made anew by somebody else meanwhile, it would have another uid.
            wanted = wanted | {"metadata": wanted["metadata"] | {"uid": metadata(found).get("uid", "")}}
        try:
            api.apply(self.namespace, self.secret, wanted, force=self.force)
        except HandclaspError as error:
            raise HandclaspError(error.kind, f"the Secret {self._where}: {error.detail}") from error

    def _check_owner(self, found: dict[str, Any], around: Around) -> None:
        labels, notes = (_mapping(metadata(found).get(part)) for part in ("labels", "annotations"))
        if labels.get(LABEL) == slug(around.agent) and notes.get(LABEL) == around.agent:
            return
        owner = str(notes.get(LABEL) or "")
        whose = f"belongs to the agent {owner[:200]}" if owner else "exists and was not made by an agent"
        label, note = f"{LABEL}={slug(around.agent)}", f"{LABEL}={around.agent}"
        raise HandclaspError(
            Kind.DELIVERY_FAILED,
            f"the Secret {self._where} {whose}; nothing was changed. Choose another name, or delete it, or hand it over: "
            f"kubectl -n {self.namespace} label --overwrite secret {self.secret} {label} && "
            f"kubectl -n {self.namespace} annotate --overwrite secret {self.secret} {note}",
        )

    @property
    def _where(self) -> str:
        return f"{self.namespace}/{self.secret}"


def _holds(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether everything of ours is in an object; what others added to it is theirs."""
    pairs = [(_mapping(metadata(found).get(part)), wanted["metadata"][part]) for part in ("labels", "annotations")]
    pairs.append((_mapping(found.get("data")), wanted["data"]))
    return found.get("type") == wanted["type"] and all(there.get(name) == value for there, ours in pairs for name, value in ours.items())


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def served_leaf(found: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of the first certificate in a Secret; empty when there is none."""
    try:
        text = base64.b64decode(_mapping(found.get("data")).get("tls.crt", ""), validate=True).decode("ascii")
        first = text[: text.index("-----END CERTIFICATE-----") + 25]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    except (ValueError, TypeError, binascii.Error):
        return ""
