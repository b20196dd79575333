"""The agent: obtains certificates for the services of a host, delivers them, renews them and reports; in a process of its own.

    loop      one process, a few threads: who is attended to when         enroll   how an agent comes to its own certificate
    keeper    one identity: does what decide says, and keeps its state    status   check, plan, status, forget: from disk alone
    decide    pure: (what is held, what is wanted, now) -> actions        config   agent.yaml, checked whole
    deliver   generation, flip, validate, reload, look; and back          state    what is on disk, and the lease
    targets   the places of delivery, one module for each kind            helper   root's hands, where the agent may not write
    discover  certificates in this host's files, when the server asks

It may import ``pki``, ``client``, ``wire``, ``log.verify`` and the ground floor, nothing else of the server: it must stay small (45 MB
resident, 0.3 s to start). Nothing here decides outside ``decide``, and no private key leaves the host it was made on.
"""

from __future__ import annotations

from handclasp.agent.enroll import enroll
from handclasp.agent.loop import run
from handclasp.agent.status import check, forget, plan, status

__all__ = ["check", "enroll", "forget", "plan", "run", "status"]
