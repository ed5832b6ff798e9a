"""How long an answer will likely be: as long as last time, else as prompts of that size have it, within max_tokens."""

import math
import re
from collections.abc import Callable

from clients.records import ChatRequest

#: The token limit in a payload. In the text of a message every quote has a backslash before it, so none is found there.
_LIMIT = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')

#: Answers that are needed before prompt lengths are believed to say anything, and what their correlation must be.
_ENOUGH, _CORRELATED = 200, 0.3


class Expectations:
    """Expects lengths, and learns from the answers that come.

    Args:
        known: Tokens that a request's answer took in an earlier run, by request_hash; None when that is not known.
    """

    def __init__(self, known: Callable[[str], int | None] | None = None) -> None:
        self._known = known
        self._known_tokens = self._known_rows = 0
        self._count = 0
        self._x = self._y = self._xx = self._yy = self._xy = 0.0

    @property
    def has_history(self) -> bool:
        """Whether lengths of an earlier run are at hand, so that looking far ahead is worth its memory."""
        return self._known is not None

    def tokens(self, request: ChatRequest) -> float:
        """Expected completion tokens; infinite when nothing tells anything."""
        if self._known is not None and (tokens := self._known(request.request_hash)) is not None:
            self._known_tokens, self._known_rows = self._known_tokens + tokens, self._known_rows + 1
            return tokens
        guess = self._by_size(len(request.payload))
        limit = _LIMIT.search(request.payload)
        return guess if limit is None else min(guess, float(limit[1]))

    def learn(self, request: ChatRequest, tokens: int) -> None:
        """Take in an answer of so many tokens."""
        size = float(len(request.payload))
        self._count += 1
        self._x += size
        self._y += tokens
        self._xx += size * size
        self._yy += float(tokens) * tokens
        self._xy += size * tokens

    def _by_size(self, size: int) -> float:
        if self._known_rows:  # one that is new among known ones counts as average
            return self._known_tokens / self._known_rows
        if self._count < _ENOUGH:
            return math.inf
        spread_x = self._xx - self._x * self._x / self._count
        spread_y = self._yy - self._y * self._y / self._count
        together = self._xy - self._x * self._y / self._count
        if together <= _CORRELATED * math.sqrt(max(0.0, spread_x * spread_y)):
            return math.inf
        return max(1.0, self._y / self._count + together / spread_x * (size - self._x / self._count))
