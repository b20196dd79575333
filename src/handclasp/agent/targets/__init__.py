"""Where an agent delivers: one module for each kind of place.

    base     what every kind is, and what happens after a delivery (validate, reload, look)
    files    PEM files in generations, delivered by :mod:`handclasp.agent.deliver`        keystore    the same for PKCS#12 and JKS
    exec     a child with its credentials: child keeps it running, process makes it        kubernetes  a Secret of a cluster
    watch    looks, in each poll, at what can change without our doing

A kind parses nothing (``agent.config`` does) and decides nothing (``agent.decide`` does): it knows what it is to hold, and how to put it
there.
"""
