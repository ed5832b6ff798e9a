"""Claims for storage that get no volume."""

from clients.serving.causes import Cause
from clients.serving.evidence import Evidence, Object, at, first_seen, name_of, quoted, text

#: Seconds until a claim that is refused counts as one that never gets a volume: a class may be made a moment later.
_PATIENCE_S = 60

_REFUSALS = ("FailedBinding", "ProvisioningFailed", "ClaimMisbound")

#: What a volume driver says when it cannot share a volume among nodes.
_UNSHARED = ("multi_node_multi_writer", "access mode", "accessmode", "readwritemany")


def claim_pending(claim: Object, evidence: Evidence) -> Cause | None:
    """Why a claim is not bound; None while all is as it should be."""
    phase = text(claim, "status", "phase")
    if phase == "Lost":
        return Cause(
            kind="claim_pending",
            message=f"claim {name_of(claim)} has lost its volume. Restore the volume, or use another claim",
            fatal=True,
        )
    if phase != "Pending":
        return None
    events = evidence.about("PersistentVolumeClaim", claim)
    failed = [one for one in events if one.reason in _REFUSALS]
    if not failed and events and events[0].reason in ("WaitForFirstConsumer", "WaitForPodScheduled"):
        return None  # it is bound once its pod has a node
    age = evidence.age(first_seen(failed), at(claim, "metadata", "creationTimestamp"))
    if not failed and age < _PATIENCE_S:
        return None
    said = (failed or events)[0].message if events else "nothing happens"
    never, mend = _mend(said)
    return Cause(
        kind="claim_pending",
        message=f"claim {name_of(claim)} gets no volume: {quoted(said)}. {mend}",
        fatal=never and age >= _PATIENCE_S,
    )


def _mend(said: str) -> tuple[bool, str]:
    """Whether it stays so, and what to do."""
    low = said.lower()
    if "no storage class is set" in low:
        return True, "Set a default StorageClass, or name one for the model cache (a claim's class cannot be changed)"
    if "storageclass" in low and "not found" in low:
        return True, "Name a StorageClass that exists (kubectl get storageclass)"
    if any(word in low for word in _UNSHARED):
        return True, "Use a StorageClass that can share a volume (ReadWriteMany, such as NFS or CephFS)"
    return False, "Look at the storage provisioner's pods (kubectl describe pvc)"
