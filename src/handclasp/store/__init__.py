"""Tables, migrations and the ledger: everything that touches a database.

Rows and transactions only. Nothing here knows what a grant or a profile means; nothing above opens a connection of its own.
"""
