"""Reading Istio: what proxies hold and use, which roots each namespace was given, and what mTLS modes are set.

A proxy's ``config_dump`` holds certificates and no private keys; those that Envoy blanks out are not looked at either.
"""
