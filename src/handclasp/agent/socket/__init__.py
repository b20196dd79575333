"""The agent's socket: the SPIFFE Workload API and Envoy's SDS, for whoever the policy says the caller is.

    server      listens, knows each peer, bounds what a peer can use        workload   the Workload API's calls
    proc        a process, held so that its id cannot be reused             sds        Envoy's secret discovery
    attest/     what can be said of a process: one small file per attestor  tokens     JWT-SVIDs, cached
    match       pure: which workloads a process is, and why not             entitled   the policy's workloads, kept on disk
    issued      the certificates of workloads, kept in the agent's roster   messages   PEM to the bytes of the protocols

It is imported only where ``socket:`` is configured. Nothing here decides who may have what: the server's policy does, twice: it names the
workloads that this agent may serve, and it is asked for each certificate. A process is never believed, only looked at.
"""
