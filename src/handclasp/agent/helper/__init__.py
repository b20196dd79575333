"""The privileged helper: a small process of root's that delivers where an agent without privileges may not.

    messages   what goes over the socket: an operation, the name of a target, a content; nothing else has a place in it
    server     reads the same configuration, and does what that says for targets marked ``helper: true``
    client     the agent's side: the same steps, errors and way back as a delivery of its own
    trust      whether root may believe a file: nobody else can have written it

The agent cannot make it do anything that the configuration does not say: it takes no path, no command, no owner, no mode from the socket.
Whoever has taken over the agent can have it deliver other credentials to the same services, and that is all.
"""
