"""Reading clusters: Secrets, ConfigMaps, trust bundles and what was signed, through the API; no private key becomes a value.

``access`` says which API and how to get in, ``api`` speaks to it, ``lanes`` lists and watches one resource each, the other modules turn
objects into what was observed. Nothing here writes to a cluster.
"""
