"""A volume of the cluster in the pods of a pipeline: prompts, results and state then are paths in it.

Kubeflow has no volume that may be absent, so the compiled files have none; it is put in when one is asked for.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Self

import yaml

from clients.errors import SettingsError
from clients.steps.secrets import MOUNT_ROOT

#: Folders of the root that Kubeflow and the steps need for themselves.
_TAKEN = (
    *("bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"),
    *(".cache", ".config", ".local", "gcs", "kfp-launcher", "minio", "s3"),
)

#: The Secret whose mount tells a step that reads or writes files of a run; such a step gets the volumes.
_STORES = f"{MOUNT_ROOT}/storage"


@dataclasses.dataclass(frozen=True)
class Volume:
    """A claim and where it is mounted.

    Attributes:
        claim: Name of a PersistentVolumeClaim in the namespace of the run; several pods write to it at a time, so its
            access mode is ReadWriteMany.
        folder: Where pods see it, such as /data.
    """

    claim: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `CLAIM:FOLDER`.

        Raises:
            SettingsError: it is none, or pods need that folder for something else.
        """
        claim, _, folder = text.partition(":")
        # Kubeflow names the volume in the pod after the claim, and those names have no dots.
        is_claim = re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", claim)
        if not is_claim or not re.fullmatch(r"/([^/:][^:]*)?", folder):
            raise SettingsError(
                f"--volume {text}: expected CLAIM:FOLDER, such as shared-data:/data; a claim's name is at most 63 of "
                "a-z, 0-9 and -"
            )
        path = PurePosixPath(folder)
        if ".." in path.parts or len(path.parts) < 2 or path.parts[1] in _TAKEN:
            raise SettingsError(f"--volume {text}: pods need {folder} for themselves. Give another folder, as in /data")
        return cls(claim, str(path))

    def holds(self, path: str) -> bool:
        """Whether a path is in it."""
        return PurePosixPath(path).is_relative_to(self.folder) and ".." not in PurePosixPath(path).parts


def parse_volumes(texts: Iterable[str]) -> tuple[Volume, ...]:
    """Read several, each at a folder of its own.

    Raises:
        SettingsError: one is none, or two have the same claim or folder.
    """
    found = tuple(map(Volume.parse, texts))
    for names in ([volume.claim for volume in found], [volume.folder for volume in found]):
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise SettingsError(f"--volume: {twice} is there twice. Give each claim once, at a folder of its own")
    return found


def with_volumes(compiled: bytes, volumes: Sequence[Volume]) -> bytes:
    """A compiled pipeline whose steps that read or write files mount these volumes."""
    if not volumes:
        return compiled
    head, between, tail = compiled.partition(b"\n---\n")
    platform = yaml.safe_load(tail)
    for config in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        if any(secret["mountPath"] == _STORES for secret in config.get("secretAsVolume", ())):
            config["pvcMount"] = [_mount(volume) for volume in volumes]
    text: str = yaml.safe_dump(platform)
    return head + between + text.encode()


def _mount(volume: Volume) -> dict[str, Any]:
    """A volume as the compiler of KFP writes it, with the field beside that older servers read."""
    return {
        "constant": volume.claim,
        "mountPath": volume.folder,
        "pvcNameParameter": {"runtimeValue": {"constant": volume.claim}},
    }


def volumes_of(spec: Mapping[str, Any]) -> tuple[Volume, ...]:
    """The volumes of a pipeline that a run carries, as the server gives it back."""
    kubernetes = ((spec.get("platform_spec") or {}).get("platforms") or {}).get("kubernetes") or {}
    executors = ((kubernetes.get("deploymentSpec") or {}).get("executors") or {}).values()
    found = {
        (str(mount.get("constant") or ""), str(mount.get("mountPath") or ""))
        for config in executors
        for mount in config.get("pvcMount") or ()
    }
    return tuple(Volume(*one) for one in sorted(found))
