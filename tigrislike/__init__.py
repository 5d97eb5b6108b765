"""An S3-compatible, regional-first object store."""

__version__ = "0.1.0"
