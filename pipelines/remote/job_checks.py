"""What can be known to be wrong with a job before a file is uploaded, a server asked, or a pod started."""

import datetime as dt
import difflib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from clients.batch.options import RunOptions
from clients.errors import SettingsError
from clients.prompts.start import date_of
from clients.serving.deploy import AFTER_RUN_CHOICES
from clients.serving.spec import PROFILES
from clients.steps.boundary import whole_numbers
from clients.steps.secrets import ARTIFACT_STORE
from clients.storage import is_uri
from pipelines.remote.parameters import Package

#: Least values of parameters that are numbers.
_LEAST = {"shards": 1, "concurrency": 0, "server_wait_s": 0, "replicas": 0, "gpus_per_replica": 0, "ready_timeout_s": 1}

#: Parameters with a few words to choose from.
_CHOICES: Mapping[str, tuple[str, ...]] = {"after_run": AFTER_RUN_CHOICES, "profile": tuple(PROFILES)}

#: Words in braces that `prompts` and `output` may have, see `clients.prompts.start`; any other stays as it is.
_MACROS = ("date", "yesterday", "run")

#: Names that Kubeflow itself gives volumes of a pod.
_VOLUMES_OF_KUBEFLOW = ("kfp-launcher", "gcs-scratch", "s3-scratch", "minio-scratch")


def check_values(arguments: Mapping[str, Any], package: Package) -> None:
    """Refuse values with which the run would fail, wherever they come from: a flag, a --set, an earlier run.

    Args:
        arguments: The pipeline's; those that are missing have their defaults.
        package: The pipeline, with its volumes.

    Raises:
        SettingsError: one cannot be used.
    """
    for name, least in _LEAST.items():
        if arguments.get(name, least) < least:
            raise SettingsError(f"{name} must be at least {least}, found {arguments[name]}")
    if not 0 <= (rate := arguments.get("max_error_rate", 0)) <= 1:
        raise SettingsError(f"max_error_rate must be between 0 and 1, found {rate:g}")
    for name, choices in _CHOICES.items():
        if (value := arguments.get(name, choices[0])) not in choices:
            raise SettingsError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    options = RunOptions.from_json(whole_numbers(arguments.get("options") or {}))
    date_of(str(arguments.get("run_date", "")), dt.datetime.now(dt.UTC))
    if host := own_machine(str(arguments.get("endpoint_url", ""))):
        raise SettingsError(f"endpoint_url: {host} is each pod itself there. Give the endpoint's name in the cluster")
    for name in ("prompts", "output", "state"):
        _check_path(name, str(arguments.get(name, "")), package)
    for name in ("prompts", "output"):
        _check_macros(name, str(arguments.get(name, "")))
    _check_path("lengths_from", options.lengths_from, package)
    _check_secrets(arguments, package)


def own_machine(url: str) -> str:
    """The name in an address by which a machine means itself; "" when there is none."""
    return next((name for name in ("localhost", "127.0.0.1", "[::1]") if f"//{name}" in url), "")


def _check_path(name: str, value: str, package: Package) -> None:
    if not value or value.startswith("inline:") or any(one.holds(value) for one in package.volumes):
        return
    if is_uri(value):
        if name == "prompts" and not urlsplit(value).path.strip("/"):
            raise SettingsError(
                f"prompts is {value}, which names no file. Give one in it: {value.rstrip('/')}/prompts.jsonl"
            )
        return
    if re.match(r"[a-z0-9]+:/", value):
        raise SettingsError(f"{name} is {value}, no address. Did you mean {value.replace(':/', '://', 1)}?")
    mounted = ", ".join(volume.folder for volume in package.volumes) or "none"
    raise SettingsError(
        f"{name} is {value}, which no pod can see (volumes: {mounted}). Give an address such as s3://bucket/{name}, or "
        "a path in a volume: --volume CLAIM:FOLDER"
    )


def _check_macros(name: str, value: str) -> None:
    """Refuse what is all but a macro: nobody has a folder of that name, and the run would look for it at night."""
    for word in re.findall(r"\{(\w+)\}", "" if value.startswith("inline:") else value):
        if word not in _MACROS and (meant := difflib.get_close_matches(word.lower(), _MACROS, 1)):
            raise SettingsError(f"{name} has {{{word}}}, which nothing stands for. Did you mean {{{meant[0]}}}?")


def _check_secrets(arguments: Mapping[str, Any], package: Package) -> None:
    """Refuse names of Secrets and claims with which no pod starts: Kubeflow names a pod's volumes after them."""
    names = {
        parameter: str(arguments.get(parameter, package.inputs[parameter].get("defaultValue", "")))
        for parameter in ("storage_secret", "endpoint_secret", "langfuse_secret")
        if parameter in package.inputs
    }
    taken = [*names.values(), ARTIFACT_STORE, *_VOLUMES_OF_KUBEFLOW]
    for parameter, name in names.items():
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise SettingsError(
                f"{parameter} must be at most 63 of a-z, 0-9 and -, found {name!r}. Leave it out if there is no Secret"
            )
        if taken.count(name) > 1:
            raise SettingsError(f"{parameter} {name!r} is in use for something else: give each its own Secret")
    if clash := next((volume.claim for volume in package.volumes if volume.claim in taken), ""):
        raise SettingsError(f"--volume {clash}: a Secret of a pod has that name, too. Make a claim of another name")
