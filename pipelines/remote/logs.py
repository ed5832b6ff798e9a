"""The steps' own events, read from their pods' logs through whatever lets us: the API server, or the pages' server."""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from clients import events
from pipelines.remote.connection import Connection
from pipelines.remote.tasks import Pod

#: Pods read in one round: each answer is a whole log.
_PODS_A_ROUND = 8

#: So many pods in a row without a log, and none with one: nobody may read them here.
_HOPELESS_AFTER = 6

#: A pod that has ended may be deleted already, or the server may have been away just then.
_TRIES_AFTER_THE_END = 3


class Logs:
    """Reads what is new in the logs of a run's pods.

    Args:
        connection: The server.
        run: Id of the run.
    """

    def __init__(self, connection: Connection, run: str) -> None:
        self._connection, self._run = connection, run
        self._read: dict[str, int] = {}  # pod and how many of its events were seen
        self._names: dict[tuple[str, ...], str] = {}
        self._tries: dict[tuple[str, ...], int] = {}
        self._finished: set[tuple[str, ...]] = set()
        self._next = self._failures = 0
        self._way = ""

    @property
    def readable(self) -> bool:
        """Whether any log could be read so far, or none was tried."""
        return bool(self._way) or self._failures < _HOPELESS_AFTER

    def new_events(self, pods: Sequence[Pod]) -> Iterator[dict[str, Any]]:
        """Events since the last call; of many pods, some in each call."""
        waiting = [pod for pod in pods if pod.names not in self._finished and pod.state not in ("", "PENDING")]
        if not self.readable or not waiting:
            return
        at = self._next % len(waiting)
        self._next = at + _PODS_A_ROUND
        for pod in (waiting[at:] + waiting[:at])[:_PODS_A_ROUND]:
            yield from self._of(pod)

    def _of(self, pod: Pod) -> Iterator[dict[str, Any]]:
        text = self._text(pod)
        if pod.state not in ("RUNNING", "CANCELING", "PAUSED"):
            self._tries[pod.names] = self._tries.get(pod.names, 0) + 1
            if text is not None or self._tries[pod.names] >= _TRIES_AFTER_THE_END:
                self._finished.add(pod.names)
        if text is None:
            return
        found = [event for line in text.splitlines() if (event := events.parse(line)) is not None]
        name = self._names[pod.names]
        yield from found[self._read.get(name, 0) :]
        self._read[name] = len(found)

    def _text(self, pod: Pod) -> str | None:
        for name in [self._names[pod.names]] if pod.names in self._names else pod.names:
            for way in [self._way] if self._way else ["api", "pages"]:
                if (text := self._through(way, name)) is not None:
                    self._way, self._names[pod.names] = way, name
                    return text
        self._failures += 1
        return None

    def _through(self, way: str, name: str) -> str | None:
        api, namespace = self._connection.api, self._connection.namespace
        if way == "api":  # svc/ml-pipeline has it, svc/ml-pipeline-ui does not pass it on
            return api.text(f"/apis/v1alpha1/runs/{quote(self._run)}/nodes/{quote(name)}/log")
        return api.text("/k8s/pod/logs", {"podname": name, "runid": self._run, "podnamespace": namespace})
