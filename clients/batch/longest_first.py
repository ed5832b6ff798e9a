"""The order in which rows are sent where the lengths of their answers are known: the longest first.

The last rows decide when a run ends. With the long answers begun early, what is left for the end is short, and no GPU
idles behind a straggler.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator

from clients.records import ChatRequest

#: Rows, and bytes of their requests, among which the longest is chosen. A run of more rows than that keeps the short
#: ones among them for its end, which is what counts.
AHEAD_ROWS, AHEAD_BYTES = 50_000, 48 << 20

#: Rows that are read for each one that is sent, so that the first request does not wait for the reading of many.
_READ_AT_A_TIME = 8


def longest_first(
    requests: Iterable[ChatRequest | None], expected: Callable[[str], int | None]
) -> Iterator[ChatRequest | None]:
    """Bring requests into the order of their expected lengths, as far as a bounded number of them shows.

    A request about which nothing is known counts as one of average length. Requests that are expected to take equally
    long keep their order.

    Args:
        requests: As in Backlog.
        expected: Tokens that a request's answer took earlier, by request_hash; None when it is not known.

    Yields:
        The same requests, each once; None where `requests` had None.
    """
    source = iter(requests)
    heap: list[tuple[float, int, ChatRequest]] = []
    known_tokens = known = held = number = 0
    exhausted = False
    while True:
        for _ in range(_READ_AT_A_TIME):
            if exhausted or len(heap) >= AHEAD_ROWS or held >= AHEAD_BYTES:
                break
            try:
                request = next(source)
            except StopIteration:
                exhausted = True
                break
            if request is None:
                yield None
                continue
            tokens = expected(request.request_hash)
            if tokens is not None:
                known_tokens, known = known_tokens + tokens, known + 1
            length = tokens if tokens is not None else known_tokens / max(1, known)
            heapq.heappush(heap, (-length, number, request))
            number, held = number + 1, held + len(request.payload)
        if not heap:
            if exhausted:
                return
            continue
        _, _, request = heapq.heappop(heap)
        held -= len(request.payload)
        yield request
