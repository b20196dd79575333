"""Certificates that servers show in a handshake: addresses and ports, with the names that are asked for.

    targets     what a scope and a list of ports come to: addresses, names, protocols
    messages    pure: the handshake messages that hold certificates and the wish for one
    handshake   one connection: STARTTLS, TLS, and what the server showed before anything went wrong
    endpoint    one endpoint: the handshakes that show everything it has
    pace        how fast
    kind        which endpoints there are, and what is yielded

Nothing is verified, nothing is sent beyond a handshake, and no certificate of ours is shown.
"""
