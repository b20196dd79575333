"""Istio: the CA that sidecars and ztunnel ask, ``istio.v1.auth.IstioCertificateService``.

:mod:`service` is the way of a request, :mod:`shapes` what its texts must look like. The identity is the caller's, always; a certificate
request that asks for anything else is refused.
"""
