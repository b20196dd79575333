"""The tamper-evident log: entries, Merkle tree, tiles, signed checkpoints, witnesses, proofs, and the verifier.

Formats are those of C2SP (tlog-tiles, signed-note, tlog-checkpoint, tlog-cosignature, tlog-witness, tlog-proof), so that others' tools read
them. ``entries``, ``merkle``, ``notes``, ``checkpoint`` and ``proofs`` are pure; files are touched by the others, and written by ``tiles``
alone. Nothing here opens a database or a socket, knows what a certificate is, or signs a tree that it has not made durable.
"""
