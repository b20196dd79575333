"""The REST API: one table of routes, from which the application, the OpenAPI document, the reference page and the scope checks are made.

Handlers translate between the wire and the rooms below. They sign nothing and decide nothing; kinds of error become problem documents here
and nowhere deeper.
"""
