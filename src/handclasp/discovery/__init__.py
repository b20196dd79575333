"""Reading the places where certificates are: one small module for each kind of source, and the engine that runs them.

A source yields what it sees (:class:`handclasp.wire.observations.Observed`) and what it has listed whole; the engine spreads its parts over
workers, keeps how far each is, and hands everything on. Nothing here writes to the inventory, and no private key is read.
"""
