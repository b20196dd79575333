"""Messages of the gRPC protocols: ``*.proto`` is written by hand, ``*_pb2.py`` and ``.pyi`` come from it by ``make protos``."""
