"""A 3D view of a model in an HTML page that needs no other file and no network."""
