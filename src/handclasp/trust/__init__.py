"""Trust bundles: what this installation publishes for its own trust domains, and what it has of others (federation).

Bundles of different trust domains are never merged: each stands for its own names and for no others (SPIFFE Federation section 3). This
room fetches nothing itself; how is handed in.
"""
