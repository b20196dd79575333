"""Measurements held against the budgets of the design: ``make bench`` runs all of them, ``make bench ONLY=issue`` a part.

Every figure stands beside a limit that was measured in the same run, so that machines can be compared by the ratio. Load is made by another
process on another core; the server's CPU time is the operating system's own count over the requests served.
"""
