"""Istio: the CA that sidecars and ztunnel ask, ``istio.v1.auth.IstioCertificateService``."""
