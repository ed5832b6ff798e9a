"""What a pod has from Secrets: files in folders, one for each Secret, that stand for environment variables.

Files and not variables, for Kubeflow Pipelines before 2.15 cannot leave out a variable whose Secret is absent, but can
leave out a folder (kubeflow/pipelines #12495).
"""

from collections.abc import Mapping
from pathlib import Path

#: Below it each Secret has a folder.
MOUNT_ROOT = "/etc/kubeflow-llm-inference"

#: The Secret in which a stock Kubeflow has the keys of its own store, in every namespace that runs pipelines.
ARTIFACT_STORE = "mlpipeline-minio-artifact"

_AS_THEY_ARE = {
    "storage": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
    ),
    "endpoint": ("OPENAI_API_KEY",),
    "langfuse": ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGFUSE_BASE_URL", "LANGFUSE_HOST"),
}

#: Folder to the keys that are read, and the variable that each stands for. Kubeflow's own store has variables of its
#: own: a pod may have an identity at Amazon, which they must not replace.
SECRETS: Mapping[str, Mapping[str, str]] = {
    "artifact-store": {"accesskey": "KLLM_STORE_ACCESS_KEY", "secretkey": "KLLM_STORE_SECRET_KEY"},
    **{folder: {key: key for key in keys} for folder, keys in _AS_THEY_ARE.items()},
}


def mounted(root: str = MOUNT_ROOT) -> dict[str, str]:
    """The variables that the pod's Secrets stand for; an absent or empty file stands for none.

    Args:
        root: Where the folders are.
    """
    found = {}
    for folder, keys in SECRETS.items():
        for key, variable in keys.items():
            try:
                value = (Path(root) / folder / key).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError):
                continue
            if value:
                found[variable] = value
    return found
