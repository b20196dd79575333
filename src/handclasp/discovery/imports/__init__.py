"""Certificates that people hand in: bundles, tables, and what other inventories export. Files are read where they are, by the command line.

read        pure: a file's bytes -> certificates with where they came from; refuses private keys with a word
record      what the server takes of that
kind        the source that they belong to
"""
