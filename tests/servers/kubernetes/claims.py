"""The volume controller and its provisioner: they bind claims, or say in events why they do not."""

from tests.servers.kubernetes.events import Clock, Recorder
from tests.servers.kubernetes.kinds import CLAIM, POD, STORAGE_CLASS, Obj
from tests.servers.kubernetes.objects import Objects

_DEFAULT = "storageclass.kubernetes.io/is-default-class"

#: Annotation of a storage class of this stand-in: `fails` or `hangs`; absent, it provisions.
BEHAVIOUR = "stand-in/provisioner"

_AGAIN_S = 15.0


def storage_class(name: str, *, default: bool = True, waits: bool = False, behaviour: str = "") -> Obj:
    """A class that can share volumes between nodes."""
    notes = {_DEFAULT: "true"} if default else {}
    notes |= {BEHAVIOUR: behaviour} if behaviour else {}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "annotations": notes},
        "provisioner": "nfs.csi.k8s.io",
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer" if waits else "Immediate",
    }


class Claims:
    """Binds PersistentVolumeClaims."""

    def __init__(self, objects: Objects, recorder: Recorder, clock: Clock) -> None:
        self._objects = objects
        self._recorder = recorder
        self._clock = clock
        self._told_at: dict[tuple[str, str], float] = {}

    def step(self) -> None:
        for claim in self._objects.storage.find(CLAIM):
            if (claim.get("status") or {}).get("phase") != "Bound" and not claim["metadata"].get("deletionTimestamp"):
                self._bind(claim)

    def _bind(self, claim: Obj) -> None:
        found = self._class_of(claim)
        wanted = claim["spec"].get("storageClassName")
        if found is None and wanted:
            said = f'storageclass.storage.k8s.io "{wanted}" not found'
            self._tell(claim, "Warning", "ProvisioningFailed", said)
            return
        if found is None:
            said = "no persistent volumes available for this claim and no storage class is set"
            self._tell(claim, "Normal", "FailedBinding", said)
            return
        if not wanted:
            claim["spec"]["storageClassName"] = found["metadata"]["name"]
            claim = self._objects.storage.update(CLAIM, claim)
        if found["volumeBindingMode"] == "WaitForFirstConsumer" and not self._has_pod(claim):
            said = "waiting for first consumer to be created before binding"
            self._tell(claim, "Normal", "WaitForFirstConsumer", said)
            return
        self._provision(claim, found)

    def _provision(self, claim: Obj, found: Obj) -> None:
        name, provisioner = found["metadata"]["name"], found["provisioner"]
        behaviour = (found["metadata"].get("annotations") or {}).get(BEHAVIOUR)
        said = (
            f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the "
            "system administrator. If volume creation is delayed, please verify that the provisioner is running and "
            "correctly registered."
        )
        self._tell(claim, "Normal", "ExternalProvisioning", said)
        if behaviour == "fails":
            why = "rpc error: code = ResourceExhausted desc = not enough free capacity for 3298534883328 bytes"
            said = f'failed to provision volume with StorageClass "{name}": {why}'
            self._tell(claim, "Warning", "ProvisioningFailed", said, f"{provisioner}_csi-nfs-controller-0")
        elif behaviour != "hangs":
            uid = claim["metadata"]["uid"]
            claim["spec"]["volumeName"] = f"pvc-{uid}"
            size = claim["spec"]["resources"]["requests"]
            claim["status"] = {"phase": "Bound", "accessModes": claim["spec"].get("accessModes", []), "capacity": size}
            self._objects.storage.update(CLAIM, claim)

    def _class_of(self, claim: Obj) -> Obj | None:
        wanted = claim["spec"].get("storageClassName")
        if wanted is not None:
            return self._objects.storage.read(STORAGE_CLASS, "", wanted)
        rows = self._objects.storage.find(STORAGE_CLASS)
        return next((row for row in rows if (row["metadata"].get("annotations") or {}).get(_DEFAULT) == "true"), None)

    def _has_pod(self, claim: Obj) -> bool:
        """Whether a pod with a node uses the claim."""
        for pod in self._objects.storage.peek(POD, claim["metadata"]["namespace"]):
            for volume in pod["spec"].get("volumes") or []:
                used = (volume.get("persistentVolumeClaim") or {}).get("claimName")
                if used == claim["metadata"]["name"] and pod["spec"].get("nodeName"):
                    return True
        return False

    def _tell(
        self, claim: Obj, kind: str, reason: str, message: str, component: str = "persistentvolume-controller"
    ) -> None:
        key, now_s = (claim["metadata"]["uid"], reason), self._clock.now_s()
        if now_s - self._told_at.get(key, -_AGAIN_S) >= _AGAIN_S:
            self._told_at[key] = now_s
            self._recorder.add(claim, kind, reason, message, component)
