"""What vLLM prints: the lines of each stage of a start, and the last lines of each way to die."""

from datetime import UTC, datetime

MODEL = "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8"


def info(who: str, where: str, words: str, level: str = "INFO") -> str:
    moment = datetime.now(UTC).strftime("%m-%d %H:%M:%S")
    return f"({who}) {level} {moment} [{where}] {words}"


def starting(model: str = MODEL) -> list[str]:
    api, engine = "APIServer pid=1", "EngineCore_DP0 pid=271"
    return [
        info(api, "api_server.py:1839", "vLLM API server version 0.32.0"),
        info(api, "utils.py:253", f"non-default args: {{'model_tag': '{model}', 'tensor_parallel_size': 8}}"),
        info(api, "model.py:631", "Resolved architecture: Qwen3MoeForCausalLM"),
        info(api, "model.py:1755", "Using max model len 131072"),
        info(engine, "core.py:93", f"Initializing a V1 LLM engine (v0.32.0) with config: model='{model}'"),
        info(
            "Worker_TP0 pid=312",
            "parallel_state.py:1203",
            "world_size=8 rank=0 local_rank=0 distributed_init_method=tcp://127.0.0.1:51239 backend=nccl",
        ),
        info("Worker_TP0 pid=312", "gpu_model_runner.py:3562", f"Starting to load model {model}..."),
    ]


def downloaded(model: str = MODEL) -> list[str]:
    said = f"Time spent downloading weights for {model}: 152.912391 seconds"
    return [info("Worker_TP0 pid=312", "weight_utils.py:574", said)]


def loading() -> list[str]:
    start = "Loading safetensors checkpoint shards: "
    shards = [
        f"{start}{100 * n // 7:3d}% Completed | {n}/7 [00:{4 * n:02d}<00:{28 - 4 * n:02d},  4.01s/it]" for n in range(8)
    ]
    return [
        *(f"(Worker_TP0 pid=312) {line}" for line in shards),
        info("Worker_TP0 pid=312", "default_loader.py:397", "Loading weights took 28.14 seconds"),
        info("Worker_TP0 pid=312", "gpu_model_runner.py:3659", "Model loading took 3.91 GiB memory and 30.31 seconds"),
    ]


def compiling() -> list[str]:
    worker, engine = "Worker_TP0 pid=312", "EngineCore_DP0 pid=271"
    cache = "/cache/vllm/torch_compile_cache/7b98594710/rank_0_0/backbone"
    graphs = [
        f"({worker}) Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): {100 * n // 51:3d}%|{'█' * (n // 6)}"
        f"| {n}/51 [00:{n // 5:02d}<00:{(51 - n) // 5:02d},  5.02it/s]"
        for n in (0, 17, 34, 51)
    ]
    return [
        info(worker, "backends.py:1051", f"Using cache directory: {cache} for vLLM's torch.compile"),
        info(worker, "backends.py:1128", "Dynamo bytecode transform time: 8.54 s"),
        info(worker, "backends.py:366", "Compiling a graph for compile range (1, 8192) takes 21.60 s"),
        info(worker, "monitor.py:34", "torch.compile takes 30.66 s in total"),
        info(worker, "gpu_worker.py:298", "Available KV cache memory: 64.02 GiB"),
        info(engine, "kv_cache_utils.py:1307", "GPU KV cache size: 2,912,432 tokens"),
        info(engine, "kv_cache_utils.py:1312", "Maximum concurrency for 131,072 tokens per request: 22.22x"),
        *graphs,
        info(worker, "gpu_model_runner.py:4659", "Graph capturing finished in 11 secs, took 1.21 GiB"),
        info(engine, "core.py:210", "init engine (profile, create kv cache, warmup model) took 61.12 seconds"),
    ]


def serving() -> list[str]:
    api = "APIServer pid=1"
    return [
        info(api, "api_server.py:1351", "Starting vLLM API server 0 on http://0.0.0.0:8080"),
        f"({api}) INFO:     Started server process [1]",
        f"({api}) INFO:     Waiting for application startup.",
        f"({api}) INFO:     Application startup complete.",
        f'({api}) INFO:     10.0.0.1:41234 - "GET /health HTTP/1.1" 200 OK',
    ]


# ------------------------------------------------------------- ways to die

_PACKAGES = "/usr/local/lib/python3.12/dist-packages"
_API = "(APIServer pid=1)"
_WORKER = "(Worker_TP0 pid=312)"


def _lines(who: str, text: str) -> list[str]:
    """Lines with who prints them in front. A backslash at an end joins a line of this file to the next."""
    return [f"{who} {line}" for line in text.strip("\n").splitlines()]


def engine_died(cause: str) -> list[str]:
    """A traceback of the engine, and that of the API server that follows it."""
    engine = "(EngineCore_DP0 pid=271)"
    found = [info("EngineCore_DP0 pid=271", "core.py:708", "EngineCore failed to start.", "ERROR")]
    found += _lines(
        engine,
        f"""
Traceback (most recent call last):
  File "{_PACKAGES}/vllm/v1/engine/core.py", line 699, in run_engine_core
    engine_core = EngineCoreProc(*args, **kwargs)
{cause}
""",
    )
    return found + _lines(
        _API,
        """
Traceback (most recent call last):
  File "/usr/local/bin/vllm", line 10, in <module>
    sys.exit(main())
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}
""",
    )


GPU_MEMORY = """\
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 79.10 GiB of \
which 45.19 MiB is free. Process 12 has 79.05 GiB memory in use. Of the allocated memory 77.90 GiB is allocated by \
PyTorch, and 312.10 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try \
setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."""
NO_CACHE_BLOCKS = """\
ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing \
the engine."""
CONTEXT_TOO_LONG = """\
ValueError: To serve at least one request with the models's max seq len (262144), (24.0 GiB KV cache is needed, \
which is larger than the available KV cache memory (8.4 GiB). Based on the available memory, the estimated maximum \
model length is 91728. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing \
the engine."""
GPU_TAKEN = """\
ValueError: Free memory on device cuda:0 (12.31/79.10 GiB) on startup is less than desired GPU memory utilization \
(0.92, 72.77 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."""
BLOCK_SHAPE = """\
ValueError: The output_size of gate's and up's weight = 48 is not divisible by weight quantization block_n = 128."""
UNKNOWN = f"""\
  File "{_PACKAGES}/vllm/v1/worker/gpu_worker.py", line 213, in init_device
    self.model_runner = GPUModelRunner(self.vllm_config, self.device)
AssertionError: flux capacitor is out of phase"""


def gated(model: str) -> list[str]:
    """A token that may not read a gated repository, or none."""
    url = f"https://huggingface.co/{model}"
    return _lines(
        _API,
        f"""
Traceback (most recent call last):
  File "{_PACKAGES}/huggingface_hub/utils/_http.py", line 409, in hf_raise_for_status
    response.raise_for_status()
requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: {url}/resolve/main/config.json
huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6925a1f0-3b6e)

Cannot access gated repo for url {url}/resolve/main/config.json.
Access to model {model} is restricted. You must have access to it and be authenticated to access it. Please log in.
OSError: You are trying to access a gated repo.
Make sure to have access to it at {url}.
401 Client Error. (Request ID: Root=1-6925a1f0-3b6e)
""",
    )


def forbidden(model: str) -> list[str]:
    """A fine-grained token without the right to read gated repositories."""
    return _lines(
        _API,
        f"""
Traceback (most recent call last):
huggingface_hub.errors.HfHubHTTPError: 403 Forbidden: Please enable access to public gated repositories in your \
fine-grained token settings to view this repository..
Cannot access content at: https://huggingface.co/{model}/resolve/main/config.json.
Make sure your token has the correct permissions.
""",
    )


def no_repository(model: str, status: str = "404 Client Error.") -> list[str]:
    """A model that is not there; to somebody without a valid token the hub says 401 for it."""
    return _lines(
        _API,
        f"""
Traceback (most recent call last):
huggingface_hub.errors.RepositoryNotFoundError: {status} (Request ID: Root=1-6925a1f0-3b6e)

Repository Not Found for url: https://huggingface.co/{model}/resolve/main/config.json.
Please make sure you specified the correct `repo_id` and `repo_type`.
OSError: {model} is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'
If this is a private repository, make sure to pass a token having permission to this repo either by logging in with \
`hf auth login` or by passing `token=<your_token>`
""",
    )


BAD_ARGUMENT = [
    "usage: vllm [-h] [-v]",
    "            {chat,complete,serve,launch,bench,collect-env,run-batch} ...",
    "vllm: error: unrecognized arguments: --disable-log-requests",
]
BAD_PARSER = _lines(
    _API,
    """
Traceback (most recent call last):
KeyError: "Reasoning parser 'qwen33' not found. Available parsers: deepseek_r1, qwen3"
""",
)
NO_SPACE = _lines(
    _WORKER,
    f"""
Traceback (most recent call last):
  File "{_PACKAGES}/huggingface_hub/file_download.py", line 546, in xet_get
RuntimeError: Data processing error: CAS service error : IO Error: No space left on device (os error 28)
OSError: [Errno 28] No space left on device
""",
)
