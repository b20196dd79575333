"""One server with a gRPC listener, and three clusters in its policy, for all tests of a test process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.kube import Cluster, api_server
from support.live import serving
from support.meshes import Mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The server and its clusters."""
    with ExitStack() as stack:
        limits = ("--rate-refused", "100000", "--rate-principal", "1000000", "--request-timeout", "5s")
        live = stack.enter_context(serving(tmp_path_factory.mktemp("mesh"), *limits, "--grpc", "127.0.0.1:0"))
        api, strict_api = stack.enter_context(api_server()), stack.enter_context(api_server(Cluster("https://strict.example.org")))
        (live.data / "clusters").mkdir()
        shutil.copy(api.directory / "a.token", live.data / "clusters" / "a.token")
        made = Mesh(live, api.cluster, strict_api.cluster, Cluster(), api, strict_api)
        made.apply()
        yield made
