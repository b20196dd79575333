"""Messages of the gRPC protocols that we speak: ``*.proto`` is written by hand, ``*_pb2.py`` and ``.pyi`` come from it by ``make protos``."""
