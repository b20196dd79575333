"""One file for each thing the API is about. A handler takes a call and returns a wire type; ``api/table.py`` names them all."""
