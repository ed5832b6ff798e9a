"""Prompts, results and state in Google Cloud Storage, as an emulator plays it; a shard is killed on the way."""

import io
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from gcp_storage_emulator.server import create_server

from clients.errors import LLMInferenceError
from clients.storage import Folder, open_input
from tests.servers.openai_server import OpenAIServer
from tests.servers.pods import Cluster, Run
from tests.servers.s3 import free_port

TEXTS = [f"row {row}" for row in range(48)]


class Bucket:
    """A bucket of the emulator, and how pods find it: by the variable that Google's own client reads."""

    def __init__(self) -> None:
        self.host = f"127.0.0.1:{free_port()}"
        self.environment = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://{self.host}"}
        self._files = pyarrow.fs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=self.host)

    def put(self, name: str, data: bytes) -> None:
        with self._files.open_output_stream(f"bucket/{name}") as stream:
            stream.write(data)

    def get(self, name: str) -> bytes:
        with self._files.open_input_stream(f"bucket/{name}") as stream:
            return bytes(stream.readall())

    def names(self, folder: str) -> list[str]:
        selector = pyarrow.fs.FileSelector(f"bucket/{folder}", allow_not_found=True, recursive=True)
        found = self._files.get_file_info(selector)
        return [one.path.removeprefix("bucket/") for one in found if one.type == pyarrow.fs.FileType.File]


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    host, port = made.host.split(":")
    server = create_server(host, int(port), in_memory=True, default_bucket="bucket")
    server.start()
    yield made
    server.stop()


def test_what_google_s_store_refuses_is_one_short_line(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", bucket.environment["CLOUD_STORAGE_EMULATOR_ENDPOINT"])
    with pytest.raises(LLMInferenceError) as caught:
        open_input("gs://anonymous@bucket/none.jsonl")
    assert str(caught.value) == (
        "cannot read gs://bucket/none.jsonl: Received HTTP status code: 404. "
        "See that it is there, and mend its name, and run the same command again."
    )
    with pytest.raises(LLMInferenceError, match=r"cannot write gs://other/a/b: Received HTTP status code: 404"):
        Folder("gs://anonymous@other/a").write("b", b"1")


def committed(bucket: Bucket) -> set[str]:
    """Texts of the rows of which an answer is kept."""
    frames = [pd.read_parquet(io.BytesIO(bucket.get(name))) for name in bucket.names("state") if "/ledger/" in name]
    return {TEXTS[row] for frame in frames for row in frame["row"]}


@pytest.mark.slow
def test_a_run_in_google_s_store_goes_on_after_a_kill(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("한글 prompts.jsonl", b"".join(json.dumps({"prompt": text}).encode() + b"\n" for text in TEXTS))
    with OpenAIServer(output_tokens=(4, 8), latency_s=0.5).in_thread() as model:
        endpoint = json.dumps({"base_url": model.url, "model": model.models[0]})
        cluster = Cluster(folder=tmp_path, store_url="", endpoint=endpoint, secrets=bucket.environment)
        place = {name: f"gs://anonymous@bucket/{name}" for name in ("output", "state")}
        given = {"prompts": "gs://anonymous@bucket/한글 prompts.jsonl", "shards": 2, "concurrency": 16, **place}
        run = Run(cluster=cluster, run="r", parameters=given)
        run.to_plan()
        doomed, other = run.shard(0), run.shard(1)
        deadline = time.monotonic() + 30
        while not committed(bucket) and time.monotonic() < deadline:
            time.sleep(0.05)
        doomed.kill()
        assert doomed.wait().code == -signal.SIGKILL
        assert other.wait().code == 0, other.log
        kept = committed(bucket)
        before = {text: model.seen(text) for text in TEXTS}
        results = run.from_finish()
        assert {text for text in TEXTS if model.seen(text) > before[text]} == set(TEXTS) - kept
    assert kept
    frame = pd.read_parquet(results)
    assert (list(frame["row"]), set(frame["outcome"])) == (list(range(len(TEXTS))), {"ok"})
    assert pq.read_table(io.BytesIO(bucket.get("output/results.parquet"))).num_rows == len(TEXTS)
    assert "output/summary.json" in bucket.names("output")
