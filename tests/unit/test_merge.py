import errno
import os
import random
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import StorageError
from clients.prompts.columns import CarriedColumns
from clients.prompts.rows import Row
from clients.records import InvalidRow, Outcome
from clients.results.assemble import WINDOW_ROWS, results_schema, write_results
from clients.results.merge import merge_parts
from clients.results.schema import SETTINGS_KEY, TRACE_URL_KEY

SETTINGS = {"model": "m", "shards": 3}
OUTCOMES = st.sampled_from([Outcome.OK, Outcome.OK, Outcome.TRUNCATED, Outcome.FAILED, Outcome.INVALID])


def write_part(path: Path, first_row: int, outcomes: list[Outcome]) -> Path:
    rows: list[dict[str, Any]] = [
        {"row": row, "id": f"row-{row}", "request_hash": "", "outcome": outcome, "attempts": 1, "topic": f"t{row}"}
        for row, outcome in enumerate(outcomes, first_row)
    ]
    schema = results_schema(CarriedColumns({"topic": "text"}), SETTINGS)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


@settings(deadline=None)
@given(st.lists(st.lists(OUTCOMES, max_size=6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_parts_are_joined_in_input_order_and_what_is_not_ok_is_set_apart(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[Outcome]], order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    whole = [outcome for shard in shards for outcome in shard]
    parts, first_row = [], 0
    for number, shard in enumerate(shards):
        parts.append(write_part(folder / f"part-{number}", first_row, shard))
        first_row += len(shard)
    order.shuffle(parts)
    summary = merge_parts(parts, folder / "results", folder / "rejects")
    results, rejects = pq.read_table(folder / "results"), pq.read_table(folder / "rejects")
    assert results["row"].to_pylist() == list(range(len(whole)))
    assert results["outcome"].to_pylist() == whole
    assert results["topic"].to_pylist() == [f"t{row}" for row in range(len(whole))]
    assert rejects["row"].to_pylist() == [row for row, outcome in enumerate(whole) if outcome is not Outcome.OK]
    assert results.schema.equals(rejects.schema, check_metadata=True)
    assert orjson.loads(results.schema.metadata[SETTINGS_KEY]) == SETTINGS
    assert summary["rows"] == len(whole)
    assert summary["outcomes"] == {outcome: whole.count(outcome) for outcome in Outcome}


def traced_part(path: Path, first_row: int, run: dict[str, Any]) -> Path:
    rows = [Row(InvalidRow(row, f"row-{row}", "not_json", ""), {}) for row in range(first_row, first_row + 3)]
    nothing = pa.array([], pa.int64())
    write_results(
        path,
        rows,
        [],
        CarriedColumns({}),
        joined=lambda *_: (nothing, nothing),
        first_row=first_row,
        settings={},
        run=run,
    )
    return path


@pytest.mark.parametrize("traced", [(0,), (0, 1), (1,)])
def test_traces_are_counted_over_the_parts_and_the_results_tell_where_one_is(
    tmp_path: Path, traced: tuple[int, ...]
) -> None:
    url = "http://langfuse/project/p/traces/{trace_id}"
    runs = [
        {"traces": {"exported": 3, "dropped": number}, "trace_url": url} if number in traced else {}
        for number in range(2)
    ]
    parts = [traced_part(tmp_path / f"part-{number}", 3 * number, run) for number, run in enumerate(runs)]
    summary = merge_parts(parts, tmp_path / "results", tmp_path / "rejects")
    assert summary["traces"] == {"exported": 3 * len(traced), "dropped": sum(traced)}
    assert summary["trace_url"] == url
    for name in ("results", "rejects"):
        assert pq.read_schema(tmp_path / name).metadata[TRACE_URL_KEY].decode() == url
    merge_parts(parts[traced[0] : traced[0] + 1], tmp_path / "results", tmp_path / "rejects")
    assert pq.read_schema(tmp_path / "results").metadata[TRACE_URL_KEY].decode() == url


def test_without_traces_there_are_no_counts_of_them(tmp_path: Path) -> None:
    summary = merge_parts([traced_part(tmp_path / "part", 0, {})], tmp_path / "results", tmp_path / "rejects")
    assert (summary["traces"], summary["trace_url"]) == (None, None)
    assert TRACE_URL_KEY not in pq.read_schema(tmp_path / "results").metadata


def test_parts_of_several_windows_keep_their_order(tmp_path: Path) -> None:
    size = WINDOW_ROWS + 5
    parts = [write_part(tmp_path / f"{number}", number * size, [Outcome.OK] * size) for number in (1, 0)]
    merge_parts(parts, tmp_path / "results", tmp_path / "rejects")
    assert pq.read_table(tmp_path / "results")["row"].to_pylist() == list(range(2 * size))
    assert pq.read_metadata(tmp_path / "rejects").num_rows == 0


def test_a_single_part_is_itself_the_results(tmp_path: Path) -> None:
    part = write_part(tmp_path / "part", 0, [Outcome.OK, Outcome.FAILED, Outcome.OK])
    (tmp_path / "results").write_bytes(b"of an earlier run")
    summary = merge_parts([part], tmp_path / "results", tmp_path / "rejects")
    assert (tmp_path / "results").samefile(part)
    assert pq.read_table(tmp_path / "rejects")["row"].to_pylist() == [1]
    assert summary["rows"] == 3


def test_a_single_part_on_another_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    part = write_part(tmp_path / "part", 0, [Outcome.OK])
    merge_parts([part], tmp_path / "results", tmp_path / "rejects")
    assert (tmp_path / "results").read_bytes() == part.read_bytes()
    assert not (tmp_path / "results").samefile(part)


@pytest.mark.parametrize("data", [None, b"", b"rubbish", b"PAR1PAR1"])
def test_a_part_that_cannot_be_read_is_named(tmp_path: Path, data: bytes | None) -> None:
    bad = tmp_path / "bad"
    if data is not None:
        bad.write_bytes(data)
    good = write_part(tmp_path / "good", 0, [Outcome.OK])
    with pytest.raises(StorageError, match=f"cannot read {bad}: .* the same command again"):
        merge_parts([good, bad], tmp_path / "results", tmp_path / "rejects")


@pytest.mark.parametrize("start", [4, 5000])
def test_a_part_damaged_inside_is_named(tmp_path: Path, start: int) -> None:
    part = write_part(tmp_path / "part", 0, [Outcome.OK] * 2000)
    data = bytearray(part.read_bytes())
    data[start : start + 396] = b"\xff" * 396
    part.write_bytes(data)
    with pytest.raises(StorageError, match=f"cannot read {part}: .* the same command again"):
        merge_parts([part], tmp_path / "results", tmp_path / "rejects")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    part = write_part(tmp_path / "part", 0, [Outcome.OK])
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/no/results: .* the same command again"):
        merge_parts([part], tmp_path / "no" / "results", tmp_path / "rejects")
