"""What must stand before a service is deployed; said at once, for the wait would only find out late."""

import base64
import binascii
import logging
from typing import Any

from clients.errors import ApiError, ConflictError, ForbiddenError, ServingError, SettingsError
from clients.events import emit
from clients.serving.cluster import Cluster, Object
from clients.serving.kinds import KINDS
from clients.serving.manifest import GPU, model_cache
from clients.serving.quantity import number
from clients.serving.spec import HF_TOKEN_KEY, TOKEN_PLACEHOLDER, ServingSpec

logger = logging.getLogger(__name__)

#: What the account needs, as (kind, verbs, subresource); a deploy without one of these could not be finished.
RIGHTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("InferenceService", ("get", "list", "create", "patch", "delete"), ""),
    ("Deployment", ("get", "list"), ""),
    ("Pod", ("get", "list"), ""),
    ("Event", ("get", "list"), ""),
    ("Pod", ("get",), "log"),
)


def missing_rights(cluster: Cluster) -> list[str]:
    """The RBAC rules that the account lacks, each as YAML on one line."""
    missing = []
    for kind, verbs, subresource in RIGHTS:
        lacking = [verb for verb in verbs if not cluster.allowed(kind, verb, subresource=subresource)]
        if lacking:
            missing.append(KINDS[kind].rule(*lacking, subresource=subresource))
    return missing


def check(cluster: Cluster, spec: ServingSpec) -> None:
    """Check rights, KServe, Secret, quota and model cache; the cache is made when there is none.

    Raises:
        ServingError, SettingsError: what is missing, and how to mend it.
    """
    check_rights(cluster)
    cluster.get("InferenceService", spec.name)  # MissingKindError without KServe
    check_secret(cluster, spec.hf_secret)
    check_quota(cluster, spec.gpus)
    ensure_cache(cluster, spec)


def check_rights(cluster: Cluster) -> None:
    """See that the account may do all that deploying needs.

    Raises:
        ForbiddenError: it may not; the message names every rule that is missing.
    """
    missing = missing_rights(cluster)
    if missing:
        raise ForbiddenError(
            f"the account of this step may not do what deploying needs in namespace {cluster.namespace}. "
            f"Apply kserve/rbac.yaml, or add to its Role: {' '.join(missing)}",
            status=403,
        )


def check_secret(cluster: Cluster, name: str) -> None:
    """See that the Secret with the Hugging Face token holds one.

    Args:
        cluster: Where to look.
        name: Of the Secret; "" for none.

    Raises:
        SettingsError: it is missing, or still holds the placeholder.
    """
    if not name:
        return
    where = f"Secret {cluster.namespace}/{name}"
    make = f"kubectl -n {cluster.namespace} create secret generic {name} --from-literal={HF_TOKEN_KEY}=<your token>"
    try:
        secret = cluster.get("Secret", name)
    except ForbiddenError:
        emit(logger, "secret.unchecked", secret=name, reason="this account may not read Secrets")
        return
    if secret is None:
        raise SettingsError(f"{where} is not there: make it with {make}, or leave hf_secret empty for a public model")
    token = _decoded((secret.get("data") or {}).get(HF_TOKEN_KEY))
    if not token:
        raise SettingsError(f"{where} has no key {HF_TOKEN_KEY}: delete it and make it with {make}")
    if TOKEN_PLACEHOLDER in token:
        raise SettingsError(f"{where} still holds {TOKEN_PLACEHOLDER}: delete it and make it with {make}")


def _decoded(value: Any) -> str:
    try:
        return base64.b64decode(str(value or "")).decode("utf-8", "replace").strip()
    except binascii.Error:
        return ""


def check_quota(cluster: Cluster, gpus: int) -> None:
    """See that the namespace's quotas can hold the GPUs; what is only in use is noted.

    Args:
        cluster: Where to look.
        gpus: Of all replicas.

    Raises:
        ServingError: one never can.
    """
    try:
        quotas = cluster.list("ResourceQuota")
    except ApiError:
        return
    for quota in quotas:
        status = quota.get("status") or {}
        hard = {**((quota.get("spec") or {}).get("hard") or {}), **(status.get("hard") or {})}.get(f"requests.{GPU}")
        if hard is None:
            continue
        used = number((status.get("used") or {}).get(f"requests.{GPU}", 0))
        name = f"ResourceQuota {cluster.namespace}/{quota['metadata']['name']}"
        if gpus > number(hard):
            raise ServingError(
                f"{name} allows {hard} GPUs and the service needs {gpus}: "
                "ask for a larger quota, or choose fewer replicas or gpus_per_replica"
            )
        if used + gpus > number(hard):
            emit(logger, "quota.in_use", quota=name, hard=number(hard), used=used, needed=gpus)


def ensure_cache(cluster: Cluster, spec: ServingSpec) -> None:
    """Make the claim for the model cache when there is none; one that is there is never changed and never deleted."""
    if not spec.model_cache:
        return
    where = f"PersistentVolumeClaim {cluster.namespace}/{spec.model_cache}"
    try:
        claim = cluster.get("PersistentVolumeClaim", spec.model_cache)
        if claim is None:
            claim = cluster.create("PersistentVolumeClaim", model_cache(spec))
            emit(logger, "cache.created", claim=where, size=spec.cache_size)
    except ConflictError:  # another run made it just now
        return
    except ForbiddenError as error:
        emit(logger, "cache.unchecked", claim=where, reason=str(error))
        return
    _check_claim(claim, where, spec)


def _check_claim(claim: Object, where: str, spec: ServingSpec) -> None:
    phase = (claim.get("status") or {}).get("phase")
    modes = (claim.get("spec") or {}).get("accessModes") or []
    if phase == "Lost":
        raise ServingError(f"{where} has lost its volume: delete the claim and let it be made anew")
    if claim["metadata"].get("deletionTimestamp"):
        raise ServingError(f"{where} is being deleted: wait until it is gone, or name another model_cache")
    if spec.replicas > 1 and not set(modes) & {"ReadWriteMany", "ReadOnlyMany"}:
        raise ServingError(
            f"{where} is {', '.join(modes) or 'of no access mode'}, which only pods of one node can mount, and the "
            f"service has {spec.replicas} replicas: use a claim with ReadWriteMany, or leave model_cache empty"
        )
