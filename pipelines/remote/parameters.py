"""What a compiled pipeline takes, and whether arguments fit, before anything is sent."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from clients.errors import SettingsError
from pipelines.catalog import COMPILED, compiled_path
from pipelines.volumes import Volume, with_volumes

#: Most bytes of a run's arguments. Argo's record of a run holds them some five times, beside the pipeline's code as
#: often, and Argo ends the run when it grows beyond 1 MiB (tests/contract/test_kubeflow_limits.py); and a pod gets them
#: twice in one variable of at most 128 KiB.
_MOST_BYTES = {"batch_client": 48_000, "batch_inference": 20_000}

_TYPES: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "STRING": ("text", str),
    "NUMBER_INTEGER": ("a whole number", int),
    "NUMBER_DOUBLE": ("a number", (int, float)),
    "BOOLEAN": ("true or false", bool),
    "LIST": ('a JSON list, such as ["a", "b"]', list),
    "STRUCT": ('a JSON object, such as {"max_tokens": 1024}', dict),
}


@dataclasses.dataclass(frozen=True)
class Package:
    """One compiled pipeline.

    Attributes:
        name: Its name in the catalog, such as batch_client.
        data: The YAML as it stands in its file, or with volumes.
        volumes: What its pods mount.
    """

    name: str
    data: bytes
    volumes: tuple[Volume, ...] = ()

    @classmethod
    def named(cls, name: str) -> "Package":
        """Read a pipeline of the catalog.

        Raises:
            SettingsError: there is none of that name.
        """
        path = compiled_path(name)
        if not path.is_file():
            raise SettingsError(f"there is no {path}. Write it with: python -m pipelines.compile")
        return cls(name, path.read_bytes())

    def mounting(self, volumes: tuple[Volume, ...]) -> "Package":
        """The pipeline with these volumes in the pods of the steps that read or write files."""
        return dataclasses.replace(self, data=with_volumes(self.data, volumes), volumes=volumes)

    @cached_property
    def documents(self) -> list[dict[str, Any]]:
        """The pipeline, and what Kubernetes is to do for it when there is such a part."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster on 300 kB
        return [document for document in yaml.load_all(self.data, Loader=loader) if document]

    @cached_property
    def title(self) -> str:
        """The pipeline's own name, such as batch-client."""
        return str(self.documents[0]["pipelineInfo"]["name"])

    @cached_property
    def digest(self) -> str:
        """Short hash of the content, the same for the same file."""
        return hashlib.sha256(self.data).hexdigest()[:12]

    @property
    def spec(self) -> dict[str, Any]:
        """The pipeline as a run carries it."""
        if len(self.documents) == 1:
            return self.documents[0]
        return {"pipeline_spec": self.documents[0], "platform_spec": self.documents[1]}

    @property
    def most_bytes(self) -> int:
        """Most bytes that all arguments of a run may have together."""
        return _MOST_BYTES[self.name]

    @property
    def most_inline(self) -> int:
        """Most characters of a file that travels inside the arguments."""
        return self.most_bytes // 2

    @cached_property
    def inputs(self) -> Mapping[str, Mapping[str, Any]]:
        """Name of each parameter and its definition."""
        found: Mapping[str, Mapping[str, Any]] = self.documents[0]["root"]["inputDefinitions"]["parameters"]
        return found

    def read(self, name: str, text: str) -> Any:
        """The value of a parameter as its type wants it, from the text of a --set.

        Raises:
            SettingsError: there is no such parameter, or the text is no such value.
        """
        kind = self._kind(name)
        if kind == "STRING":
            return text
        try:
            value = json.loads(text, parse_constant=_no_number)
        except ValueError:
            value = None
        if not _fits(kind, value):
            raise SettingsError(f"--set {name}={text}: expected {_TYPES[kind][0]}")
        return value

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Compare arguments with the pipeline's parameters.

        Raises:
            SettingsError: an unknown name, a value of another type, a parameter that is missing, or too much text.
        """
        for name, value in arguments.items():
            kind = self._kind(name)
            if not _fits(kind, value):
                raise SettingsError(f"{self.name}: {name} is {value!r}; expected {_TYPES[kind][0]}")
        for name, definition in self.inputs.items():
            if name not in arguments and not definition.get("isOptional") and "defaultValue" not in definition:
                raise SettingsError(f"{self.name} needs {name}. Give {_flag(name)}")
        size = len(json.dumps(arguments, ensure_ascii=False).encode())
        if size > self.most_bytes:
            largest = max(arguments, key=lambda name: len(str(arguments[name])))
            raise SettingsError(
                f"the arguments are {size:,} bytes, more than the {self.most_bytes:,} that a run can carry; the "
                f"largest is {largest}. Put it in a file that the pods can read."
            )

    def _kind(self, name: str) -> str:
        if name not in self.inputs:
            near = difflib.get_close_matches(name, self.inputs, n=1)
            mend = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(self.inputs)}."
            raise SettingsError(f"{self.name} has no parameter {name!r}. {mend}")
        return str(self.inputs[name]["parameterType"])


def packages() -> Mapping[str, str]:
    """Title of each compiled pipeline and its name in the catalog."""
    return {path.stem.replace("_", "-"): path.stem for path in sorted(Path(COMPILED).glob("*.yaml"))}


def title_of(spec: Mapping[str, Any]) -> str:
    """The name of a pipeline from the spec that a run or a version carries; "" when there is none."""
    inner = spec.get("pipeline_spec") or spec
    return str((inner.get("pipelineInfo") or {}).get("name") or "")


def whole(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a server gave back, with the whole numbers that it made 4.0 of."""
    return {name: _whole(value) for name, value in arguments.items()}


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")


def _fits(kind: str, value: Any) -> bool:
    wanted = _TYPES[kind][1]
    if isinstance(value, bool):
        return kind == "BOOLEAN"
    return isinstance(value, wanted)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _flag(name: str) -> str:
    return {"endpoint_url": "--url", "prompts": "--prompts"}.get(name, f"--set {name}=VALUE")
