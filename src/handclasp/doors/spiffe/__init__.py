"""SPIFFE: the bundle endpoint of our trust domains, and the bundles of others (SPIFFE Federation)."""
