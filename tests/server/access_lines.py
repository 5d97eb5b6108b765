"""Reading server access logs, by the regular expression that AWS gives for querying them and by nothing of ours.

Source: S3 User Guide, "Using Amazon Athena to query access logs", and the last field of "server access log format".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

_LINE = re.compile(
    r'([^ ]*) ([^ ]*) \[(.*?)\] ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ("[^"]*"|-) (-|[0-9]*) ([^ ]*) ([^ ]*) '
    r'([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ("[^"]*"|-) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) '
    r"([^ ]*) ([^ ]*)"
)


@dataclass(frozen=True)
class Line:
    """The fields in their order, as text."""

    owner: str
    bucket: str
    time: str
    remote_ip: str
    requester: str
    request_id: str
    operation: str
    key: str
    uri: str
    status: str
    error: str
    bytes_sent: str
    object_size: str
    total_ms: str
    turn_around_ms: str
    referrer: str
    user_agent: str
    version_id: str
    host_id: str
    signature_version: str
    cipher_suite: str
    authentication: str
    host: str
    tls: str
    access_point: str
    acl_required: str
    source_region: str


def parse(line: str) -> Line:
    """Raises AssertionError: it is no line of a server access log."""
    match = _LINE.fullmatch(line)
    assert match is not None, line
    assert len(match.groups()) == len(fields(Line))
    return Line(*match.groups())
