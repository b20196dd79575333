"""Kubernetes service-account tokens as evidence: an agent that runs in a cluster, on each of its nodes or beside a service."""

from __future__ import annotations

from handclasp.access.enrolment import EnrolmentRule, KubernetesTakes
from handclasp.access.evidence.proven import Proven, facts_of, refused
from handclasp.access.principals import KubernetesPrincipal


def prove(rule: EnrolmentRule, principal: KubernetesPrincipal) -> Proven:
    """Return what a verified token proves to one rule. Raises ``not_authenticated``.

    The subject is the service account on its node: a pod that was replaced there goes on as the same agent.
    """
    assert isinstance(rule.takes, KubernetesTakes)
    if principal.via is not None or principal.cluster != rule.takes.cluster:
        raise refused("its cluster is not the rule's")
    facts = facts_of(
        (
            ("cluster", principal.cluster),
            ("namespace", principal.namespace),
            ("service_account", principal.service_account),
            ("node", principal.node_name),
            ("node_uid", principal.node_uid),
            ("pod", principal.pod_name),
            ("pod_uid", principal.pod_uid),
        )
    )
    subject = f"{principal.cluster}/{principal.namespace}/{principal.service_account}"
    # Where the token does not say the node, the account is all there is.
    where = f"@{principal.node_name}" if principal.node_name else ""
    return Proven(subject + where, facts, principal.expires_at)
