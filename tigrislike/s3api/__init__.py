"""The front door: S3 over HTTP.

The protocol is compiled from botocore's service model (`protocol`); requests are authenticated (`sigv4`) and performed
(`operations`) by an ASGI application (`app`). Nothing below this package knows HTTP.
"""
