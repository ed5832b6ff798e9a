"""Batches from Python: `from clients import …`, and pipelines with steps of one's own, on real servers and runners."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from clients import BatchFailedError, read_results, run_batch
from clients.errors import SettingsError
from pipelines.local_run import LocalRun
from pipelines.remote.parameters import Package
from tests.contract.test_compiled import brought
from tests.servers.kfp.state import check_spec
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer().in_thread() as running:
        yield running


class TestRunBatch:
    def test_rows_become_a_table_in_their_order(self, server: OpenAIServer, tmp_path: Path) -> None:
        events: list[Mapping[str, Any]] = []
        rows = ["first", {"id": "b", "prompt": "second", "colour": "blue", "max_tokens": 99}, "세 번째"]
        result = run_batch(
            rows,
            url=server.url,
            output=tmp_path / "out",
            system_prompt="--be brief",
            request_defaults={"max_tokens": 64, "stop": ["a,b", "c"]},
            options={
                "raw_response": True,
                "resample": ["empty", "schema_invalid"],
                "time_limit_s": 60,
                "max_regression": {"error_rate": 0.5, "rows": 0.9},
            },
            on_event=events.append,
        )
        table = result.to_pandas()
        assert table["id"].to_list() == ["row-0", "b", "row-2"]
        assert table["outcome"].to_list() == ["ok"] * 3
        assert table["colour"].to_list()[1] == "blue"
        assert table["raw_response"].notna().all()
        assert result.to_pandas(["outcome"]).columns.to_list() == ["outcome"]
        assert len(result.rejects()) == 0
        assert (result.summary["rows"], result.summary["outcomes"]["ok"]) == (3, 3)
        assert repr(result) == f"<BatchResult: 3 rows (3 ok) in {result.output}>"
        assert {"prompts.checked", "shard.progress", "results.merged"} <= {str(event["event"]) for event in events}
        asked = {request.text: request.body for request in server.requests}
        assert {body["max_tokens"] for body in asked.values()} == {64, 99}
        assert asked["first"]["messages"][0] == {"role": "system", "content": "--be brief"}
        assert asked["first"]["stop"] == ["a,b", "c"]

    def test_the_same_call_sends_only_what_is_new(self, server: OpenAIServer, tmp_path: Path) -> None:
        run_batch(["one", "two"], url=server.url, output=tmp_path)
        assert len(server.requests) == 2
        result = run_batch(["one", "two", "three"], url=server.url, output=tmp_path)
        assert [request.text for request in server.requests[2:]] == ["three"]
        assert result.summary["rows"] == 3
        run_batch(["one", "two", "three"], url=server.url, output=tmp_path, fresh=True)
        assert len(server.requests) == 6

    def test_a_file_with_a_template(self, server: OpenAIServer, tmp_path: Path) -> None:
        pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "in.parquet")
        run_batch(tmp_path / "in.parquet", url=server.url, output=tmp_path / "out", template="Say {text}")
        assert sorted(request.text for request in server.requests) == ["Say a", "Say b"]

    def test_what_went_wrong_is_an_exception_with_what_was_written(self, server: OpenAIServer, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "good"}\nno JSON\n')
        with pytest.raises(BatchFailedError, match="1 of 2 rows went wrong") as caught:
            run_batch(tmp_path / "p.jsonl", url=server.url, output=tmp_path / "out")
        assert caught.value.result is not None
        assert caught.value.result.rejects()["outcome"].to_list() == ["invalid"]
        assert run_batch(tmp_path / "p.jsonl", url=server.url, output=tmp_path / "out", max_error_rate=0.5)

    def test_without_a_server_nothing_is_written_and_it_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(BatchFailedError, match=r"127\.0\.0\.1:9.* url; server_wait_s waits longer") as caught:
            run_batch(["one"], url="http://127.0.0.1:9/v1", output=tmp_path, server_wait_s=0)
        assert caught.value.result is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prompts": "none.jsonl"}, "no such file: none.jsonl"),
            ({"prompts": "s3://bucket/p.jsonl"}, "is an address"),
            ({"max_error_rate": 7}, "^max_error_rate must be between 0 and 1"),
            ({"prompts": "none.jsonl"}, "Give prompts a JSONL"),
            ({"options": {"max_regression": {"nonsense": 1}}}, "nonsense"),
            ({"options": {"retry": "nonsense"}}, "'nonsense' is no outcome"),
            ({"options": {"retires": "failed"}}, "unknown option 'retires'"),
            ({"options": {"reuse": True}}, "reuse is of no use here"),
            ({"prompts": [{"prompt": {1, 2}}]}, "cannot be written as JSON"),
        ],
    )
    def test_mistakes_are_one_line_before_anything_is_sent(
        self, server: OpenAIServer, tmp_path: Path, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message) as caught:
            run_batch(**{"prompts": ["one"], "url": server.url, "output": tmp_path, **arguments})
        assert "\n" not in str(caught.value)
        assert server.requests == []

    def test_an_interrupt_keeps_what_was_answered(self, server: OpenAIServer, tmp_path: Path) -> None:
        """As in a notebook: only this process hears of it, in the middle of the batch."""
        rows = [f"row {number}" for number in range(400)]

        def interrupted(event: Mapping[str, Any]) -> None:
            if event["event"] == "shard.progress" and event["done"] >= 50:
                raise KeyboardInterrupt

        with OpenAIServer(token_delay_s=0.01).in_thread() as slow:
            with pytest.raises(KeyboardInterrupt):
                run_batch(rows, url=slow.url, output=tmp_path, concurrency=8, on_event=interrupted)
            answered = sum(request.status == 200 for request in slow.requests)
        assert 50 <= answered < 400
        run_batch(rows, url=server.url, output=tmp_path, model="qwen3-30b-fp8")
        assert len(server.requests) <= 400 - 50

    def test_it_runs_in_a_thread_beside_an_event_loop(self, server: OpenAIServer, tmp_path: Path) -> None:
        done: list[int] = []
        call = threading.Thread(
            target=lambda: done.append(run_batch(["one"], url=server.url, output=tmp_path).summary["rows"])
        )
        call.start()
        call.join(60)
        assert done == [1]


class TestReadResults:
    def test_a_dataset_of_several_files_is_one_table(self, tmp_path: Path) -> None:
        (tmp_path / "results").mkdir()
        for number in range(3):
            pd.DataFrame({"row": [number], "outcome": ["ok"]}).to_parquet(
                tmp_path / f"results/part-{number:05d}.parquet"
            )
        assert read_results(tmp_path)["row"].to_list() == [0, 1, 2]
        assert read_results(f"file://{tmp_path}", ["row"])["row"].to_list() == [0, 1, 2]

    def test_what_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="there are no results at"):
            read_results(tmp_path / "nothing")
        pd.DataFrame({"row": [1]}).to_parquet(tmp_path / "results.parquet")
        with pytest.raises(SettingsError, match="no_such"):
            read_results(tmp_path, ["no_such"])
        (tmp_path / "results.parquet").write_text("none of it")
        with pytest.raises(SettingsError, match="cannot read"):
            read_results(tmp_path)


def test_importing_the_packages_is_free_and_names_are_found_where_they_are_offered() -> None:
    code = (
        "import sys, clients, pipelines; assert 'clients.api' not in sys.modules; assert 'kfp' not in sys.modules; "
        "from clients import run_batch, read_results, BatchResult, BatchFailedError; "
        "assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    for package in ("clients", "pipelines"):
        with pytest.raises(ImportError, match="nothing_of_the_kind"):
            exec(f"from {package} import nothing_of_the_kind")  # noqa: S102


def test_no_pod_carries_what_is_for_python() -> None:
    for name in ("batch_client", "batch_inference"):
        executors = Package.named(name).documents[0]["deploymentSpec"]["executors"].values()
        carried = {file for executor in executors for file in brought(executor["container"])}
        assert "clients/__init__.py" in carried
        assert "clients/api.py" not in carried


@pytest.mark.slow
def test_what_the_page_imports_is_there() -> None:
    page = (ROOT / "docs/kubeflow.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    imports = [line for block in blocks for line in block.splitlines() if line.startswith("from ")]
    assert len(imports) >= 3
    subprocess.run([sys.executable, "-c", "\n".join(imports)], cwd=ROOT, check=True)


class TestExtendedPipeline:
    @pytest.fixture
    def compiled(self, tmp_path: Path) -> Path:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [sys.executable, ROOT / "examples/extend_pipeline.py"], cwd=tmp_path, env=environment, check=True
        )
        return tmp_path / "topics.yaml"

    def test_the_example_runs_with_its_own_steps_before_and_after(
        self, compiled: Path, server: OpenAIServer, tmp_path: Path
    ) -> None:
        arguments = {"topics": ["tea", "rice", "salt"], "endpoint_url": server.url, "output": str(tmp_path / "out")}
        began = time.monotonic()
        with LocalRun(compiled, arguments, scratch=tmp_path / "scratch", log=tmp_path / "log") as local:
            for _ in local.events():
                assert time.monotonic() - began < 100
            assert local.succeeded(), (tmp_path / "log").read_text()
        asked = {request.text for request in server.requests}
        assert asked == {f"Explain {topic} in one sentence." for topic in arguments["topics"]}
        answers = read_results(tmp_path / "out")
        longest = answers.loc[answers["content"].str.len().idxmax(), "id"]
        assert f"Output: '{longest}'" in (tmp_path / "log").read_text()

    def test_the_batch_gets_every_parameter_and_its_secrets(self, compiled: Path) -> None:
        """Older servers do not know the defaults of a nested pipeline."""
        pipeline, platform = yaml.safe_load_all(compiled.read_text())
        check_spec({"pipeline_spec": pipeline, "platform_spec": platform})
        given = pipeline["root"]["dag"]["tasks"]["batch-client"]["inputs"]["parameters"]
        assert set(given) == set(Package.named("batch_client").inputs)
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert {"exec-run-shard", "exec-finish-shards", "exec-longest-answer"} <= set(executors)
        assert json.dumps(executors["exec-run-shard"]).count("secretNameParameter") >= 3
