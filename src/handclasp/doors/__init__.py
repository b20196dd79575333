"""The protocols by which others enter: each parses its own, builds an ``IssuanceRequest`` and calls ``issuance``.

No door signs, and no door decides. A new door is a new folder and one line in ``server/``.
"""
