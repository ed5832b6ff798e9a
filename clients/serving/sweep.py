"""Find services that no run needs any more, and end them: what a CronJob does where no exit handler ran."""

import datetime as dt
import logging
from collections.abc import Iterator

from clients.errors import ApiError, ServingError
from clients.events import emit
from clients.serving import lease, times
from clients.serving.cluster import Cluster, Object
from clients.serving.labels import AFTER_RUN, CREATED_BY, FIELD_MANAGER, MANAGED_BY
from clients.serving.release import Released, let_end

logger = logging.getLogger(__name__)

#: A hold of a run that is alive is lengthened when less than this is left of it.
_RENEW_BELOW_S = 3600.0


def sweep(
    cluster: Cluster, *, all_namespaces: bool = False, dry_run: bool = False, gone_s: float = 60.0
) -> Iterator[Released]:
    """End every service of ours that no living run holds; yields what became of each service that was looked at.

    A service that was not made by this package, or that is to be kept, is not touched. One that cannot be released
    does not stop the others: its event says why, and the next sweep tries again.

    Args:
        cluster: Where.
        all_namespaces: Whether to look everywhere, not only in the cluster's namespace.
        dry_run: Whether only to say what would be done.
        gone_s: Seconds for which the end of each is waited for.
    """
    found = cluster.list("InferenceService", labels=f"{MANAGED_BY}={FIELD_MANAGER}", all_namespaces=all_namespaces)
    for live in found:
        name = live["metadata"]["name"]
        try:
            yield _look_at(cluster, live, dry_run=dry_run, gone_s=gone_s)
        except ServingError as error:
            emit(logger, "sweep.failed", service=name, namespace=live["metadata"]["namespace"], error=str(error))
            yield Released(name=name, action="failed", detail=str(error))


def _look_at(cluster: Cluster, live: Object, *, dry_run: bool, gone_s: float) -> Released:
    name, annotations = live["metadata"]["name"], lease.annotations(live)
    if CREATED_BY not in annotations or annotations.get(AFTER_RUN) == "keep":
        return Released(name=name, action="kept", detail="as chosen")
    living = lease.living(cluster, live)
    if living:
        if not dry_run:
            _lengthen(cluster, live, living)
        return Released(name=name, action="in_use", detail=f"run {living[0].run}")
    if not lease.holds(live) and _is_young(live):
        return Released(name=name, action="in_use", detail="made just now")
    if dry_run:
        return Released(name=name, action="would_end", detail="no living run holds it")
    emit(logger, "service.abandoned", service=name, holds=[each.run for each in lease.holds(live)])
    return let_end(cluster, live, run="", gone_s=gone_s)


def _lengthen(cluster: Cluster, live: Object, living: list[lease.Hold]) -> None:
    """Renew the holds of runs that are alive: with them, the age of a hold says how long nobody saw its run."""
    soon = times.now() + dt.timedelta(seconds=_RENEW_BELOW_S)
    patch = {
        lease.key(each.run): times.write(soon + dt.timedelta(seconds=_RENEW_BELOW_S))
        for each in living
        if each.until < soon and lease.is_seen(cluster, each, live["metadata"]["namespace"])
    }
    if not patch:
        return
    try:
        cluster.merge(
            "InferenceService",
            live["metadata"]["name"],
            {"metadata": {"annotations": patch}},
            namespace=live["metadata"]["namespace"],
        )
    except ApiError as error:  # the next sweep does it
        emit(logger, "lease.not_renewed", service=live["metadata"]["name"], reason=str(error))


def _is_young(live: Object) -> bool:
    made = times.read(live["metadata"].get("creationTimestamp"))
    return made is not None and times.now() - made < dt.timedelta(seconds=lease.GRACE_S)
