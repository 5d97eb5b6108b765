"""Expect: 100-continue, byte by byte: what stands before the final answer."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest


def exchange(store: Any, request: bytes) -> bytes:
    """What a node sends in answer to some bytes, until it closes."""
    connection = socket.create_connection(("127.0.0.1", store.port), timeout=30)
    if store.ca_bundle:
        context = ssl.create_default_context(cafile=store.ca_bundle)
        connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
    with connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


@pytest.mark.parametrize("method", [b"PUT", b"POST"])
def test_an_empty_body_is_continued_before_the_answer(store: Any, method: bytes) -> None:
    # botocore before 1.44 relies on it: see `Exchange.start`.
    request = b"%b /bucket/key HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n" % method
    assert exchange(store, request + b"Expect: 100-continue\r\n\r\n").startswith(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 4"
    )
    assert exchange(store, request + b"\r\n").startswith(b"HTTP/1.1 4")


def test_continued_requests_in_a_pipeline_are_answered_in_their_order(store: Any) -> None:
    request = b"PUT /bucket/key HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n"
    answer = exchange(store, request + b"\r\n" + request + b"Connection: close\r\n\r\n")
    lines = [line for line in answer.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [line[line.index(b"HTTP/1.1 ") + 9 :][:3] for line in lines] == [b"100", b"404", b"100", b"404"]


def test_a_body_that_is_refused_unread_is_never_asked_for(store: Any) -> None:
    request = b"PUT /bucket/key HTTP/1.1\r\nHost: a\r\nContent-Length: 5368709120\r\nExpect: 100-continue\r\n\r\n"
    answer = exchange(store, request)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"\r\nconnection: close\r\n" in answer
