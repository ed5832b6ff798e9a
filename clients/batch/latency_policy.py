"""The limit without telemetry: by how long requests wait for their first token, or else by how long answers take. Pure.

vLLM queues without bound and never refuses by default, so a limit that learns from errors alone would climb for ever.
What tells of a queue:

1. **Soundings.** Now and then a row is asked for as a stream. Its first byte comes when the server has begun to work on
   it: the time until then is its time in the queue, known at once, not only when an answer is complete. While there is
   none, the limit doubles.
2. **Latency**, where nothing can be streamed. A queue shows as time that does not depend on an answer's length. It
   takes an answer's time to see, so a limit is found much later.

A server that queues nothing and only gets slower shows as throughput that no longer grows with the limit.
"""

import math

from clients.batch.latency import Fit, fit

#: Share of their time that answers should wait: the reserve for the time between an answer and the next request; below
#: the second share there is none, above the third it is time to send less.
_WAIT_SHARE, _TOO_SHORT, _TOO_LONG = 0.1, 0.03, 0.25

#: Seconds that a request may take longer to its first byte than the quickest without having waited in a queue.
_UNNOTICED_S = 0.2

#: Seconds between two soundings once the server is full.
_SOUND_EVERY_S = 1.0

#: Soundings in a row that must have waited too long: a burst at the start is worked off by itself.
_LONG_WAITS = 2

#: Soundings in a row that a server refuses (HTTP 4xx) before no further one is sent.
_REFUSED_SOUNDINGS = 3

#: A stream of more tokens than this that comes all at once, after this share of its time, is none.
_STREAM_TOKENS, _ALL_AT_ONCE = 8, 0.9

#: Share of a limit's growth that throughput must grow by; with less the server is taken to be full.
_LEAST_GAIN = 0.15

#: Growth that brings nothing is tried again after so many judgements, doubled each time.
_PAUSE, _MAX_PAUSE = 2, 32

#: A limit, and the reason for it.
Decision = tuple[int, str]


class LatencyPolicy:
    """Judges a limit by the requests that were sent under it.

    Attributes:
        is_full: Whether the server was found to have all it can work on.
    """

    def __init__(self) -> None:
        self.is_full = False
        self._samples: list[tuple[float, float]] = []
        self._mean_s = 0.0  # of the latest answers
        self._quickest_wait_s = self._quickest_first_s = math.inf
        self._proven = 0  # the largest limit at which answers did not wait
        self._before: tuple[int, float] | None = None  # the limit judged last, and its throughput
        self._pause, self._paused = _PAUSE, 0
        self._can_sound, self._sounding, self._sound_at = True, False, -math.inf
        self._heard, self._refused_soundings, self._long_waits = False, 0, 0

    def forget(self) -> None:
        """The limit has changed: what came until now tells nothing of the new one."""
        self._samples = []

    # -------------------------------------------------------------------- soundings

    def wants_sounding(self, in_flight: int, limit: int, now: float) -> bool:
        """Whether the next request should be a stream: the first of all, to compare with, then the last of a limit's.

        Args:
            in_flight: Requests under way, that one included.
            limit: How many there may be.
            now: Seconds on any clock.
        """
        wanted = in_flight >= limit or not self._heard
        return wanted and self._can_sound and not self._sounding and now >= self._sound_at

    def sounding_sent(self) -> None:
        """One is under way."""
        self._sounding = True

    def sounding_failed(self, *, was_refused: bool = False, for_good: bool = False) -> None:
        """It came to nothing.

        Args:
            was_refused: The server did not want it; several times, and it does not know streams.
            for_good: It certainly does not.
        """
        self._sounding = False
        self._refused_soundings += was_refused
        if for_good or self._refused_soundings >= _REFUSED_SOUNDINGS:
            self._can_sound = False

    def first_byte(self, first_s: float, limit: int, now: float) -> Decision | None:
        """Judge a limit as soon as a request that was sent at it is begun.

        Args:
            first_s: Seconds until its first byte.
            limit: As it was, and is.
            now: Seconds on any clock.
        """
        is_first, self._heard, self._refused_soundings = not self._heard, True, 0
        self._quickest_first_s = min(self._quickest_first_s, first_s)
        if is_first:
            self._sounding = False
            return None
        if first_s - self._quickest_first_s > max(_UNNOTICED_S, _WAIT_SHARE * self._mean_s):
            return None  # it waited; whether for long is seen at its end
        self._sounding, self._proven, self._long_waits = False, max(self._proven, limit), 0
        if not self.is_full:
            return 2 * limit, f"a request was begun after {first_s:.2f} s"
        self._sound_at = now + _SOUND_EVERY_S
        return self._grow(limit, f"a request was begun after {first_s:.2f} s")

    def sounding_ended(self, first_s: float, latency_s: float, tokens: int, limit: int, now: float) -> Decision | None:
        """Judge a limit at which a request had to wait, once it is answered.

        Args:
            first_s: Seconds until its first byte.
            latency_s: Seconds until its last.
            tokens: Its length.
            limit: As it was, and is.
            now: Seconds on any clock.
        """
        if not self._sounding:
            return None
        self._sounding, self._sound_at = False, now + _SOUND_EVERY_S
        if tokens > _STREAM_TOKENS and first_s > _ALL_AT_ONCE * latency_s:
            self._can_sound = False
            return None
        self.is_full = True
        share = min(0.9, (first_s - self._quickest_first_s) / max(latency_s, self._mean_s, 1e-9))
        self._long_waits = self._long_waits + 1 if share > _TOO_LONG else 0
        return self._shrink(share, limit) if self._long_waits >= _LONG_WAITS else None

    # ---------------------------------------------------------------------- answers

    def judge(self, latency_s: float, tokens: int | None, limit: int) -> Decision | None:
        """Take in an answer; once there are enough of them, say what the limit should be, and why.

        Args:
            latency_s: Seconds it took.
            tokens: Its length; None when the server does not tell.
            limit: As it was, and is.
        """
        self._samples.append((float(tokens or 1), latency_s))
        if len(self._samples) < max(8, min(64, limit // 3)):
            return None
        found, self._samples = fit(self._samples), []
        self._mean_s = found.mean_s
        self._quickest_wait_s = min(self._quickest_wait_s, found.wait_s)
        waited_s = max(0.0, found.wait_s - self._quickest_wait_s)
        share = waited_s / found.mean_s if found.per_token_s and found.mean_s else 0.0
        if self._can_sound and self._heard:  # soundings tell of queues, and better
            return self._useless_growth(found, 0.0, limit)
        if share > _TOO_LONG:
            return self._shrink(share, limit)
        if share <= _WAIT_SHARE:
            self._proven = max(self._proven, limit)
        if (useless := self._useless_growth(found, share, limit)) is not None:
            return useless
        reason = f"answers wait {share:.0%} of their time"
        if not self.is_full:
            return 2 * limit, reason
        return self._grow(limit, reason) if share < _TOO_SHORT else None

    # ------------------------------------------------------------------------ inside

    def _grow(self, limit: int, reason: str) -> Decision | None:
        if self._paused:
            self._paused -= 1
            return None
        return limit + max(1, limit // 8), reason

    def _shrink(self, share: float, limit: int) -> Decision:
        """What runs, and a reserve; but not less than what has once been without a queue."""
        self.is_full = True
        if self._proven >= limit:
            self._proven = 0  # it holds less than it did
        runs = limit * (1 - share)
        return max(int(runs / (1 - _WAIT_SHARE)) + 1, self._proven), f"answers wait {share:.0%} of their time"

    def _useless_growth(self, found: Fit, share: float, limit: int) -> Decision | None:
        """Back to the limit before, when the present one brings no more."""
        throughput = limit * (1 - share) / max(1e-9, found.per_token_s or found.mean_s)
        before, self._before = self._before, (limit, throughput)
        if before is None or before[0] >= limit or share >= _WAIT_SHARE:
            return None
        if throughput >= before[1] * (1 + _LEAST_GAIN * (limit / before[0] - 1)):
            return None
        self.is_full = True
        self._pause, self._paused = min(_MAX_PAUSE, 2 * self._pause), self._pause
        return before[0], f"{limit} at once bring no more than {before[0]}"
