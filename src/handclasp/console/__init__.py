"""The console: server-rendered pages for people who look rather than read.

    app, visit        what holds for every page: session, form check, headers; one request, and the API as the person who sent it
    table, nav        which pages there are, and the menu
    pages             one module for each part of the menu; ``templates`` and ``static`` are what they look like
    doors             signing in and out
    render, fields, picture, assets   values, filters, the axis of certificates, and static files

A page is a few calls of the API, made as the person who is signed in, and a template. Nothing is decided here that the API does not decide,
and nothing is shown that it would not answer: what the console can do, a command can.
"""
