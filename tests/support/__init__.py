"""Helpers that tests of several rooms share: external programs, a temporary PostgreSQL."""
