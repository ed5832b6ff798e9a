"""Why a model server died, from the last lines of its log."""

import dataclasses
import re

from clients.serving.evidence import quoted

#: vLLM's longest errors end with the advice that matters.
_QUOTE = 260

#: What vLLM, torch and a log collector put before a line.
_PREFIX = re.compile(
    r"^(?:\s*\([^()]{0,60}pid=\d+\)|\s*\[rank\d+\]:?|\s*(?:INFO|WARNING|ERROR|CRITICAL|DEBUG) [\d: .-]+\[[^\]]*\])*\s*"
)
#: Echoes of a failure that stands elsewhere in the log.
_ECHO = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineCore failed to start|See root cause"
    r"|no attribute 'workers'|KeyboardInterrupt|CancelledError|TCPStore|BrokenPipeError|resource_tracker|SystemExit"
    r"|destroy_process_group|^Process \w+|^Traceback|^File |^raise |^During handling|^The above exception|^[\s^~|+-]*$"
)
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit)\b(?::|$)|\berror: |^Value error, ")


#: The status that Hugging Face answered with.
_STATUS = re.compile(r"\b(4\d\d|50\d) (?:(?:Client|Server) Error|Forbidden|Unauthorized)")


@dataclasses.dataclass(frozen=True)
class Signature:
    """A known way to die.

    Attributes:
        kind: The cause's kind.
        pattern: What the log says.
        mend: What to do about it.
        crashes: After so many of them it is sure that it will not work.
    """

    kind: str
    pattern: re.Pattern[str]
    mend: str
    crashes: int = 1


def _known(kind: str, pattern: str, mend: str, crashes: int = 1) -> Signature:
    return Signature(kind, re.compile(pattern), mend, crashes)


#: The first that is found anywhere in the log counts: particular ones stand before general ones.
_SIGNATURES = (
    _known(
        "bad_argument",
        r"error: (?:unrecognized arguments|ambiguous option|the following arguments are required|argument )",
        "Correct the vLLM arguments (vllm serve --help of this image's version); see vllm_args",
    ),
    _known(
        "vllm_port",
        r"VLLM_PORT .*appears to be a URI|invalid literal for int\(\) with base 10: 'tcp://",
        "A Service named `vllm` sets VLLM_PORT in every pod: rename that Service",
    ),
    _known(
        "shape",
        r"not divisible by weight quantization block|not aligned with the quantized weight shape",
        "Pass --enable-expert-parallel, or use another --tensor-parallel-size",
    ),
    _known(
        "bad_argument",
        r"(?i)(?:reasoning|tool).{0,20}parser.*(?:not found|chose from)|invalid (?:reasoning|tool).{0,10}parser",
        "Name a parser that this vLLM version has (qwen3 for Qwen3 models)",
    ),
    _known(
        "hf_access",
        r"GatedRepoError|gated repo|not in the authorized list|\b40[13] (?:Client Error|Forbidden|Unauthorized)"
        r"|Invalid user token|RepositoryNotFoundError|Repository Not Found|is not a valid model identifier",
        "Check the model's name, accept its licence on huggingface.co, and put a valid HF_TOKEN into the Secret",
    ),
    _known(
        "hf_access",
        r"OfflineModeIsEnabled|offline mode is enabled|outgoing traffic has been disabled",
        "Fill the model cache first, or unset HF_HUB_OFFLINE",
    ),
    _known("disk_full", r"No space left on device|Errno 28|Disk quota exceeded", "Enlarge the model cache's claim"),
    _known(
        "hf_access",
        r"couldn't connect to 'https?://|LocalEntryNotFoundError|(?:429|50\d) (?:Client|Server) Error.*huggingface"
        r"|\b(?:Connect|Proxy|SSL|NameResolution|MaxRetry|Connection)Error\b|\b(?:Connect|Read)Timeout\b",
        "The pod cannot reach huggingface.co: allow egress or set a proxy or HF_ENDPOINT, or fill the cache beforehand",
        4,
    ),
    _known(
        "gpu_memory",
        r"Free memory on device.*less than desired",
        "Something else uses this GPU's memory: let it go, or lower --gpu-memory-utilization",
        2,
    ),
    _known(
        "gpu_memory",
        r"CUDA out of memory|OutOfMemoryError|No available memory for the cache blocks"
        r"|larger than the (?:available KV cache memory|maximum number of tokens that can be stored)",
        "Lower --max-model-len or --max-num-batched-tokens, adjust --gpu-memory-utilization, or use more GPUs",
    ),
    _known(
        "driver",
        r"CUDA driver version is insufficient|driver on your system is too old|unsupported display driver|Error 80[34]:"
        r"|forward compatibility was attempted",
        "The node's NVIDIA driver is too old for this image: use the image's -cu129 variant, or update the driver",
    ),
    _known(
        "no_gpu",
        r"No CUDA GPUs are available|Failed to infer device type|libcuda\.so\.1: cannot open|Found no NVIDIA driver",
        "No GPU reaches the container: check the GPU limit, the NVIDIA device plugin and the runtime class",
    ),
    _known(
        "architecture",
        r"[Ee]xec format error|no kernel image is available|does not recognize this architecture"
        r"|[Mm]odel architectures .*(?:not supported|failed)|compute capability",
        "This image does not fit the node's processor or GPU, or is too old for the model: use another image or node",
    ),
    _known(
        "ray_missing",
        r"No module named 'ray'|(?i:ray is not installed|(?:cannot|failed to|unable to) import ray|install ray\b)",
        "The stock image has no Ray: use an image with Ray, or --nnodes on a LeaderWorkerSet",
    ),
    _known(
        "shared_memory",
        r"Bus error|shared memory segment|unable to (?:write|mmap|open).*(?:torch_|shm)",
        "Give the pod a larger /dev/shm (an emptyDir with medium: Memory)",
    ),
    _known(
        "nccl",
        r"NCCL error|\bnccl[A-Z]\w*Error|DistBackendError",
        "GPUs cannot talk to each other: set NCCL_DEBUG=INFO, check NCCL_SOCKET_IFNAME, NCCL_IB_HCA and /dev/shm",
        2,
    ),
    _known(
        "bad_argument",
        r"greater than the derived max_model_len|attention heads .*divisible by tensor parallel"
        r"|World size \(\d+\) is larger than|Unknown quantization|^Value error, |validation errors? for \w*Config",
        "Correct this vLLM argument",
    ),
)


def known(lines: list[str]) -> tuple[Signature, str] | None:
    """The known way to die that a log tells of, and the line that says it best: an exception, if there is one."""
    clean = [_PREFIX.sub("", line, count=1) for line in lines]
    for signature in _SIGNATURES:
        found = [line for line in reversed(clean) if signature.pattern.search(line)]
        if found:
            line = next(filter(_EXCEPTION.search, found), found[0])
            status = next(filter(None, map(_STATUS.search, clean)), None) if signature.kind == "hf_access" else None
            return signature, quoted(
                line if status is None or status[1] in line else f"HTTP {status[1]}: {line}", _QUOTE
            )
    return None


def last_words(lines: list[str]) -> str:
    """The line of a log that says most about its end: the last exception, not the frames, nor its echoes elsewhere."""
    clean = [line for line in (_PREFIX.sub("", line, count=1) for line in lines) if not _ECHO.search(line)]
    thrown = next((line for line in reversed(clean) if _EXCEPTION.search(line)), "")
    return quoted(thrown or next(iter(clean[-1:]), ""), _QUOTE)
