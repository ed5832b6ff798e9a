"""Bytes of HTTP replies, and errors in the words of vLLM and of a proxy before it."""

import orjson

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
_PROXY_STATUSES = (502, 504)
_KEEP = {True: b"keep-alive", False: b"close"}

JSON, TEXT, HTML = b"application/json", b"text/plain; version=0.0.4; charset=utf-8", b"text/html"


def reply(status: int, body: bytes, *, kind: bytes = JSON, keep: bool = True, more: bytes = b"") -> bytes:
    """Head and body.

    Args:
        status: Of HTTP.
        body: What is said.
        kind: Its content type.
        keep: Whether the connection stays open.
        more: Complete header lines, each with its line end.
    """
    return (
        b"HTTP/1.1 %d %b\r\nserver: uvicorn\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: %b\r\n%b\r\n%b"
        % (
            status,
            _REASONS[status],
            kind,
            len(body),
            _KEEP[keep],
            more,
            body,
        )
    )


def stream_head(*, keep: bool) -> bytes:
    """The head of an event stream."""
    head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    return b"%btransfer-encoding: chunked\r\nconnection: %b\r\n\r\n" % (head, _KEEP[keep])


def chunks(events: list[bytes]) -> bytes:
    """One chunk of a stream an event."""
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


#: What ends a stream.
STREAM_END = b"0\r\n\r\n"


def error(
    status: int, message: str, *, param: str | None = None, retry_after_s: float | None = None, keep: bool = True
) -> bytes:
    """An error; 502 and 504 are a proxy's page, as the server itself never says them.

    Args:
        status: Of HTTP.
        message: What is wrong.
        param: The field of the request that is, if one is.
        retry_after_s: Seconds that Retry-After asks for; None for no such header.
        keep: Whether the connection stays open.
    """
    more = b"" if retry_after_s is None else b"retry-after: %b\r\n" % f"{retry_after_s:g}".encode()
    if status in _PROXY_STATUSES:
        title = b"%d %b" % (status, _REASONS[status])
        page = b"<html><head><title>%b</title></head><body><h1>%b</h1></body></html>" % (title, title)
        return reply(status, page, kind=HTML, keep=keep, more=more)
    details = {"message": message, "type": _TYPES.get(status, "Error"), "param": param, "code": status}
    return reply(status, orjson.dumps({"error": details}), keep=keep, more=more)
