"""Requests that come in pieces: whole when the last byte is there, and not before."""

from __future__ import annotations

import pytest

from ftkit.serving import log_files
from ftkit.serving.local_arrivals import HEAD_BYTES, Arriving

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\n"
WHOLE = {
    "no body": GET,
    "a length": POST + b"content-length: 2\r\n\r\n{}",
    "no length": POST + b"\r\n",
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;a=b\r\n}\r\n0\r\n\r\n",
    "chunks and a trailer": POST + b"Transfer-Encoding: gzip, Chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\r\n\r\n",
    "a last chunk within a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE)
def test_a_request_is_whole_with_its_last_byte(request_: bytes):
    together = Arriving(1000)
    together.add(request_)
    assert together.stage == "whole"
    arriving = Arriving(1000)
    for i in range(len(request_)):
        assert arriving.stage in ("head", "body"), i
        arriving.add(request_[i : i + 1])
    assert arriving.stage == "whole" and bytes(arriving.buffer) == request_


@pytest.mark.parametrize("size", [b"-5", b"zz", b"0x25", b"2_5", b"", b"x" * 2000])
def test_what_is_broken_is_not_waited_for(size: bytes):
    arriving = Arriving(10_000)
    arriving.add(POST + b"Transfer-Encoding: chunked\r\n\r\n" + size + (b"\r\n" if len(size) < 9 else b""))
    assert arriving.stage == "whole"


def test_what_is_too_long_is_not_waited_for():
    for head in (b"Content-Length: 11\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n12\r\n0123456"):
        arriving = Arriving(10)
        arriving.add(POST + head)
        assert arriving.stage == "body too long"
    arriving = Arriving(10)
    arriving.add(b"GET /" + b"a" * HEAD_BYTES)
    assert arriving.stage == "head too long"


def test_a_client_that_asks_before_it_sends_its_body_is_noticed():
    arriving = Arriving(10)
    arriving.add(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert (arriving.stage, arriving.expects_continue) == ("body", True)


def test_a_log_that_has_become_long_is_cut_and_its_last_part_kept(tmp_path):
    path = tmp_path / "a.log"
    with path.open("ab") as log:
        log.write(b"a" * 101)
        log.flush()
        assert not log_files.rotate(str(path), longest=101)
        assert log_files.rotate(str(path), longest=100)
        log.write(b"b")
    assert path.read_bytes() == b"b"
    assert (tmp_path / "a.log.1").read_bytes() == b"a" * 101
    assert not log_files.rotate(str(tmp_path / "none.log"))
