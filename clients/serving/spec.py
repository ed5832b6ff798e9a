"""What is to be served, and how: every choice of a user, checked before anything reaches a cluster."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clients.errors import SettingsError
from clients.serving import vllm_arguments
from clients.serving.labels import GPU_PRODUCT
from clients.serving.quantity import number
from clients.serving.vllm_arguments import Argument

#: Key of the Hugging Face token in its Secret, and name of the variable that carries it.
HF_TOKEN_KEY = "HF_TOKEN"  # noqa: S105 - a name, no secret

#: What kserve/vllm/hf-secret.yaml holds until a person writes a token there.
TOKEN_PLACEHOLDER = "REPLACE_WITH_YOUR_TOKEN"  # noqa: S105 - stands where a secret is to be

DEFAULT_MODEL = "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8"

#: Names under which known models are served; others by the last part of their id.
_SERVED_NAMES = {DEFAULT_MODEL: "qwen3-30b-fp8"}

#: Context lengths that are set where the user sets none; other models get what their own configuration says.
#: Half of what this model could do: a longer context leaves the cache room for fewer rows at a time.
_CONTEXTS = {DEFAULT_MODEL: 131072}

#: Seconds in which requests in flight may end after a stop, before they are cut off.
_DRAIN_S = 120

#: A claim is for many models over the years; a pod's own folder is on a node's disk, and for one model.
_CLAIM_SIZE, _FOLDER_SIZE = "3Ti", "200Gi"

#: A replica is one pod, so it gets no more GPUs than a node has.
_MAX_GPUS = 16

_MAX_REPLICAS = 512

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")
_IMAGE = re.compile(r"[^\s@]+?(:(?P<tag>[\w][\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?", re.ASCII)
_FLOATING = re.compile(r"(latest|main|master|dev|stable|nightly)([-_.](?!.*[0-9a-f]{7,40}$).*)?", re.IGNORECASE)
_WORD = re.compile(r"[^\s-]\S*")

#: Names such as Qwen3-30B-A3B tell the active parameters: these models have experts.
_EXPERTS = re.compile(r"\d+[BT]-A\d+(\.\d+)?B", re.IGNORECASE)

#: Of the Qwen3 family, those that do not think.
_NOT_THINKING = re.compile(r"instruct|coder|base|embedding|reranker|guard|asr|tts", re.IGNORECASE)

#: Flags that, multiplied with the tensor-parallel size, are the GPUs that one server takes.
_OTHER_SIZES = ("--pipeline-parallel-size", "--data-parallel-size", "--prefill-context-parallel-size")

_TOLERATION_FIELDS = ("key", "operator", "value", "effect", "tolerationSeconds")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A shape of the service.

    Attributes:
        replicas: Pods that serve.
        gpus_per_replica: GPUs of each.
        arguments: What vLLM is told in this shape.
    """

    replicas: int
    gpus_per_replica: int
    arguments: tuple[Argument, ...] = ()


PROFILES = {
    # The guide's shape. One request is answered fastest, for 8 GPUs work on it.
    "guide": Profile(replicas=2, gpus_per_replica=8),
    # The same 16 GPUs, each a replica of its own: nothing crosses from GPU to GPU, so more tokens a second in all. The
    # mode doubles how many requests and tokens vLLM takes into one step.
    "throughput": Profile(
        replicas=16,
        gpus_per_replica=1,
        arguments=(vllm_arguments.argument("--performance-mode", "throughput"),),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """How a model is served. What is left empty or 0 is filled in, so that every field can be read as it will be.

    Attributes:
        name: Name of the InferenceService; also of its label `app`.
        model_id: Model on the Hugging Face Hub, or a path within the container.
        served_model_name: Name that requests give as `model`; "" for a short form of `model_id`.
        profile: `guide` (2 replicas of 8 GPUs) or `throughput` (16 replicas of 1 GPU).
        replicas: Pods that serve; 0 for as many as the profile says.
        gpus_per_replica: GPUs of each; 0 for as many as the profile says.
        image: Image with vLLM, by a fixed version.
        max_model_len: Tokens of prompt and answer together; 0 for 131072 with the default model, and for what the
            model's own configuration says with others (then the field stays 0).
        vllm_args: More arguments of `vllm serve`, as typed in a shell. A flag given here replaces ours.
        gpu_product: Value of the node label `nvidia.com/gpu.product`; "" for any GPU.
        node_selector: More labels that a node must have.
        tolerations: More taints that are tolerated, as objects of the Kubernetes API.
        hf_secret: Secret whose key HF_TOKEN holds a Hugging Face token; "" for public models.
        model_cache: Claim that keeps downloaded models; "" for a folder that goes with the pod.
        storage_class: Of the claim, where it has to be made; "" for the cluster's default.
        cache_size: Of the claim, where it has to be made; without a claim, of the pod's folder, and then 3Ti, the
            default, stands for 200Gi.
        cpu: Cores of a replica; "" for 8 a GPU.
        memory: Of a replica; "" for 64Gi a GPU.
        ipc_lock: Whether a replica of several GPUs may lock memory, as InfiniBand needs it. Namespaces with the Pod
            Security level `baseline` or `restricted` refuse such pods.
    """

    name: str = "vllm-qwen3-30b-fp8"
    model_id: str = DEFAULT_MODEL
    served_model_name: str = ""
    profile: str = "guide"
    replicas: int = 0
    gpus_per_replica: int = 0
    image: str = "vllm/vllm-openai:v0.32.0"
    max_model_len: int = 0
    vllm_args: str = ""
    gpu_product: str = "NVIDIA-H100-80GB-HBM3"
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    hf_secret: str = "hf-secret"  # noqa: S105 - its name
    model_cache: str = "model-cache"
    storage_class: str = ""
    cache_size: str = _CLAIM_SIZE
    cpu: str = ""
    memory: str = ""
    ipc_lock: bool = True

    def __post_init__(self) -> None:
        self._check_names()
        self._fill_in()
        self._check_numbers()
        self._check_placement()
        self._check_parallel_sizes()

    def _fill_in(self) -> None:
        """Replace what was left open. Done here, not in properties, so that a field is what will be."""
        if self.profile not in PROFILES:
            raise SettingsError(f"profile must be one of {', '.join(PROFILES)}, found {self.profile!r}")
        shape = PROFILES[self.profile]
        short = _SERVED_NAMES.get(self.model_id) or self.model_id.rstrip("/").rsplit("/", 1)[-1].lower()
        self._set_if_open("served_model_name", short)
        self._set_if_open("replicas", shape.replicas)
        self._set_if_open("gpus_per_replica", shape.gpus_per_replica)
        self._set_if_open("max_model_len", _CONTEXTS.get(self.model_id, 0))
        if not self.model_cache and self.cache_size == _CLAIM_SIZE:
            object.__setattr__(self, "cache_size", _FOLDER_SIZE)
        object.__setattr__(self, "node_selector", dict(self.node_selector))
        object.__setattr__(self, "tolerations", tuple(_toleration(each) for each in self.tolerations))

    def _set_if_open(self, field: str, value: object) -> None:
        if getattr(self, field) in ("", 0) and getattr(self, field) is not False:
            object.__setattr__(self, field, value)

    def _check_names(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > 48:
            raise SettingsError(
                f"service_name must be at most 48 small letters, digits and hyphens that begin with a letter and end "
                f"with none of the hyphens, found {self.name!r}"
            )
        if self.name == "vllm":
            raise SettingsError(
                "service_name must not be 'vllm': a Service of that name sets VLLM_PORT in every pod of the namespace, "
                "on which vLLM dies. Choose another, such as vllm-qwen3-30b-fp8"
            )
        for field in ("hf_secret", "model_cache", "storage_class"):
            _check_object_name(field, getattr(self, field))
        _check_word("model_id", self.model_id)
        if self.served_model_name:
            _check_word("served_model_name", self.served_model_name)
        _check_image(self.image)

    def _check_numbers(self) -> None:
        _check_range("replicas", self.replicas, 1, _MAX_REPLICAS)
        _check_range("gpus_per_replica", self.gpus_per_replica, 1, _MAX_GPUS)
        _check_range("max_model_len", self.max_model_len, 0, 1 << 24)
        _check_range("vllm_args: --shutdown-timeout", self.drain_s, 0, 24 * 3600)
        _check_quantity("cache_size", self.cache_size, at_least="1Gi")
        if self.cpu:
            _check_quantity("cpu", self.cpu, at_least="1")
        if self.memory:
            _check_quantity("memory", self.memory, at_least="1Gi")

    def _check_placement(self) -> None:
        _check_label("gpu_product", GPU_PRODUCT, self.gpu_product)
        for key, value in self.node_selector.items():
            _check_label("node_selector", key, value)

    def _check_parallel_sizes(self) -> None:
        """Refuse sizes that vLLM cannot make of the GPUs, or that leave some of them idle."""
        sizes = {flag: vllm_arguments.number(self.extra_arguments, flag, 1) for flag in _OTHER_SIZES}
        sizes["--tensor-parallel-size"] = self.tensor_parallel
        if math.prod(sizes.values()) != self.gpus_per_replica:
            told = " x ".join(f"{flag} {size}" for flag, size in sizes.items() if size > 1)
            raise SettingsError(
                f"a replica has {self.gpus_per_replica} GPUs and vllm_args take {math.prod(sizes.values())} ({told}): "
                "correct gpus_per_replica or the sizes"
            )
        tensor = self.tensor_parallel
        if tensor & (tensor - 1) and not any(each.flag == "--tensor-parallel-size" for each in self.extra_arguments):
            raise SettingsError(
                f"gpus_per_replica must be 1, 2, 4, 8 or 16, found {tensor}: attention heads are divided evenly among "
                "the GPUs. If this model allows it, say --tensor-parallel-size in vllm_args too"
            )

    @functools.cached_property
    def extra_arguments(self) -> tuple[Argument, ...]:
        """`vllm_args`, read."""
        return vllm_arguments.parse(self.vllm_args)

    @property
    def tensor_parallel(self) -> int:
        """GPUs over which each layer is divided: all, unless `vllm_args` says more of how they are used."""
        others = math.prod(vllm_arguments.number(self.extra_arguments, flag, 1) for flag in _OTHER_SIZES)
        rest = max(1, self.gpus_per_replica // others)
        return vllm_arguments.number(self.extra_arguments, "--tensor-parallel-size", rest)

    @property
    def expert_parallel(self) -> bool:
        """Whether whole experts are placed on GPUs, instead of a slice of each.

        The default model's experts are 768 wide and quantised in blocks of 128: divided by 4 and more they end within
        a block. vLLM refuses the flag for models without experts, so it is only given where the name tells of them, as
        in 30B-A3B; for other such models it stands in vllm_args.
        """
        ranks = self.tensor_parallel * vllm_arguments.number(self.extra_arguments, "--data-parallel-size", 1)
        return ranks >= 4 and _EXPERTS.search(self.model_id) is not None

    @property
    def reasoning_parser(self) -> str:
        """Name of vLLM's parser that tells thinking from the answer; "" where the model is not known to need one.

        A parser on a model that does not think would take its whole answer for thinking.
        """
        name = self.model_id.rstrip("/").rsplit("/", 1)[-1]
        return "qwen3" if "qwen3" in name.lower() and not _NOT_THINKING.search(name) else ""

    @property
    def drain_s(self) -> int:
        """Seconds in which requests in flight may end after a stop."""
        return vllm_arguments.number(self.extra_arguments, "--shutdown-timeout", _DRAIN_S, least=0)

    @property
    def model(self) -> str:
        """The name that requests give as `model`."""
        return self.served_model_name

    @property
    def gpus(self) -> int:
        """GPUs of all replicas together."""
        return self.replicas * self.gpus_per_replica

    @property
    def labels(self) -> dict[str, str]:
        """Labels of what belongs to the service."""
        return {"app": self.name}


def _check_range(field: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(f"{field} must be a whole number from {least} to {most}, found {value!r}")


def _check_word(field: str, value: str) -> None:
    if not _WORD.fullmatch(value):
        raise SettingsError(f"{field} must be one word that does not begin with a hyphen, found {value!r}")


def _check_object_name(field: str, value: str) -> None:
    if value and (not _OBJECT_NAME.fullmatch(value) or len(value) > 253):
        raise SettingsError(
            f"{field} must be the name of an object (small letters, digits, hyphens and dots), found {value!r}"
        )


def _check_image(image: str) -> None:
    found = _IMAGE.fullmatch(image)
    if not found or not (found["tag"] or found["digest"]):
        raise SettingsError(f"image must name a version, found {image!r}: write it such as vllm/vllm-openai:v0.32.0")
    if not found["digest"] and _FLOATING.fullmatch(found["tag"]):
        raise SettingsError(
            f"image {image!r} may be another one tomorrow: write a fixed version such as vllm/vllm-openai:v0.32.0"
        )


def _check_quantity(field: str, value: str, *, at_least: str) -> None:
    if not _QUANTITY.fullmatch(value) or number(value) < number(at_least):
        raise SettingsError(f"{field} must be a quantity of at least {at_least}, such as 64 or 512Gi, found {value!r}")


def _check_label(field: str, key: object, value: object) -> None:
    if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
        raise SettingsError(f"{field}: {key!r} cannot be a label of a node: write it such as nvidia.com/gpu.product")
    if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
        raise SettingsError(
            f"{field}: the value of {key} must be text of at most 63 letters, digits, '-', '_' and '.', found {value!r}"
        )


def _toleration(given: object) -> dict[str, Any]:
    """A toleration in the API's form; its seconds may come as a float, as numbers within JSON do in a pipeline."""
    if not isinstance(given, Mapping):
        raise SettingsError(f"tolerations must be a list of objects, found {given!r}: write them as for a pod")
    unknown = sorted(set(given) - set(_TOLERATION_FIELDS))
    if unknown:
        raise SettingsError(f"tolerations: {unknown[0]!r} is none of {', '.join(_TOLERATION_FIELDS)}")
    found = {field: given[field] for field in _TOLERATION_FIELDS if given.get(field) not in (None, "")}
    if found.get("operator", "Equal") not in ("Equal", "Exists"):
        raise SettingsError(f"tolerations: operator must be Equal or Exists, found {found['operator']!r}")
    if found.get("effect", _EFFECTS[0]) not in _EFFECTS:
        raise SettingsError(f"tolerations: effect must be one of {', '.join(_EFFECTS)}, found {found['effect']!r}")
    if found.get("operator") == "Exists" and "value" in found:
        raise SettingsError(f"tolerations: operator Exists takes no value, found {found['value']!r}")
    if "key" not in found and found.get("operator") != "Exists":
        raise SettingsError("tolerations: one without a key must have the operator Exists, which tolerates every taint")
    return _typed(found)


def _typed(toleration: dict[str, Any]) -> dict[str, Any]:
    for field in ("key", "value"):
        if not isinstance(toleration.get(field, ""), str):
            raise SettingsError(f"tolerations: {field} must be text, found {toleration[field]!r}: put it in quotes")
    if "tolerationSeconds" in toleration:
        seconds = toleration["tolerationSeconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != int(seconds):
            raise SettingsError(f"tolerations: tolerationSeconds must be a whole number, found {seconds!r}")
        if toleration.get("effect") != "NoExecute":
            raise SettingsError("tolerations: tolerationSeconds is only for the effect NoExecute")
        toleration["tolerationSeconds"] = int(seconds)
    return toleration
