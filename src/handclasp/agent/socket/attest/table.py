"""Which attestors there are."""

from __future__ import annotations

from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.socket.attest.base import Attestor
from handclasp.agent.socket.attest.systemd import SystemdAttestor
from handclasp.agent.socket.attest.unix import UnixAttestor


def attestors(settings: SocketSettings) -> list[Attestor]:
    """Return the attestors that the settings ask for; those that nobody uses are not even imported."""
    found: list[Attestor] = [UnixAttestor(settings.hash_limit), SystemdAttestor()]
    if settings.kubelet is not None:
        from handclasp.agent.socket.attest.kubernetes import Kubelet, KubernetesAttestor

        kubelet = settings.kubelet
        found.append(KubernetesAttestor(Kubelet(kubelet.url, kubelet.token_file, kubelet.ca_file, kubelet.server_name)))
    if settings.docker is not None:
        from handclasp.agent.socket.attest.docker import DockerAttestor

        found.append(DockerAttestor(str(settings.docker)))
    return found
