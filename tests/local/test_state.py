"""Runs in a cluster's pods, which share nothing but an object store: what is killed or repeated costs no row."""

import datetime as dt
import gzip
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from clients.steps import merge_shards
from tests.servers.answers import digest
from tests.servers.files import FileServer
from tests.servers.openai_server import OpenAIServer
from tests.servers.pods import Cluster, Pod, Run
from tests.servers.s3 import ObjectStore, SeenCall

#: Rows of two shards; 8 requests in flight each, of half a second: a commit on the way and one at the end.
ROWS, LATENCY_S = 48, 0.5

SAME = ["row", "id", "outcome", "content", "finish_reason", "completion_tokens"]


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as running:
        yield running


@pytest.fixture
def bucket(store: ObjectStore, request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket of Kubeflow's for each test, and a store without trouble before and after it."""
    store.quiet()
    store.calls.clear()
    yield store.make_bucket(f"b{abs(hash(request.node.nodeid)):x}")
    store.quiet()


@pytest.fixture
def model() -> Iterator[OpenAIServer]:
    with OpenAIServer(output_tokens=(4, 8)).in_thread() as running:
        yield running


class World:
    """A cluster with its store and model, and the runs in it."""

    def __init__(self, store: ObjectStore, bucket: str, model: OpenAIServer, folder: Path) -> None:
        self.store, self.bucket, self.model = store, bucket, model
        self.root = f"minio://{bucket}/v2/artifacts/batch-client"
        endpoint = json.dumps({"base_url": model.url, "model": model.models[0]})
        self.cluster = Cluster(folder=folder, store_url=store.url, endpoint=endpoint)

    def prompts(self, texts: list[str], key: str = "prompts.jsonl") -> str:
        """Keep prompts in the store; returns their address."""
        self.store.put(self.bucket, key, lines(texts))
        return f"minio://{self.bucket}/{key}"

    def run(self, run: str, prompts: str, **parameters: Any) -> Run:
        """A run that has not begun."""
        known = {"prompts": prompts, "shards": 2, "concurrency": 16, **parameters}
        return Run(cluster=self.cluster, run=run, parameters=known, root=self.root)

    def state(self, inner: str = "") -> list[str]:
        """Keys of what is kept of all runs, below their folder."""
        prefix = f"v2/artifacts/batch-client/state/{inner}"
        return [key.removeprefix("v2/artifacts/batch-client/state/") for key in self.store.keys(self.bucket, prefix)]

    def committed(self) -> set[str]:
        """Texts of the rows of which an answer is committed."""
        frames = [
            pd.read_parquet(io.BytesIO(self.store.get(self.bucket, f"v2/artifacts/batch-client/state/{key}")))
            for key in self.state()
            if "/ledger/" in key
        ]
        return {text(row) for frame in frames for row in frame["row"]}

    def sent(self) -> dict[str, int]:
        """How often each text was sent."""
        return {seen.text: self.model.seen(seen.text) for seen in self.model.requests}


@pytest.fixture
def world(store: ObjectStore, bucket: str, model: OpenAIServer, tmp_path: Path) -> World:
    return World(store, bucket, model, tmp_path)


def text(row: int) -> str:
    return f"row {row}"


def texts(rows: int = ROWS) -> list[str]:
    return [text(row) for row in range(rows)]


def lines(found: list[str]) -> bytes:
    return b"".join(json.dumps({"prompt": one}).encode() + b"\n" for one in found)


def answers(results: Path) -> list[list[Any]]:
    """What stays the same however a run went."""
    found: list[list[Any]] = pd.read_parquet(results)[SAME].astype(object).values.tolist()
    return found


def kill_when(pods: dict[str, Pod], name: str, word: str) -> tuple[Callable[[SeenCall], str | None], threading.Event]:
    """What kills a pod at its first write whose key holds a word; the event tells that it has."""
    killed = threading.Event()

    def trouble(call: SeenCall) -> str | None:
        if killed.is_set() or call.client != name or call.write is None or word not in call.path:
            return None
        killed.set()
        while name not in pods:
            time.sleep(0.01)
        pods[name].kill()
        return "reset"

    return trouble, killed


@pytest.fixture(scope="module")
def undisturbed(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """The answers of a run that nothing happened to."""
    store.quiet()
    with OpenAIServer(output_tokens=(4, 8)).in_thread() as model:
        bucket = store.make_bucket("undisturbed")
        world = World(store, bucket, model, tmp_path_factory.mktemp("undisturbed"))
        found = answers(world.run("calm", world.prompts(texts())).whole())
    assert [row[2] for row in found] == ["ok"] * ROWS
    return found


@pytest.mark.parametrize(
    "word", ["/ledger/", *(pytest.param(each, marks=pytest.mark.slow) for each in ("/.parts/", "/.done/"))]
)
@pytest.mark.parametrize("phase", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_a_shard_that_is_killed_at_a_write_is_finished_by_the_next_step(
    world: World, undisturbed: list[list[Any]], word: str, phase: str
) -> None:
    world.model.latency_s = LATENCY_S
    run = world.run("r", world.prompts(texts()))
    run.to_plan()
    pods: dict[str, Pod] = {}
    trouble, killed = kill_when(pods, "r-shard-0", word)
    setattr(world.store, phase, trouble)
    pods |= {pod.name: pod for pod in (run.shard(0), run.shard(1))}
    for pod in pods.values():
        pod.wait()
    assert killed.is_set()
    assert pods["r-shard-0"].code != 0
    assert pods["r-shard-1"].code == 0
    world.store.quiet()
    kept, world.model.latency_s = world.committed(), 0.0
    assert len(kept) >= ROWS // 2 + (8 if (word, phase) != ("/ledger/", "before") else 0)
    assert answers(run.from_finish()) == undisturbed
    sent = world.sent()
    assert sent.keys() == set(texts())
    assert {one for one in kept if sent[one] > 1} == set()
    assert max(sent.values()) <= 2


def test_an_output_that_cannot_be_written_ends_the_run_before_a_row_is_sent(world: World) -> None:
    run = world.run("r", world.prompts(texts(4)), output="minio://no-such-bucket/out")
    assert run.check().wait().code == 1
    assert run.checked is not None
    assert "cannot write minio://no-such-bucket/out/.can-be-written" in run.checked.error
    assert world.sent() == {}


@pytest.mark.slow
def test_a_step_that_runs_what_shards_left_may_be_killed_at_each_of_its_writes(
    world: World, undisturbed: list[list[Any]]
) -> None:
    run = world.run("r", world.prompts(texts()))
    run.to_plan()
    run.shard(0).wait()
    assert kill_at_each_write(world, run.finish, "finish") >= 3
    assert answers(run.from_finish()) == undisturbed
    sent = [world.sent()[one] for one in texts()]
    assert sent[: ROWS // 2] == [1] * (ROWS // 2)
    assert set(sent[ROWS // 2 :]) == {2}, "once more for the answers that were not committed yet"


@pytest.mark.slow
def test_steps_that_are_killed_at_each_of_their_writes_and_tried_again_do_no_harm(
    world: World, undisturbed: list[list[Any]]
) -> None:
    """Another finished run of the same prompts is there, so that merging has one to remove."""
    prompts = world.prompts(texts())
    world.run("first", prompts).whole()
    run = world.run("r", prompts)
    killed = [kill_at_each_write(world, run.check, "check")]
    run.check().wait()
    run.plan().wait()
    for number in range(2):
        run.shard(number).wait()
    run.finish().wait()
    killed.append(kill_at_each_write(world, run.merge, "merge"))
    assert [found >= least for found, least in zip(killed, (3, 8), strict=True)] == [True, True]
    assert answers(run.from_finish()) == undisturbed
    assert set(world.sent().values()) == {2}, "once by each run"
    (finished,) = [key for key in world.state() if key.endswith("finished.json")]
    assert "/0002/" in finished
    assert not [key for key in world.state() if "/0001/" in key or key.startswith("begun/")]


def kill_at_each_write(world: World, begin: Callable[[str], Pod], step: str) -> int:
    """Start a step until it ends, killing it at its first write, at its second, and so on; returns how often."""
    for turn in range(60):
        name = f"{step}-{turn}"
        pods: dict[str, Pod] = {}
        phase, write = ("before", "after")[turn % 2], turn // 2
        done = threading.Event()

        def trouble(
            call: SeenCall, turn: int = turn, pods: dict[str, Pod] = pods, write: int = write, done: Any = done
        ) -> str | None:
            if call.write != write or not call.client.endswith(f"-{step}-{turn}"):
                return None
            done.set()
            while not pods:
                time.sleep(0.01)
            pods["pod"].kill()
            return "reset"

        world.store.quiet()
        setattr(world.store, phase, trouble)
        pods["pod"] = begin(name)
        pods["pod"].wait()
        world.store.quiet()
        if not done.is_set():
            assert pods["pod"].code == 0, pods["pod"].log
            return turn
    raise AssertionError("it never ended")


@pytest.mark.slow
def test_two_pods_of_one_shard_at_once_make_one_result(world: World, undisturbed: list[list[Any]]) -> None:
    world.model.latency_s = LATENCY_S
    run = world.run("r", world.prompts(texts()))
    run.to_plan()
    pods = [run.shard(0, "shard-0-old"), run.shard(0, "shard-0-new"), run.shard(1)]
    assert [pod.wait().code for pod in pods] == [0, 0, 0]
    assert answers(run.from_finish()) == undisturbed


@pytest.mark.slow
def test_a_pod_that_outlives_its_run_changes_nothing(world: World, undisturbed: list[list[Any]]) -> None:
    run = world.run("r", world.prompts(texts()))
    run.to_shards()
    run.finish().wait()
    world.model.latency_s = 0.05
    late = run.shard(0, "shard-0-late")
    run.merge().wait()
    assert late.wait().code == 0
    assert late.events("shard.settled")
    assert run.merged is not None
    assert answers(run.merged.artifact("results")) == undisturbed


@pytest.mark.slow
def test_a_shard_that_is_tried_again_sends_what_is_not_committed(world: World) -> None:
    world.model.latency_s = LATENCY_S
    run = world.run("r", world.prompts(texts()), shards=1, concurrency=8)
    run.to_plan()
    pods: dict[str, Pod] = {}
    world.store.after, killed = kill_when(pods, "r-shard-0", "/ledger/")
    pods["r-shard-0"] = run.shard(0)
    assert pods["r-shard-0"].wait().code != 0
    assert killed.is_set()
    kept, world.model.latency_s = world.committed(), 0.0
    assert 8 <= len(kept) < ROWS
    assert run.shard(0, "again").wait().code == 0
    assert {one for one in kept if world.sent()[one] > 1} == set()
    assert len(answers(run.from_finish())) == ROWS


@pytest.mark.slow
def test_a_cloned_run_goes_on_and_one_after_a_finished_run_begins_anew(world: World) -> None:
    prompts = world.prompts(texts())
    stopped = world.run("stopped", prompts)
    stopped.to_plan()
    stopped.shard(0).wait()
    assert len(world.model.requests) == ROWS // 2
    clone = world.run("clone", prompts)
    clone.whole()
    assert len(world.model.requests) == ROWS
    assert clone.checked is not None
    assert clone.checked.metadata("checked")["state"].endswith("/0001")
    world.run("next", prompts).whole()
    assert len(world.model.requests) == 2 * ROWS
    assert not [key for key in world.state() if "/0001/" in key]


@pytest.mark.slow
def test_reuse_takes_what_has_not_changed_and_fresh_takes_nothing(world: World) -> None:
    world.run("first", world.prompts(texts())).whole()
    edited = [*texts()[:40], *(f"edited {row}" for row in range(40, 50))]
    results = world.run("second", world.prompts(edited), options={"reuse": True}).whole()
    assert len(world.model.requests) == ROWS + 10
    frame = pd.read_parquet(results)
    assert frame["outcome"].tolist() == ["ok"] * 50
    assert {key.split("/")[1] for key in world.state() if key.endswith("finished.json")} == {"0001"}
    unfinished = world.run("stopped", world.prompts(edited))
    unfinished.to_shards()
    before = len(world.model.requests)
    world.run("fresh", world.prompts(edited), options={"fresh": True}).whole()
    assert len(world.model.requests) == before + 50


@pytest.mark.slow
def test_a_run_without_credentials_is_done_by_one_pod(world: World, undisturbed: list[list[Any]]) -> None:
    """As where artifacts lie in a store that pods reach by the launcher alone."""
    world.store.before = lambda _: "denied"
    world.cluster.keys = False
    path = world.cluster.folder / "prompts.jsonl"
    path.write_bytes(lines(texts()))
    run = world.run("r", str(path), shards=4)
    run.to_plan()
    assert run.checked is not None
    (told,) = run.checked.events("state.none")
    assert "allow them to list, read and write there" in told["reason"]
    assert run.specs() == ["later"]
    assert run.shard(0).wait().events("shard.later")
    assert len(world.model.requests) == 0
    assert answers(run.from_finish()) == undisturbed
    assert len(world.model.requests) == ROWS


@pytest.mark.slow
def test_credentials_that_expire_end_the_run_with_the_mend_and_a_clone_goes_on(world: World) -> None:
    prompts = world.prompts(texts())
    run = world.run("r", prompts)
    run.to_plan()
    run.shard(0).wait()
    world.store.before = lambda _: "expired"
    assert run.shard(1).wait().code == 0, "a shard leaves its rows to the next step"
    finish = run.finish().wait()
    assert finish.code == 1
    assert "have not expired" in finish.error or "have expired: renew them" in finish.error
    assert "\n" not in finish.error
    world.store.quiet()
    world.run("clone", prompts).whole()
    assert set(world.sent().values()) == {1}


@pytest.mark.parametrize(
    ("address", "trouble", "mend"),
    [
        ("minio://no-such-bucket/p.jsonl", None, "See that it is there, and mend its name"),
        ("minio://{bucket}/no-such-key.jsonl", None, "See that it is there, and mend its name"),
        ("minio://{bucket}/prompts.jsonl", "denied", "may list, read and write there"),
        ("minio://{bucket}/prompts.jsonl", "expired", "have not expired"),
    ],
)
def test_prompts_that_a_store_does_not_give_end_the_run_with_one_line(
    world: World, address: str, trouble: str | None, mend: str
) -> None:
    world.prompts(texts(1))
    world.store.before = lambda _: trouble
    check = world.run("r", address.format(bucket=world.bucket)).check().wait()
    assert check.code == 2
    assert mend in check.error
    assert "\n" not in check.error
    assert "Traceback" not in check.log


@pytest.mark.slow
def test_a_store_that_is_overloaded_and_cuts_connections_slows_a_run_down(
    world: World, undisturbed: list[list[Any]]
) -> None:
    def trouble(call: SeenCall) -> str | None:
        return {3: "slow", 4: "reset", 7: "internal"}.get(call.number % 9)  # reads, writes and lists alike

    prompts = world.prompts(texts())
    world.store.before = trouble
    assert answers(world.run("r", prompts).whole()) == undisturbed
    assert len(world.model.requests) == ROWS


def packed(kind: str, rows: int) -> bytes:
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"prompt": texts(rows)}), sink, row_group_size=10)
        return bytes(sink.getvalue())
    return gzip.compress(lines(texts(rows))) if kind == "jsonl.gz" else "\n".join(["prompt", *texts(rows)]).encode()


@pytest.mark.parametrize(
    "kind", ["jsonl.gz", *(pytest.param(each, marks=pytest.mark.slow) for each in ("parquet", "csv"))]
)
def test_any_format_is_read_from_a_store(world: World, kind: str) -> None:
    world.store.put(world.bucket, f"p.{kind}", packed(kind, ROWS))
    results = world.run("r", f"minio://{world.bucket}/p.{kind}").whole()
    frame = pd.read_parquet(results)
    assert frame["outcome"].tolist() == ["ok"] * ROWS
    assert all(digest(text(row)) in content for row, content in enumerate(frame["content"]))


def test_prompts_and_results_may_lie_in_another_store_and_follow_the_date(world: World) -> None:
    """`s3://` with keys of its own; a macro that an older Kubeflow left as it was means today."""
    today = dt.datetime.now(dt.UTC).date()
    yesterday = today - dt.timedelta(days=1)
    world.cluster.secrets = {
        "AWS_ACCESS_KEY_ID": "amazon",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": world.store.url,
    }
    world.prompts(texts(6), f"in/{yesterday}/p.jsonl")
    run = world.run(
        "run-7",
        f"s3://{world.bucket}/in/{{yesterday}}/p.jsonl",
        output=f"s3://{world.bucket}/out/{{date}}/{{run}}",
        run_date="[[CurrentTime.2006-01-02]]",
    )
    run.whole()
    place = f"out/{today}/run-7"
    names = {"rejects.parquet", "report.html", "report.md", "results.parquet", "summary.json"}
    assert {key.removeprefix(f"{place}/") for key in world.store.keys(world.bucket, place)} == names
    frame = pd.read_parquet(io.BytesIO(world.store.get(world.bucket, f"{place}/results.parquet")))
    assert len(frame) == 6
    assert run.merged is not None
    assert run.merged.metadata("results")["location"] == f"s3://{world.bucket}/{place}/results.parquet"
    assert run.checked is not None
    assert run.checked.metadata("checked")["date"] == str(today)
    clients = {call.client for call in world.store.calls if f"/{place}/" in call.path}
    assert clients == {"amazon"}


@pytest.mark.slow
def test_large_results_are_a_dataset_that_others_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    output = f"minio://{world.bucket}/out"
    run = world.run("r", world.prompts(texts()), output=output, shards=3)
    run.to_shards()
    finish = run.finish().wait()
    monkeypatch.setenv("KLLM_STORE_ACCESS_KEY", "merger")
    monkeypatch.setenv("KLLM_STORE_SECRET_KEY", "secret")
    world.store.put(world.bucket, "out/results/part-00007.parquet", b"of an earlier run")
    world.store.put(world.bucket, "out/results/notes.txt", b"somebody's")
    scratch = world.cluster.folder / "merged"
    scratch.mkdir()
    paths = merge_shards.Paths(*(scratch / name for name in ("results", "rejects", "report", "markdown")))
    merged = merge_shards.merge_shards(
        paths=paths,
        endpoint=world.cluster.endpoint,
        finished_path=str(finish.artifact("finished")),
        store_endpoint=world.store.url,
        one_file_bytes=1,
    )
    note = json.loads(paths.results.read_text())
    assert (note["dataset"], note["files"], note["rows"]) == (f"{output}/results", 3, ROWS)
    assert merged.facts["location"] == f"{output}/results"
    keys = world.store.keys(world.bucket, "out/results/")
    assert keys == ["out/results/notes.txt", *(f"out/results/part-{number:05d}.parquet" for number in range(3))]
    copied = [call for call in world.store.writes_of("merger") if "/out/results/part-" in call.path]
    assert [call.method for call in copied] == ["PUT", "PUT", "PUT", "DELETE"]
    s3 = pyarrow.fs.S3FileSystem(
        endpoint_override=world.store.url.removeprefix("http://"), scheme="http", access_key="reader", secret_key="s"
    )
    found = pyarrow.dataset.dataset(
        f"{world.bucket}/out/results", filesystem=s3, format="parquet", exclude_invalid_files=True
    )
    assert found.to_table(columns=["row"])["row"].to_pylist() == list(range(ROWS))
    frame = pd.read_parquet([f"{world.bucket}/{key}" for key in keys if key.endswith(".parquet")], filesystem=s3)
    assert frame["content"].str.len().gt(0).all()


@pytest.mark.slow
def test_prompts_behind_a_signed_web_address_are_read_by_parts_and_never_told_in_full(world: World) -> None:
    """The signature has to reach the shards; nothing that people look at may hold it."""
    padding = "x" * 200_000
    data = lines([f"row {row} {padding}" for row in range(120)])  # 24 MB
    world.model.output_tokens = (2, 3)
    with FileServer(files={"/p.jsonl": data}).running() as web:
        run = world.run("r", f"{web.url}/p.jsonl?sig=s3cr3t", shards=4)
        run.to_plan()
        for number in range(4):
            web.requests.clear()
            pod = run.shard(number).wait()
            assert pod.code == 0, pod.log
            # Twice its own part, to send it and to write it beside the answers, and what buffers on the way hold.
            assert web.sent() < 2 * len(data) / 4 + (12 << 20) < 2 * len(data)
            assert all(request.path == "/p.jsonl?sig=s3cr3t" for request in web.requests)
        results = run.from_finish()
        assert pd.read_parquet(results)["outcome"].tolist() == ["ok"] * 120
        assert b"s3cr3t" not in results.read_bytes()
        assert run.merged is not None
        for name in ("report", "overview"):
            assert "s3cr3t" not in run.merged.artifact(name).read_text(encoding="utf-8")
        assert run.checked is not None
        assert run.checked.metadata("checked")["prompts"] == f"{web.url}/p.jsonl"
