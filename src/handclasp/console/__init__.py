"""The console: server-rendered pages for people who look rather than read.

A page is a few calls of the API, made as the person who is signed in, and a template. Nothing is decided here that the API does not decide,
and nothing is shown that it would not answer: what the console can do, a command can.
"""
