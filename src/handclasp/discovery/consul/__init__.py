"""A Consul service mesh: the roots and the configuration of its authority, and what its proxies hold.

    settings   where, as whom, and what
    server     what a server or an agent says, in a handful of requests
    proxies    what Envoys hold, from their admin ports
    kind       the source ``consul``

Consul's agents have an address that gives a service its certificate together with its private key, and makes one where there is none. It is
never asked: certificates of services are read where they are used, from the admin ports of their Envoy proxies, which leave keys out.
"""
