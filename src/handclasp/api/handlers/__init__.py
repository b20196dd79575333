"""One file for each thing the API is about. A handler takes a call and returns a wire type; the table in ``api/table.py`` names them all."""
