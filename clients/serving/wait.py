"""Wait until a service serves; while it does not, say how far it is and what stands in its way."""

import dataclasses
import logging
import time
from typing import Any

from clients.errors import ApiError, ServingError
from clients.events import emit
from clients.serving import lease, times
from clients.serving.canary import canary
from clients.serving.cluster import Cluster
from clients.serving.deployed import Deployed
from clients.serving.diagnose import Cause, Finding, diagnose
from clients.serving.observe import Observer
from clients.serving.snapshot import Snapshot

logger = logging.getLogger(__name__)

#: Seconds between two looks, in the first minute and later.
_FIRST_POLL_S, _POLL_S = 1.0, 3.0

#: Seconds between two reports of a stage that does not change.
_REPORT_EVERY_S = 60.0

#: Refusals that pass: keys that are changed, a conflict, a version that is too old, too many requests.
_PASSING = frozenset({401, 408, 409, 410, 429})

#: Seconds after which any other refusal is taken to last.
_LASTING_AFTER_S = 60.0

#: Seconds between two renewals of the run's hold.
_RENEW_EVERY_S = 300.0

#: Seconds for which a service that says it is ready may fail its canary for a reason that asking again will not mend.
_CANARY_PATIENCE_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """A service that answers.

    Attributes:
        url: Where.
        gpus_held_since: For each GPU pod its number of GPUs, and the second (since 1970) since which it holds them.
    """

    url: str
    gpus_held_since: tuple[tuple[int, float], ...]


def wait_until_ready(
    cluster: Cluster, deployed: Deployed, *, ready_timeout_s: float, lease_s: float, api_key: str | None
) -> Serving:
    """Wait until all replicas serve what was applied and one of them has answered.

    The API server may be away for a while, restart, or take new tokens; only the deadline ends the wait for it.

    Args:
        cluster: Where the service is.
        deployed: What `deploy` returned.
        ready_timeout_s: Seconds until the wait is given up.
        lease_s: Seconds by which the run's hold is lengthened while it waits.
        api_key: For the first request to the model.

    Raises:
        ServingError: it can never work as it is (at once, with the cause), or not in time (with what was in the way).
    """
    return _Wait(cluster, deployed, ready_timeout_s, lease_s, api_key).run()


class _Wait:
    def __init__(
        self, cluster: Cluster, deployed: Deployed, ready_timeout_s: float, lease_s: float, api_key: str | None
    ) -> None:
        self._cluster, self._deployed = cluster, deployed
        self._timeout_s, self._lease_s, self._api_key = ready_timeout_s, lease_s, api_key
        self._observer = Observer(cluster, deployed.name)
        self._where = f"InferenceService {deployed.namespace}/{deployed.name}"
        self._renewed_at = time.monotonic()
        self._started = self._renewed_at - (max(0.0, time.time() - deployed.at) if deployed.at else 0.0)
        self._reported: tuple[Any, ...] = ()
        self._reported_at = float("-inf")
        self._suspected = ""  # kind of a fatal cause that was seen once
        self._silent_since: float | None = None
        self._refused_since: float | None = None

    def run(self) -> Serving:
        finding: Finding | None = None
        while True:
            try:
                snapshot = self._observer.look()
                self._check_identity(snapshot)
                finding = diagnose(snapshot, wanted_replicas=self._deployed.replicas)
                if finding.ready and (url := self._answering(snapshot)):
                    return Serving(url=url, gpus_held_since=tuple(held_since(snapshot)))
                self._report(finding)
                self._end_if_hopeless(finding.cause)
                self._renew()
                self._silent_since = None
            except ApiError as error:
                self._bear(error)
            if time.monotonic() - self._started > self._timeout_s:
                raise ServingError(self._late(finding))
            time.sleep(_FIRST_POLL_S if self._waited_s() < 60 else _POLL_S)

    def _check_identity(self, snapshot: Snapshot) -> None:
        """Raise ServingError when the service was deleted or replaced: what is there now is not what was applied."""
        metadata = (snapshot.service or {}).get("metadata") or {}
        if metadata.get("uid") != self._deployed.uid:
            state = "was replaced by another of its name" if metadata else "was deleted"
            raise ServingError(f"{self._where} {state} while this run waited for it: run it again")

    def _answering(self, snapshot: Snapshot) -> str:
        """The service's address once it has answered a real request, else ""."""
        url = _url(snapshot)
        if not url:
            return ""
        failure, is_final = canary(url, model=self._deployed.model, api_key=self._api_key)
        if not failure:
            emit(logger, "service.ready", service=self._deployed.name, url=url, waited_s=self._waited_s())
            return url
        self._refused_since = self._refused_since or time.monotonic()
        if is_final and time.monotonic() - self._refused_since > _CANARY_PATIENCE_S:
            raise ServingError(f"{self._where} is ready, but {failure}")
        emit(logger, "service.waiting", service=self._deployed.name, cause="canary", message=failure)
        return ""

    def _report(self, finding: Finding) -> None:
        """Say how far it is, when that has changed or was not said for a while."""
        cause = finding.cause
        if cause is not None and self._reported[1:] != (cause.kind, cause.message):
            emit(logger, "service.waiting", service=self._deployed.name, cause=cause.kind, message=cause.message)
        now = (finding.stage, cause.kind, cause.message) if cause else (finding.stage, "", "")
        if now[0] != next(iter(self._reported), "") or time.monotonic() - self._reported_at > _REPORT_EVERY_S:
            emit(
                logger,
                "service.progress",
                service=self._deployed.name,
                stage=finding.stage,
                detail=finding.detail,
                waited_s=self._waited_s(),
            )
            self._reported_at = time.monotonic()
        self._reported = now

    def _end_if_hopeless(self, cause: Cause | None) -> None:
        """Raise ServingError for a fatal cause that was seen twice in a row: one look may catch things half done."""
        fatal = cause.kind if cause is not None and cause.fatal else ""
        if cause is not None and fatal and fatal == self._suspected:
            raise ServingError(f"{self._where} cannot come up: {cause.message}")
        self._suspected = fatal

    def _renew(self) -> None:
        if time.monotonic() - self._renewed_at > min(_RENEW_EVERY_S, self._lease_s / 4):
            lease.hold(self._cluster, self._deployed.name, self._deployed.run, lease_s=self._lease_s)
            self._renewed_at = time.monotonic()

    def _bear(self, error: ApiError) -> None:
        """Bear an API server that is away, overloaded or changing its keys; raise what does not mend itself.

        One that has just started may refuse or not know things for some seconds.
        """
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            emit(logger, "api.unavailable", reason=str(error))
        is_lasting = 400 <= error.status < 500 and error.status not in _PASSING
        if is_lasting and time.monotonic() - self._silent_since > _LASTING_AFTER_S:
            raise error

    def _late(self, finding: Finding | None) -> str:
        if self._silent_since is not None or finding is None:
            found = "the Kubernetes API server has not answered"
        else:
            found = finding.cause.message if finding.cause else finding.detail
        return (
            f"{self._where} is not ready after {self._timeout_s:g} s: {found.rstrip('.')}. "
            "If it only needs longer, raise ready_timeout_s"
        )

    def _waited_s(self) -> int:
        return round(time.monotonic() - self._started)


def _url(snapshot: Snapshot) -> str:
    """Where pods of the cluster reach the service; the outside address where there is no other."""
    status = (snapshot.service or {}).get("status") or {}
    return str((status.get("address") or {}).get("url") or status.get("url") or "")


def held_since(snapshot: Snapshot) -> list[tuple[int, float]]:
    """For each pod that holds GPUs: how many, and since which second."""
    found = []
    for pod in snapshot.pods:
        gpus = sum(_gpus(container) for container in (pod.get("spec") or {}).get("containers") or [])
        conditions = (pod.get("status") or {}).get("conditions") or []
        since = next((times.read(each.get("lastTransitionTime")) for each in conditions if _is_placed(each)), None)
        if gpus and since is not None:
            found.append((gpus, since.timestamp()))
    return found


def _gpus(container: dict[str, Any]) -> int:
    limits = (container.get("resources") or {}).get("limits") or {}
    return sum(int(count) for name, count in limits.items() if name.endswith("/gpu") and str(count).isdecimal())


def _is_placed(condition: dict[str, Any]) -> bool:
    return condition.get("type") == "PodScheduled" and condition.get("status") == "True"
