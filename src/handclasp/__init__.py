"""Handclasp: mutual TLS that runs itself.

Import what you need from the rooms below; see ``docs/architecture.md`` for the floors and who may import whom.
"""

__version__ = "0.1.0"
