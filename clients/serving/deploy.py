"""Put an InferenceService into the cluster, or take one that is there."""

import datetime as dt
import logging
import time
from typing import Any

from clients.errors import ApiError, ServingError
from clients.events import emit
from clients.serving import lease, times
from clients.serving.cluster import Cluster, Object
from clients.serving.deployed import Deployed
from clients.serving.labels import AFTER_RUN, CREATED_BY, FIELD_MANAGER, MANAGED_BY, STOP, WOKEN_BY
from clients.serving.manifest import for_kserve_0_15, inference_service, metrics_service
from clients.serving.prerequisites import check
from clients.serving.spec import ServingSpec

logger = logging.getLogger(__name__)

#: What may become of a service that nobody needs any more.
AFTER_RUN_CHOICES = ("delete", "stop", "keep")

#: What KServe 0.15's webhook says of the mode and the autoscaler class that later versions want.
_KSERVE_0_15_SAYS = ("deploymentStrategy is only supported", "is not a supported autoscaler class")

#: Seconds for which an object of the wanted name that is being deleted is waited for.
_GOING_S = 600.0

_POLL_S = 2.0


def deploy(
    cluster: Cluster, spec: ServingSpec, *, run: str, after_run: str, lease_s: float, owner_pod: str = ""
) -> Deployed:
    """Make sure that the service is there as specified, and held by this run.

    A service that is there with the same settings is used as it is; one with others is changed, unless another run
    uses it. The same call again changes nothing.

    Args:
        cluster: Where.
        spec: What is to be served, and how.
        run: The run that needs it.
        after_run: What becomes of a service made here when nobody needs it any more: `delete`, `stop` or `keep`.
        lease_s: Seconds after which the run's hold ends by itself, unless it is seen to be alive.
        owner_pod: A pod of the workflow with which a service made here shall go; "" for a service that outlives it.

    Raises:
        SettingsError, ServingError: what is missing, in the way or not allowed.
    """
    check(cluster, spec)
    live = _held(cluster, spec, run, lease_s=lease_s)
    if live is None:
        until = times.write(times.now() + dt.timedelta(seconds=lease_s))
        ours = {CREATED_BY: run, AFTER_RUN: after_run, lease.key(run): until}
        applied = _apply(cluster, _manifest(spec, ours, _workflow_of(cluster, owner_pod)), force=True)
        lease.hold(cluster, spec.name, run, lease_s=lease_s + 1)  # from here on a field that no apply takes away
    else:
        applied = _apply(cluster, _manifest(spec, _marks(live), _owner(live)))
    _apply_metrics_service(cluster, spec, applied)
    created = lease.annotations(applied).get(CREATED_BY) == run
    found = {"service": spec.name, "namespace": cluster.namespace, "replicas": spec.replicas, "gpus": spec.gpus}
    emit(logger, "service.deployed", **found, created=created)
    return Deployed(
        name=spec.name,
        namespace=cluster.namespace,
        uid=applied["metadata"]["uid"],
        run=run,
        model=spec.model,
        replicas=spec.replicas,
        gpus=spec.gpus,
        created=created,
        at=time.time(),
    )


def _held(cluster: Cluster, spec: ServingSpec, run: str, *, lease_s: float) -> Object | None:
    """The service that stands, held by this run from now on and not stopped; None when there is none."""
    while (live := _wait_out(cluster, spec.name)) is not None:
        _refuse_to_disturb(cluster, spec, live, run)
        patch = lease.hold_patch(run, lease_s=lease_s)
        if lease.annotations(live).get(STOP) == "true":
            patch["metadata"]["annotations"] |= {STOP: None, WOKEN_BY: run}
        try:
            held = cluster.merge("InferenceService", spec.name, patch)
        except ApiError as error:
            if error.status != 404:
                raise
            continue  # its last run deleted it just now
        if not held["metadata"].get("deletionTimestamp"):
            return held
    return None


def _wait_out(cluster: Cluster, name: str) -> Object | None:
    """The service that stands, or None: applying onto one that is being deleted would vanish with it."""
    deadline = time.monotonic() + _GOING_S
    told = False
    while (live := cluster.get("InferenceService", name)) is not None and live["metadata"].get("deletionTimestamp"):
        if time.monotonic() > deadline:
            held_by = ", ".join(live["metadata"].get("finalizers") or []) or "nothing that is named"
            raise ServingError(
                f"InferenceService {cluster.namespace}/{name} has been going since "
                f"{live['metadata']['deletionTimestamp']}, held by {held_by}: see whether KServe's controller runs "
                "(kubectl -n kserve get pods), or choose another service_name"
            )
        if not told:
            emit(logger, "service.going", service=name, since=live["metadata"]["deletionTimestamp"])
            told = True
        time.sleep(_POLL_S)
    return live


def _refuse_to_disturb(cluster: Cluster, spec: ServingSpec, live: Object, run: str) -> None:
    """Raise ServingError when applying would restart a service that another run uses."""
    wanted = _apply(cluster, _manifest(spec, _marks(live), _owner(live)), dry_run=True)
    if wanted["spec"] == live["spec"]:
        return
    others = lease.living(cluster, live, without=run)
    if others:
        raise ServingError(
            f"InferenceService {cluster.namespace}/{spec.name} is in use by run {others[0].run} with other settings, "
            "and changing it would cut that run off: wait until it ends, or choose another service_name"
        )
    emit(logger, "service.changed", service=spec.name)


def _marks(live: Object) -> dict[str, str]:
    """The annotations that were applied when the service was made; an apply without them would take them away.

    Holds and the like are written by merge and belong to no apply, so they stay without being named.
    """
    return {name: value for name, value in lease.annotations(live).items() if name in (CREATED_BY, AFTER_RUN)}


def _owner(live: Object) -> dict[str, Any] | None:
    owners = live["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("kind") == "Workflow"), None)


def _apply(cluster: Cluster, manifest: Object, *, force: bool = False, dry_run: bool = False) -> Object:
    """Apply the service; a KServe that is too old for it gets the form that it knows."""
    try:
        return cluster.apply("InferenceService", manifest, force=force, dry_run=dry_run)
    except ApiError as error:
        if not any(words in str(error) for words in _KSERVE_0_15_SAYS):
            raise
    return cluster.apply("InferenceService", for_kserve_0_15(manifest), force=force, dry_run=dry_run)


def _manifest(spec: ServingSpec, annotations: dict[str, str], owner: dict[str, Any] | None) -> Object:
    manifest: Object = inference_service(spec)
    metadata = manifest["metadata"]
    metadata["annotations"] = {**metadata.get("annotations", {}), **annotations}
    metadata["labels"] = {**metadata.get("labels", {}), MANAGED_BY: FIELD_MANAGER}
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    return manifest


def _workflow_of(cluster: Cluster, pod: str) -> dict[str, Any] | None:
    """An owner reference to the workflow that a pod belongs to, for what goes when the workflow goes."""
    found = cluster.get("Pod", pod) if pod else None
    for owner in ((found or {}).get("metadata") or {}).get("ownerReferences") or []:
        if owner.get("kind") == "Workflow":
            return {name: owner[name] for name in ("apiVersion", "kind", "name", "uid")}
    return None


def _apply_metrics_service(cluster: Cluster, spec: ServingSpec, service: Object) -> None:
    """Apply the Service for metrics; it goes with the InferenceService."""
    manifest = metrics_service(spec)
    owner = {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": spec.name}
    manifest["metadata"]["ownerReferences"] = [{**owner, "uid": service["metadata"]["uid"]}]
    manifest["metadata"]["labels"] = {**manifest["metadata"].get("labels", {}), MANAGED_BY: FIELD_MANAGER}
    try:
        cluster.apply("Service", manifest, force=True)
    except ServingError as error:  # monitoring is no reason to do without the model
        emit(logger, "metrics.unavailable", service=spec.name, reason=str(error))
