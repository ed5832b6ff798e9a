"""What a run loads before its first request: the GPUs wait for it, and a run of ten rows is mostly that."""

import subprocess
import sys
import time
from pathlib import Path

from tests.local.test_batch import environment
from tests.servers.openai_server import OpenAIServer

#: What takes long to load; the first segment, the summary and the report need some of it, the first request nothing.
HEAVY = {"pyarrow", "rich", "numpy", "pandas", "kfp", "openai", "aiohttp", "jsonschema"}


def loaded(log: Path) -> list[str]:
    """What Python says that it has loaded so far, with `-X importtime`."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]


def test_nothing_heavy_is_loaded_before_the_first_request(tmp_path: Path) -> None:
    prompts, log = tmp_path / "prompts.jsonl", tmp_path / "log"
    prompts.write_text('{"prompt": "Hello"}\n', encoding="utf-8")
    with OpenAIServer(latency_s=0.5).in_thread() as server, log.open("wb") as stderr:
        command = [sys.executable, "-X", "importtime", "-m", "clients.batch", "--prompts", str(prompts)]
        process = subprocess.Popen(
            [*command, "--url", server.url], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=stderr
        )
        with process:
            while not server.requests and process.poll() is None:
                time.sleep(0.01)
            first = loaded(log)
            process.communicate()
    assert process.returncode == 0, log.read_text(encoding="utf-8")
    assert "clients.batch.engine" in first
    assert {name.partition(".")[0] for name in first} & HEAVY == set()
    assert not [name for name in first if name.startswith("clients.results.") and name != "clients.results.scratch"]
    assert {"pyarrow", "rich"} <= set(loaded(log)), "what is loaded later shows, so what is missing was not loaded"
