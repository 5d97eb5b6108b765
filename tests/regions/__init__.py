"""Nodes in several regions over one database: real processes, and a wide area between them that can be cut."""
