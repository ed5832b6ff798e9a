"""Why a model server died, read from the end of its log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.serving.crashes import known, last_words
from clients.serving.evidence import QUOTE, quoted

#: Lines as vLLM, torch, transformers and argparse print them, and the kind of cause that they are.
DEATHS = [
    ("vllm: error: unrecognized arguments: --disable-log-requests", "bad_argument"),
    ("api_server.py: error: argument --dtype: invalid choice: 'fp4' (choose from auto, half)", "bad_argument"),
    ("vllm serve: error: argument --max-model-len: invalid int value: 'many'", "bad_argument"),
    ("KeyError: \"Reasoning parser 'qwen4' not found. Available parsers: deepseek_r1, qwen3\"", "bad_argument"),
    ("KeyError: 'invalid reasoning parser: qwen4 (chose from { deepseek_r1,qwen3 })'", "bad_argument"),
    (
        "  Value error, User-specified max_model_len (999999) is greater than the derived max_model_len (262144)",
        "bad_argument",
    ),
    ("ValueError: World size (16) is larger than the number of available GPUs (8) in this node.", "bad_argument"),
    (
        "ValueError: The output_size of gate's weight = 48 is not divisible by weight quantization block_n = 128.",
        "shape",
    ),
    ("huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)", "hf_access"),
    ("OSError: You are trying to access a gated repo.", "hf_access"),
    ("requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://huggingface.co/x", "hf_access"),
    ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url", "hf_access"),
    ("huggingface_hub.errors.HfHubHTTPError: Invalid user token.", "hf_access"),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them", "hf_access"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "gpu_memory"),
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "gpu_memory"),
    ("ValueError: (4.54 GiB KV cache is needed, which is larger than the available KV cache memory (1.7", "gpu_memory"),
    (
        "ValueError: max seq len (4096) is larger than the maximum number of tokens that can be stored in KV",
        "gpu_memory",
    ),
    ("ValueError: Free memory on device cuda:1 (0.49/79.32 GiB) on startup is less than desired GPU", "gpu_memory"),
    ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version", "driver"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12040).", "driver"),
    ("RuntimeError: Failed to infer device type, please set the environment variable", "no_gpu"),
    ("exec /usr/bin/python3: exec format error", "architecture"),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "architecture"),
    (
        "ValueError: The checkpoint has model type `q9` but Transformers does not recognize this architecture",
        "architecture",
    ),
    ("ModuleNotFoundError: No module named 'ray'", "ray_missing"),
    ("ValueError: VLLM_PORT 'tcp://10.0.0.1:8000' appears to be a URI. This may be caused by", "vllm_port"),
    ("torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/x.cpp:94, unhandled system error", "nccl"),
    ("OSError: [Errno 28] No space left on device", "disk_full"),
]


@pytest.mark.parametrize(("line", "kind"), DEATHS, ids=[f"{kind}-{n}" for n, (_, kind) in enumerate(DEATHS)])
@pytest.mark.parametrize("prefix", ["", "(EngineCore_DP0 pid=387) ERROR 06-30 13:53:19 [core.py:515] ", "[rank0]: "])
def test_a_known_death_is_known_behind_any_prefix(line: str, kind: str, prefix: str) -> None:
    log = ["INFO starting", prefix + line, "RuntimeError: Engine core initialization failed. See root cause above."]
    found = known(log)
    assert found is not None
    assert found[0].kind == kind
    assert found[1].startswith(line.strip()[:40])


def test_what_hugging_face_answered_is_told_with_the_line_that_says_most() -> None:
    log = [
        "(APIServer pid=1) requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co",
        "(APIServer pid=1) OSError: You are trying to access a gated repo.",
        "(APIServer pid=1) 401 Client Error. (Request ID: Root=1-69)",
    ]
    found = known(log)
    assert found is not None
    assert found[1] == "HTTP 401: OSError: You are trying to access a gated repo"


@pytest.mark.parametrize(
    "line",
    [
        "ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): timed out",
        "httpx.ConnectError: [Errno -3] Temporary failure in name resolution",
        "httpx.ReadTimeout: The read operation timed out",
        "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://huggingface.co/x",
    ],
)
def test_a_network_that_fails_may_recover(line: str) -> None:
    found = known([line])
    assert found is not None
    assert (found[0].kind, found[0].crashes) == ("hf_access", 4)


@pytest.mark.parametrize(
    "line",
    [
        "INFO 05-06 20:59:57 [utils.py:278] non-default args: {'reasoning_parser': 'qwen3', 'max_model_len': 8192}",
        "Warning: You are sending unauthenticated requests to the HF Hub. Please set a HF_TOKEN",
        "INFO 05-06 [cuda.py:476] Using FLASH_ATTN attention backend; NCCL version 2.27.5+cuda12.9",
        "INFO 05-06 21:00:16 [gpu_worker.py:1] Available KV cache memory: 42.1 GiB",
    ],
)
def test_ordinary_lines_are_no_death(line: str) -> None:
    assert known([line]) is None


def test_the_last_words_are_the_exception_not_its_frames_nor_its_echo() -> None:
    log = """\
(EngineCore pid=7) ERROR 06-30 13:53:19 [core.py:515] EngineCore failed to start.
(EngineCore pid=7) ERROR 06-30 13:53:19 [core.py:515] Traceback (most recent call last):
(EngineCore pid=7) ERROR 06-30 13:53:19 [core.py:515]   File "/usr/lib/vllm/core.py", line 506, in run_engine_core
(EngineCore pid=7) ERROR 06-30 13:53:19 [core.py:515]     engine_core = EngineCoreProc(*args, **kwargs)
(EngineCore pid=7) ERROR 06-30 13:53:19 [core.py:515]                   ^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=7) ERROR 06-30 13:53:19 [core.py:515] TypeError: unsupported operand
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/usr/bin/vllm", line 8, in <module>
(APIServer pid=1)     raise RuntimeError(
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""".splitlines()
    assert last_words(log) == "TypeError: unsupported operand"


def test_without_an_exception_the_last_line_speaks() -> None:
    assert (
        last_words(["hello", "Segmentation fault (core dumped)", "   ", "^^^^"]) == "Segmentation fault (core dumped)"
    )
    assert last_words([]) == ""


@pytest.mark.parametrize(
    ("words", "secret"),
    [
        ("token hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 refused", "AbCdEf"),
        ("Authorization: Bearer abc.def-123456789", "abc.def"),
        ("authorization: abcdef1234567", "abcdef"),
        ("headers {'authorization': 'Bearer qwertyuiop'}", "qwertyuiop"),
        ("openai key sk-proj-1234567890abcdef", "1234567890"),
        ("unrecognized arguments: --apikey s3cr3tvalue --api-key=topsecret", "topsecret"),
        ("HF_TOKEN=abcdefgh1234 is set", "abcdefgh"),
        ('{"password": "hunter22"}', "hunter22"),
        ("proxy http://user:pa55word@proxy:3128 refused", "pa55word"),
        ("GET https://cdn.hf.co/x?X-Amz-Signature=deadbeef failed", "deadbeef"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.xyz", "hbGciOi"),
    ],
)
def test_secrets_do_not_leave(words: str, secret: str) -> None:
    assert secret not in quoted(words)
    assert "***" in quoted(words)


@pytest.mark.parametrize(
    "words",
    [
        "TypeError: hf_hub_download() got an unexpected argument; hf_transfer, hf_overrides and hf_xet are fine",
        "unrecognized arguments: --max-num-batched-tokens 8192 --thinking-token-budget 100",
        "pull access denied, may require authorization: authorization failed: no basic auth credentials",
        "max_num_batched_tokens=8192 is smaller than max_model_len",
    ],
)
def test_what_only_looks_like_a_secret_stays(words: str) -> None:
    assert quoted(words) == words


def test_a_quotation_is_one_short_line_of_plain_characters() -> None:
    assert quoted("\x1b[31mred\x1b[0m\tand\r\nmore\x00") == "red and more"
    assert len(quoted("x" * 5000)) == QUOTE


@given(st.text(), st.integers(min_value=10, max_value=300))
def test_any_words_become_one_line(words: str, limit: int) -> None:
    line = quoted(words, limit)
    assert len(line) <= limit
    assert line.isprintable()


@given(st.lists(st.text(max_size=200), max_size=20))
def test_any_log_can_be_read(log: list[str]) -> None:
    assert len(last_words(log)) <= 260
    known(log)
