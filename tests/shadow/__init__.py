"""Buckets that look through to another store."""
