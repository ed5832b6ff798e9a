"""The order in which rows are sent: the ones whose answers are expected to be the longest first.

The last rows decide when a run ends. With the long answers begun early, what is left for the end is short, and no GPU
idles behind a straggler.
"""

import heapq
from collections.abc import Iterable, Iterator

from clients.batch.expectations import Expectations
from clients.records import ChatRequest

#: Rows, and bytes of their requests, among which the longest is chosen: many where an earlier run tells their lengths.
#: A run of more rows than that keeps the short ones among them for its end, which is what counts.
AHEAD_ROWS, AHEAD_BYTES = 2048, 2 << 20
FAR_AHEAD_ROWS, FAR_AHEAD_BYTES = 50_000, 32 << 20

#: Rows that are read for each one that is sent, so that the first request does not wait for the reading of many.
_READ_AT_A_TIME = 8


def longest_first(requests: Iterable[ChatRequest | None], lengths: Expectations) -> Iterator[ChatRequest | None]:
    """Bring requests into the order of their expected lengths, as far as a bounded number of them shows.

    Requests that are expected to take equally long, or about which nothing is known, keep their order.

    Args:
        requests: As in Backlog.
        lengths: Asked once for each request, as it is read.

    Yields:
        The same requests, each once; None where `requests` had None.
    """
    source = iter(requests)
    rows, most = (FAR_AHEAD_ROWS, FAR_AHEAD_BYTES) if lengths.has_history else (AHEAD_ROWS, AHEAD_BYTES)
    heap: list[tuple[float, int, ChatRequest]] = []
    held = number = 0
    exhausted = False
    while True:
        for _ in range(_READ_AT_A_TIME):
            if exhausted or len(heap) >= rows or held >= most:
                break
            try:
                request = next(source)
            except StopIteration:
                exhausted = True
                break
            if request is None:
                yield None
                continue
            heapq.heappush(heap, (-lengths.tokens(request), number, request))
            number, held = number + 1, held + len(request.payload)
        if not heap:
            if exhausted:
                return
            continue
        _, _, request = heapq.heappop(heap)
        held -= len(request.payload)
        yield request
