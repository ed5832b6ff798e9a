"""What becomes of traces when Langfuse is well, slow, full, refusing, dead, or a black hole: counted to the row."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clients.batch.segments import table_of
from clients.langfuse_utils import main
from clients.records import ChatResult, Outcome
from clients.storage import Folder
from clients.tracing import exporter, packer, spool
from clients.tracing.live import LiveTracer
from clients.tracing.tracer import TraceCounts
from tests.servers.otlp_sink import OtlpSink
from tests.unit.tracing_rows import ORIGIN, events, request, result, settings, trace, tracing


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.otlp.gz"))


def rows_kept(folder: Path) -> int:
    return sum(spool.rows_in(name) for name in files(folder))


def counts(**fields: int) -> TraceCounts:
    return TraceCounts(**fields)


# ------------------------------------------------------------------------ well


def test_committed_rows_arrive_once_each_and_the_shard_has_a_summary(sink: OtlpSink, tmp_path: Path) -> None:
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(700))
        trace(tracer, [700], outcome=Outcome.FAILED, content=None, error_code="timeout")
        found = tracer.close(facts={"reused": 4})
    assert found == counts(exported=701)
    assert sink.row_numbers() == list(range(701))
    assert len(sink.spans) == len({span.identity for span in sink.spans}) == 702
    (summary,) = sink.summaries()
    facts = summary.json("output")
    assert facts["rows"] == 701
    assert facts["outcomes"] == {"ok": 700, "failed": 1}
    assert facts["traces"] == {"exported": 701, "spooled": 0, "dropped": 0, "sampled_out": 0, "replayed": 0}
    assert facts["tokens"] == {"input": 701 * 12, "output": 701 * 34, "input_cached": 0}
    assert facts["latency_s"] == {"mean": 1.5, "max": 1.5}
    assert facts["reused"] == 4
    assert files(tmp_path) == []
    assert told == [{"event": "tracing.closed", "shard": 3, **vars(found)}]
    assert tracer.url_template() == f"{sink.url}/project/project-1/traces/{{trace_id}}"
    assert tracer.close() == found
    headers = sink.headers[0]
    assert headers["x-langfuse-ingestion-version"] == "4"
    assert headers["x-langfuse-public-key"] == "pk-lf-test"


def test_a_row_that_was_finished_but_never_committed_has_no_trace(sink: OtlpSink, tmp_path: Path) -> None:
    with tracing(sink, tmp_path) as tracer:
        tracer.finished(request(1), result(1))
        assert tracer.close() == counts()
    assert sink.spans == []


def test_batches_are_bounded_by_count_and_bytes_and_a_very_large_row_goes_alone(sink: OtlpSink, tmp_path: Path) -> None:
    noise = os.urandom(300_000).hex()
    with tracing(sink, tmp_path, flush_interval_s=5.0) as tracer:
        trace(tracer, range(40), noise[:400_000])
        trace(tracer, [40], noise * 7)  # 4.2 MB
        trace(tracer, range(41, 1141))
        assert tracer.close() == counts(exported=1141)
    spans = [size for size, _ in sink.sizes]
    assert max(spans) <= 512
    assert (1, max(raw for _, raw in sink.sizes)) in sink.sizes
    assert max(raw for size, raw in sink.sizes if size > 1) <= packer.MAX_BATCH_BYTES + 2000
    assert len(sink.sizes) <= 10


def test_rows_wait_a_while_for_others_to_share_their_request(sink: OtlpSink, tmp_path: Path) -> None:
    with tracing(sink, tmp_path, flush_interval_s=0.3) as tracer:
        for row in range(10):
            trace(tracer, [row])
            time.sleep(0.01)
        sink.wait_for(lambda: len(sink.spans) == 10)
        assert sink.posts() == 1


def test_sampling_keeps_the_same_rows_each_time_and_every_failure(sink: OtlpSink, tmp_path: Path) -> None:
    with tracing(sink, tmp_path, sample_rate=0.25) as tracer:
        trace(tracer, range(400))
        trace(tracer, range(400, 420), outcome=Outcome.EMPTY)
        found = tracer.close()
    rate = {int(row.trace_id[16:], 16) < 2**62 for row in sink.rows() if row.status == 0}
    assert rate == {True}
    assert set(range(400, 420)) <= set(sink.row_numbers())
    assert found.exported == len(sink.rows())
    assert found.exported + found.sampled_out == 420
    assert 60 < found.exported - 20 < 140
    assert len(sink.summaries()) == 1


def test_scores_are_sent_when_they_are_wanted_and_a_server_without_them_costs_no_trace(
    sink: OtlpSink, tmp_path: Path
) -> None:
    with tracing(sink, tmp_path, scores=True) as tracer:
        trace(tracer, range(300))
        assert tracer.close() == counts(exported=300)
    assert len({score["id"] for score in sink.scores}) == len(sink.scores) == 300
    assert all(isinstance(score["value"], str) for score in sink.scores)


def test_nothing_is_lost_at_ten_thousand_rows_a_second_when_every_answer_takes_long(
    sink: OtlpSink, tmp_path: Path
) -> None:
    """Ten times the pace, a tenth of the time: 1,000 rows/s with answers after 1 s."""
    sink.latency_s = 0.1
    with tracing(sink, tmp_path) as tracer:
        began = time.monotonic()
        for at in range(0, 10_000, 500):
            trace(tracer, range(at, at + 500))
            time.sleep(max(0.0, began + (at + 500) / 10_000 - time.monotonic()))
        closing = time.monotonic()
        assert tracer.close() == counts(exported=10_000)
        assert time.monotonic() - closing < 3
    assert files(tmp_path) == []
    assert len(sink.rows()) == 10_000
    assert sink.peak > 1


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "script",
    [
        ["503", "503"],
        ["429:0.1", "429:0.2"],
        ["429"],
        ["500", "502"],
        ["408"],
        ["503:Wed, 21 Oct 2015 07:28:00 GMT"],
        ["503:nan"],
        ["reset"],
    ],
    ids=lambda script: "-".join(script)[:12],
)
def test_what_the_server_cannot_take_now_is_sent_again(sink: OtlpSink, tmp_path: Path, script: list[str]) -> None:
    sink.script = list(script)
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        assert tracer.close() == counts(exported=5)
    assert sink.row_numbers() == [0, 1, 2, 3, 4]
    assert sink.posts() == len(script) + 2  # the rows and the summary
    heard = [event["event"] for event in told]
    is_silent = script == ["reset"] and heard == ["tracing.closed"]  # on a kept connection a reset means: open another
    assert is_silent or heard == ["tracing.waiting", "tracing.closed"]


def test_nothing_is_sent_before_a_retry_after_has_passed(sink: OtlpSink, tmp_path: Path) -> None:
    sink.script = ["429:0.6"]
    with tracing(sink, tmp_path, flush_at=1) as tracer:
        trace(tracer, [0])
        sink.wait_for(lambda: sink.posts() == 1)
        time.sleep(0.3)  # until the answer is there, too
        trace(tracer, range(1, 6))
        assert tracer.close() == counts(exported=6)
    pauses = [after - before for before, after in zip(sink.times, sink.times[1:], strict=False)]
    assert pauses[0] >= 0.59


def test_a_retry_after_beyond_the_deadline_ends_the_wait_and_the_rows_are_kept(sink: OtlpSink, tmp_path: Path) -> None:
    sink.script = ["429:30"]
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        sink.wait_for(lambda: sink.posts() == 1)
        began = time.monotonic()
        assert tracer.close(deadline_s=5) == counts(spooled=5)
        assert time.monotonic() - began < 3
    assert rows_kept(tmp_path) == 5


def test_a_retry_after_of_half_a_minute_is_waited_for_while_the_run_goes_on(
    sink: OtlpSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.script = ["429:30"]
    now = time.monotonic
    ahead = [0.0]
    monkeypatch.setattr(exporter.time, "monotonic", lambda: now() + ahead[0])
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        sink.wait_for(lambda: sink.posts() == 1)
        time.sleep(0.2)  # until its answer is read
        ahead[0] = 29.0
        trace(tracer, [5])
        time.sleep(0.3)
        assert sink.posts() == 1
        ahead[0] = 31.0
        trace(tracer, [6])
        sink.wait_for(lambda: len(sink.rows()) == 7)
        assert tracer.close() == counts(exported=7)


def test_an_answer_that_comes_too_late_leads_to_the_same_spans_again(sink: OtlpSink, tmp_path: Path) -> None:
    sink.script = ["late:0.5"]
    with tracing(sink, tmp_path, timeout_s=0.2) as tracer:
        trace(tracer, range(5))
        assert tracer.close() == counts(exported=5)
    rows = [span for span in sink.spans if span.name == "batch row"]
    assert len(rows) == 10
    assert len({span.identity for span in rows}) == 5


def test_a_batch_that_fails_again_and_again_is_kept_and_sent_once_the_server_is_well(
    sink: OtlpSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_FIRST_PAUSE_S", 0.001)
    sink.script = ["500"] * 6
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        sink.wait_for(lambda: files(tmp_path) != [])
        trace(tracer, range(5, 8))
        sink.wait_for(lambda: len(sink.rows()) == 8)
        assert tracer.close() == counts(exported=8)
    assert files(tmp_path) == []


def test_refused_keys_are_told_once_with_a_mend_and_all_rows_are_kept(sink: OtlpSink, tmp_path: Path) -> None:
    with events() as told, tracing(sink, tmp_path, flush_at=10, secret_key="sk-lf-wrong") as tracer:
        trace(tracer, range(200))
        sink.wait_for(lambda: rows_kept(tmp_path) == 200)
        trace(tracer, range(200, 250))
        began = time.monotonic()
        assert tracer.close() == counts(spooled=250)
        assert time.monotonic() - began < 5
    assert sink.spans == []
    assert sink.posts() <= exporter.SENDERS
    refused = [event for event in told if event["event"] == "tracing.refused"]
    assert len(refused) == 1
    assert "401" in refused[0]["reason"]
    assert "LANGFUSE_SECRET_KEY" in refused[0]["reason"]
    assert "wrong" not in repr(told)
    assert tracer.url_template() == f"{sink.url}/trace/{{trace_id}}"


@pytest.mark.parametrize("status", ["403", "404", "301", "405"])
def test_an_address_that_takes_no_traces_is_told_and_the_rows_are_kept(
    sink: OtlpSink, tmp_path: Path, status: str
) -> None:
    sink.default = status
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        assert tracer.close() == counts(spooled=5)
    assert [event["event"] for event in told] == ["tracing.refused", "tracing.closed"]
    assert status in told[0]["reason"]


def test_one_malformed_span_costs_no_other_one(sink: OtlpSink, tmp_path: Path) -> None:
    sink.refuse = lambda span: span.attributes.get("langfuse.observation.metadata.row") in ("0", "77")
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(200))
        assert tracer.close() == counts(exported=198, dropped=2)
    assert sink.row_numbers() == [row for row in range(200) if row not in (0, 77)]
    assert [event["event"] for event in told] == ["tracing.dropped", "tracing.closed"]
    assert sink.posts() < 40


def test_a_server_that_calls_everything_malformed_gets_no_thousand_requests_and_no_row_is_lost(
    sink: OtlpSink, tmp_path: Path
) -> None:
    sink.default = "400"
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(500))
        assert tracer.close() == counts(spooled=500)
    assert rows_kept(tmp_path) == 500
    assert "tracing.refused" in [event["event"] for event in told]
    assert sink.posts() < 60


def test_a_few_rows_that_alone_are_called_malformed_are_kept(sink: OtlpSink, tmp_path: Path) -> None:
    sink.default = "400"
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(3))
        assert tracer.close() == counts(spooled=3)
    assert rows_kept(tmp_path) == 3


def test_a_batch_that_is_too_large_is_divided_and_a_row_that_is_too_large_is_cut(
    sink: OtlpSink, tmp_path: Path
) -> None:
    sink.max_body, sink.max_span = 200_000, 60_000
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(100), "x" * 10_000)
        trace(tracer, [100], "y" * 100_000)
        assert tracer.close() == counts(exported=101)
    cut = next(row for row in sink.rows() if row.attributes["langfuse.observation.metadata.row"] == "100")
    assert cut.attributes["langfuse.observation.metadata.content_cut"] == "true"
    assert len(sink.rows()) == 101
    assert "tracing.cut" in [event["event"] for event in told]


def test_a_row_that_is_too_large_even_when_it_is_cut_is_dropped_and_counted(sink: OtlpSink, tmp_path: Path) -> None:
    sink.max_span = 5_000
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(10))
        trace(tracer, [10], "y" * 100_000)
        assert tracer.close() == counts(exported=10, dropped=1)


def test_an_answer_that_says_that_a_span_was_left_out_is_no_success(sink: OtlpSink, tmp_path: Path) -> None:
    sink.script = ["partial"]
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(10))
        assert tracer.close() == counts(exported=10)
    assert sink.row_numbers() == list(range(10))


# ------------------------------------------------------------- dead, slow, gone


def test_a_dead_server_delays_the_end_by_little_and_the_next_run_sends_what_was_kept(
    sink: OtlpSink, tmp_path: Path
) -> None:
    sink.down()
    with events() as told, tracing(sink, tmp_path) as tracer:
        began = time.monotonic()
        trace(tracer, range(1000))
        assert time.monotonic() - began < 2
        assert tracer.close() == counts(spooled=1000)
        assert time.monotonic() - began < 5
    assert [event["event"] for event in told] == ["tracing.waiting", "tracing.closed"]
    assert rows_kept(tmp_path) == 1000
    assert 3 <= len(files(tmp_path)) <= 6  # a slow machine makes one more than two of rows and one of the summary
    sink.up()
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(1000, 1005))
        assert tracer.close() == counts(exported=5, replayed=1000)
    assert sink.row_numbers() == list(range(1005))
    assert len(sink.spans) == len({span.identity for span in sink.spans})
    assert files(tmp_path) == []


@pytest.mark.parametrize("default", ["hang", "slow:20"])
def test_a_black_hole_delays_the_end_by_no_more_than_the_deadline(sink: OtlpSink, tmp_path: Path, default: str) -> None:
    sink.default = default
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(3000))
        began = time.monotonic()
        assert tracer.close(deadline_s=1.0) == counts(spooled=3000)
        assert time.monotonic() - began < 6
    assert rows_kept(tmp_path) == 3000


def test_a_server_that_accepts_connections_and_reads_nothing_is_a_black_hole_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sink = OtlpSink(port=deaf.getsockname()[1])
        with tracing(sink, tmp_path) as tracer:
            trace(tracer, range(100), os.urandom(50_000).hex())
            began = time.monotonic()
            assert tracer.close(deadline_s=1.0) == counts(spooled=100)
            assert time.monotonic() - began < 6


def test_a_server_that_comes_back_gets_everything_within_the_run(sink: OtlpSink, tmp_path: Path) -> None:
    sink.down()
    with tracing(sink, tmp_path, flush_at=10) as tracer:
        trace(tracer, range(100))
        time.sleep(0.1)
        sink.up()
        sink.wait_for(lambda: len(sink.rows()) == 100)
        assert tracer.close() == counts(exported=100)


def test_what_waits_to_be_sent_is_bounded_and_the_rest_goes_to_files(
    sink: OtlpSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_MAX_READY", 20_000)
    sink.default = "hang"
    with tracing(sink, tmp_path, flush_at=50) as tracer:
        trace(tracer, range(5000))
        sink.wait_for(lambda: rows_kept(tmp_path) > 3000)
        sink.default = "ok"
        sink.released.set()
        sink.wait_for(lambda: len(sink.rows()) == 5000)
        assert tracer.close() == counts(exported=5000)
    assert files(tmp_path) == []


def test_rows_that_come_faster_than_they_can_be_kept_are_counted_as_dropped(
    sink: OtlpSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "_MAX_INBOX", 1000)
    monkeypatch.setattr(packer, "_ROOM_S", 0.05)
    held = threading.Event()
    keep = spool.Spool.keep

    def hanging(self: spool.Spool, body: bytes, rows: int) -> str:
        held.wait(10)
        return keep(self, body, rows)

    monkeypatch.setattr(spool.Spool, "keep", hanging)
    monkeypatch.setattr(exporter, "_MAX_READY", 0)
    with tracing(sink, tmp_path, flush_at=1) as tracer:
        trace(tracer, range(100))
        held.set()
        found = tracer.close()
    assert found.dropped > 90
    assert found.exported + found.spooled + found.dropped == 100
    assert len(sink.rows()) == found.exported


def test_without_a_place_to_keep_them_rows_are_dropped_and_counted(sink: OtlpSink, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    sink.down()
    with events() as told, tracing(sink, tmp_path / "file/inside") as tracer:
        trace(tracer, range(5))
        assert tracer.close() == counts(dropped=5)
    assert "cannot write" in next(event["reason"] for event in told if event["event"] == "tracing.dropped")


def test_a_damaged_file_is_dropped_and_holds_up_nothing(sink: OtlpSink, tmp_path: Path) -> None:
    (tmp_path / "1-000001-7.otlp.gz").write_bytes(b"garbage")
    with events() as told, tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        assert tracer.close() == counts(exported=5)
    assert files(tmp_path) == []
    assert any("damaged" in event.get("reason", "") for event in told)


def test_a_kept_batch_with_a_malformed_row_is_divided_in_files(sink: OtlpSink, tmp_path: Path) -> None:
    sink.down()
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(64))
        tracer.close()
    sink.up()
    sink.refuse = lambda span: span.attributes.get("langfuse.observation.metadata.row") == "9"
    with tracing(sink, tmp_path) as tracer:
        assert tracer.close() == counts(replayed=63)
    assert sink.row_numbers() == [row for row in range(64) if row != 9]
    assert files(tmp_path) == []


# ------------------------------------------------------------------ a later run


def commit(home: Path, rows: list[ChatResult], name: str = "000000-aa.parquet") -> None:
    home.mkdir(exist_ok=True)
    pq.write_table(table_of(rows), home / name)


def test_what_a_killed_run_had_committed_but_not_sent_is_sent_by_the_next_one_and_nothing_else(
    sink: OtlpSink, tmp_path: Path
) -> None:
    home, place = tmp_path / "home", tmp_path / "traces"
    rows = [result(row) for row in range(10)]
    rows[9].trace_id = None  # of a run that was not traced
    with tracing(sink, place) as tracer:
        trace(tracer, range(6))
        tracer.close()
    commit(home, rows[:5])
    commit(home, rows[5:], "000001-aa.parquet")
    sink.spans.clear()
    with tracing(sink, place, home=home) as tracer:
        for row in range(10):
            tracer.reused(request(row))
        assert tracer.close() == counts(exported=3)
    assert sink.row_numbers() == [6, 7, 8]
    assert sink.rows()[0].start_ns == 1764063000129456000
    with tracing(sink, place, home=home) as tracer:
        for row in range(10):
            tracer.reused(request(row))
        assert tracer.close() == counts()


def test_rows_in_files_are_not_owed_and_an_edited_row_is_not_either(sink: OtlpSink, tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "traces"
    sink.down()
    with tracing(sink, place) as tracer:
        trace(tracer, range(3))
        tracer.close()
    commit(home, [result(row) for row in range(4)])
    sink.up()
    with tracing(sink, place, home=home) as tracer:
        for row in range(3):
            tracer.reused(request(row))
        edited = request(3)
        edited.request_hash = "f" * 32
        tracer.reused(edited)
        assert tracer.close() == counts(replayed=3)
    assert sink.row_numbers() == [0, 1, 2]


def test_answers_that_cannot_be_read_cost_no_more_than_the_traces_that_are_owed(sink: OtlpSink, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "000000-aa.parquet").write_bytes(b"garbage")
    with events() as told, tracing(sink, tmp_path / "traces", home=home) as tracer:
        tracer.reused(request(1))
        trace(tracer, [1])
        assert tracer.close() == counts(exported=1)
    assert told[0]["event"] == "tracing.unsettled"


def test_notes_of_settled_rows_work_in_an_object_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "local_path", None)
    place = spool.Spool(Folder(str(tmp_path)))
    keys = b"".join(spool.row_key(result(row)) for row in range(4))
    place.settle(keys[:16])
    place.settle(keys[16:])
    assert place.notes.keys() == b""  # not each by itself
    place.notes.flush()
    place.notes.flush()
    assert place.notes.keys() == keys
    assert len(list(tmp_path.iterdir())) == 1


def session(sink: OtlpSink, folder: Path, rows: range, **changes: Any) -> tuple[TraceCounts, TraceCounts]:
    """One process of several: what became of its rows, and of all."""
    with tracing(sink, folder, **changes) as tracer:
        trace(tracer, rows)
        time.sleep(0.1)
        own = tracer.close(deadline_s=1.0)
        return own, tracer.totals()


def test_processes_that_go_on_with_one_another_are_counted_together(sink: OtlpSink, tmp_path: Path) -> None:
    assert session(sink, tmp_path, range(100)) == (counts(exported=100), counts(exported=100))
    sink.down()
    assert session(sink, tmp_path, range(100, 150)) == (counts(spooled=50), counts(exported=100, spooled=50))
    sink.up()
    own, all_together = session(sink, tmp_path, range(150, 200), sample_rate=0.5)
    assert own.replayed == 50
    assert own.exported + own.sampled_out == 50
    assert own.sampled_out > 0
    left_out = own.sampled_out
    assert all_together == counts(exported=200 - left_out, sampled_out=left_out, replayed=50)
    sink.refuse = lambda span: span.attributes.get("langfuse.observation.metadata.row") == "203"
    own, all_together = session(sink, tmp_path, range(200, 210), flush_at=4)
    assert own == counts(exported=9, dropped=1)
    assert all_together == counts(exported=209 - left_out, sampled_out=left_out, dropped=1)
    assert len(sink.rows()) == all_together.exported


def test_rows_that_are_dropped_from_a_file_are_counted_where_they_belong(sink: OtlpSink, tmp_path: Path) -> None:
    sink.down()
    session(sink, tmp_path, range(20))
    (tmp_path / files(tmp_path)[0]).write_bytes(b"damaged")
    sink.default = "400"
    sink.up()
    own, all_together = session(sink, tmp_path, range(0))
    assert own == counts()
    assert all_together == counts(dropped=20)


def test_rows_of_another_input_whose_files_lie_in_the_same_place_are_not_counted(
    sink: OtlpSink, tmp_path: Path
) -> None:
    sink.down()
    session(sink, tmp_path, range(20))
    sink.up()
    tracer = LiveTracer(settings(sink.url), ORIGIN, spool=Folder(str(tmp_path)), notes=Folder(f"{tmp_path}/other"))
    trace(tracer, range(5))
    time.sleep(0.1)
    assert tracer.close() == counts(exported=5, replayed=20) == tracer.totals()


def test_where_nothing_lasts_what_is_in_files_at_the_end_is_dropped(sink: OtlpSink, tmp_path: Path) -> None:
    sink.down()
    tracer = LiveTracer(settings(sink.url), ORIGIN, spool=Folder(str(tmp_path)), lasts=False)
    trace(tracer, range(20))
    assert tracer.close(deadline_s=1.0) == counts(dropped=20) == tracer.totals()


# ---------------------------------------------------------------------- replay


def replay(sink: OtlpSink, folder: Path, *flags: str, **changes: str) -> int:
    return main(["replay", str(folder), *flags], {**sink.environment(), **changes})


def test_replay_sends_what_is_kept_anywhere_below_and_removes_it(
    sink: OtlpSink, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink.down()
    for shard in ("00000", "00001"):
        with tracing(sink, tmp_path / "traces" / shard) as tracer:
            trace(tracer, range(100 * int(shard), 100 * int(shard) + 100))
            assert tracer.close().spooled == 100
    assert replay(sink, tmp_path) == 1
    assert "sent 0, dropped 0, left 200 rows in 4 files" in capsys.readouterr().err
    sink.up()
    assert replay(sink, tmp_path) == 0
    assert "sent 200, dropped 0, left 0 rows in 0 files" in capsys.readouterr().err
    assert sink.row_numbers() == list(range(200))
    assert replay(sink, tmp_path) == 0
    assert "no traces are kept" in capsys.readouterr().err


def test_replay_says_what_is_wrong(sink: OtlpSink, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(sink, tmp_path, LANGFUSE_BASE_URL="langfuse") == 2
    assert "no scheme" in capsys.readouterr().err
    sink.down()
    with tracing(sink, tmp_path) as tracer:
        trace(tracer, range(5))
        tracer.close()
    sink.up()
    assert replay(sink, tmp_path, LANGFUSE_SECRET_KEY="sk-lf-other") == 1
    said = capsys.readouterr().err
    assert "401" in said
    assert "left 5 rows" in said
    assert rows_kept(tmp_path) == 5


# ---------------------------------------------------------------------- others


def test_a_defect_in_tracing_never_reaches_the_rows(
    sink: OtlpSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    with events() as told, tracing(sink, tmp_path) as tracer:
        rows = [result(1), result(2)]
        tracer.finished(request(1), rows[0])
        tracer.finished(request(2), rows[1])
        rows[1].trace_id = None
        tracer.committed(rows)
        monkeypatch.setattr(exporter.Exporter, "put", broken)
        trace(tracer, [3])
        monkeypatch.setattr(exporter.Exporter, "_accepted", broken)
        found = tracer.close()
    assert "tracing.failed" in [event["event"] for event in told]
    assert found == counts(dropped=3)
