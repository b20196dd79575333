"""Two hundred simulated agents against one server while everything is replaced: nothing is missed, nothing unanswered."""

from __future__ import annotations

from pathlib import Path

from bench import fleet

from handclasp import wire
from support.servers import Server
from support.waiting import eventually

AGENTS = 200


def test_every_agent_answers_a_rotation(tmp_path: Path) -> None:
    names = {"agent": [f"spiffe://{fleet.DOMAIN}/agent/*", f"spiffe://{fleet.DOMAIN}/fleet/*"]}
    with Server(tmp_path / "data", "--trust-domain", fleet.DOMAIN) as server:
        server.ready()
        token = server.token(name="fleet", agent=True, allow=names["agent"], profiles=["agent", "workload"])
        host, port = server.url.removeprefix("https://").split(":")
        plan = fleet.plan_for(host, int(port), server.ca, token, AGENTS, 2.0, "10m", 120)
        admin_token = (server.data / "admin.token").read_text().strip()
        with fleet.simulated(plan) as simulation, server.client() as admin:
            fleet.wait_for(simulation, "steady")
            rotation, _ = fleet.rotate(server.url, server.ca, admin_token, "all", 12.0)

            def done() -> bool:
                found = admin.call("GET", f"/v1/rotations/{rotation}", response=wire.Rotation)
                assert (found.total, found.gone) == (2 * AGENTS, 0)
                return found.state == "done" and found.replaced == 2 * AGENTS

            eventually(done, 120, "everything is replaced")
            seen = fleet.finish(simulation)
            agents = admin.call("GET", "/v1/agents", params={"limit": 1000}, response=wire.AgentList)
        assert (seen["started"], seen["failed"]) == (AGENTS, 0), seen["first_failure"]
        assert seen["renewed"] == 2 * AGENTS
        assert len(agents.items) == AGENTS
        assert not [agent.identity for agent in agents.items if agent.missed]
        assert server.stop() == 0, server.errors()
