import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.batch.duplicates import Duplicates
from clients.batch.ledger import Ledger
from clients.prompts.columns import CarriedColumns
from clients.prompts.lines import Line
from clients.prompts.rows import JobDefaults, Row, parse_row
from clients.records import ChatRequest, ChatResult, InvalidRow, Outcome
from clients.results import assemble, gather
from clients.results.assemble import MISSING, write_results
from clients.results.schema import COLUMNS, FORMAT_VERSION, SETTINGS_KEY
from clients.storage import Folder

SETTINGS = {"model": "m", "system_prompt": "안녕"}


def none_joined(low: int, high: int) -> tuple[pa.Array, pa.Array]:
    return pa.array([], pa.int64()), pa.array([], pa.int64())


def row_of(number: int, fields: dict[str, Any] | bytes) -> Row:
    data = fields if isinstance(fields, bytes) else orjson.dumps(fields)
    return parse_row(Line(row=number, number=number + 1, start=0, data=data), JobDefaults(model="m"))


def result_of(row: Row, **fields: Any) -> ChatResult:
    asked = row.request
    assert not isinstance(asked, InvalidRow)
    found = {"outcome": Outcome.OK, "content": f"answer {asked.row}", "attempts": 1, **fields}
    return ChatResult(row=asked.row, id=asked.id, request_hash=asked.request_hash, **found)


def assembled(
    folder: Path, rows: list[Row], batches: list[list[ChatResult]], *, first_row: int = 0
) -> tuple[pa.Table, int]:
    """The table that comes of some rows and of answers committed in some order."""
    carried = CarriedColumns()
    for row in rows:
        carried.observe(row.carried)
    path = folder / "part.parquet"
    with Ledger(Folder(str(folder / "ledger")), first_row=first_row, rows=len(rows)) as ledger:
        for batch in batches:
            ledger.commit(batch)
        missing = write_results(
            path, rows, ledger.rows_by_segment(), carried, joined=ledger.joined, first_row=first_row, settings=SETTINGS
        )
        assert missing == ledger.unanswered() - sum(isinstance(row.request, InvalidRow) for row in rows)
    return pq.read_table(path), missing


#: How a row ends: bad from the start, never answered, or answered.
ENDS = st.sampled_from(["invalid", "missing", "ok", "ok", "ok"])


@settings(deadline=None)
@given(
    st.lists(ENDS, min_size=1, max_size=30), st.integers(1, 7), st.integers(0, 99), st.randoms(use_true_random=False)
)
def test_every_row_has_one_result_in_input_order_whatever_the_order_of_the_answers(
    tmp_path_factory: pytest.TempPathFactory, ends: list[str], window: int, first_row: int, order: random.Random
) -> None:
    rows = [
        row_of(first_row + at, b"{" if end == "invalid" else {"custom_id": f"c{at}", "prompt": f"p{at}", "x": at})
        for at, end in enumerate(ends)
    ]
    results = [result_of(row) for row, end in zip(rows, ends, strict=True) if end == "ok"]
    order.shuffle(results)
    batches = [results[at : at + 4] for at in range(0, len(results), 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "WINDOW_ROWS", window)
        table, missing = assembled(tmp_path_factory.mktemp("part"), rows, batches, first_row=first_row)
    assert missing == ends.count("missing")
    words = {"invalid": ("invalid", "not_json", None), "missing": ("failed", MISSING, None)}
    expected = [
        (number, *(words.get(end) or ("ok", None, f"answer {number}"))) for number, end in enumerate(ends, first_row)
    ]
    found = table.select(["row", "outcome", "error_code", "content"]).to_pylist()
    assert [tuple(row.values()) for row in found] == expected
    assert table["id"].to_pylist() == [row.request.id for row in rows]
    if set(ends) != {"invalid"}:
        assert table["x"].to_pylist() == [None if end == "invalid" else at for at, end in enumerate(ends)]


def test_twenty_thousand_rows_answered_in_any_order_come_out_in_input_order(tmp_path: Path) -> None:
    rows = [row_of(7 + at, {"prompt": f"p{at}", "topic": "t", "score": at / 4, "n_seen": at}) for at in range(20_000)]
    results = [result_of(row) for row in rows if row.request.row % 1000]
    random.Random(5).shuffle(results)
    batches = [results[at : at + 2000] for at in range(0, len(results), 2000)]
    table, missing = assembled(tmp_path, rows, batches, first_row=7)
    assert missing == 20
    numbers = range(7, 20_007)
    assert table["row"].to_pylist() == list(numbers)
    assert table["content"].to_pylist() == [f"answer {number}" if number % 1000 else None for number in numbers]
    assert table["score"].to_pylist() == [at / 4 for at in range(20_000)]
    assert pq.ParquetFile(tmp_path / "part.parquet").metadata.num_row_groups == 2


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=30),
    st.sets(st.sampled_from("abcd")),
    st.integers(1, 7),
    st.sampled_from([0, 1 << 20]),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
def test_rows_that_ask_the_same_share_one_answer_wherever_they_stand(
    tmp_path_factory: pytest.TempPathFactory,
    asked: list[str],
    unanswered: set[str],
    window: int,
    held: int,
    first_row: int,
    order: random.Random,
) -> None:
    rows = [row_of(first_row + at, {"prompt": text}) for at, text in enumerate(asked)]
    folder = tmp_path_factory.mktemp("joined")
    with (
        pytest.MonkeyPatch.context() as patch,
        Ledger(Folder(str(folder / "ledger")), first_row=first_row, rows=len(rows), share=True) as ledger,
    ):
        patch.setattr(assemble, "WINDOW_ROWS", window)
        patch.setattr(gather, "_HELD_BYTES", held)
        duplicates, sent = Duplicates(first_row=first_row, rows=len(rows)), []
        for row, text in zip(rows, asked, strict=True):
            assert isinstance(row.request, ChatRequest)
            if (earlier := duplicates.earlier(row.request)) is None:
                sent += [row] if text not in unanswered else []
            else:
                assert earlier[0] == first_row + asked.index(text)
                ledger.join(row.request.row, earlier[1])
        order.shuffle(sent)
        for at in range(0, len(sent), 2):
            ledger.commit([result_of(row) for row in sent[at : at + 2]])
        missing = write_results(
            folder / "x",
            rows,
            ledger.rows_by_segment(),
            CarriedColumns(),
            joined=ledger.joined,
            first_row=first_row,
            settings=SETTINGS,
        )
    found = pq.read_table(folder / "x").select(["row", "content", "attempts"]).to_pylist()
    assert missing == sum(text in unanswered for text in asked)
    for at, (row, text) in enumerate(zip(found, asked, strict=True)):
        first = asked.index(text)
        if text in unanswered:
            assert row == {"row": first_row + at, "content": None, "attempts": 0}
        else:
            assert row == {
                "row": first_row + at,
                "content": f"answer {first_row + first}",
                "attempts": int(at == first),
            }


def test_answers_that_come_in_no_order_at_all_go_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "WINDOW_ROWS", 50)
    monkeypatch.setattr(gather, "_HELD_BYTES", 2000)
    monkeypatch.setattr(gather, "_SORT_BYTES", 500)
    rows = [row_of(at, {"prompt": f"p{at}"}) for at in range(1000)]
    results = [result_of(row) for row in rows]
    random.Random(7).shuffle(results)
    table, missing = assembled(tmp_path, rows, [results[at : at + 10] for at in range(0, 1000, 10)])
    assert missing == 0
    assert table["content"].to_pylist() == [f"answer {at}" for at in range(1000)]


def test_row_groups_are_cut_by_rows_and_by_bytes(tmp_path: Path) -> None:
    rows = [row_of(at, {"prompt": f"p{at}"}) for at in range(4000)]
    batches = [[result_of(row, content="x" * 8192) for row in rows[at : at + 500]] for at in range(0, 4000, 500)]
    assembled(tmp_path, rows, batches)
    metadata = pq.read_metadata(tmp_path / "part.parquet")
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [1024, 1024, 1024, 928]


def test_the_file_opens_in_pandas_and_duckdb_with_the_documented_types(tmp_path: Path) -> None:
    fields = {"prompt": "a", "flag": True, "count": 5, "rate": 0.5, "topic": "날씨", "tags": ["x"], "row": "mine"}
    rows = [row_of(0, fields), row_of(1, {"prompt": "b"})]
    table, _ = assembled(tmp_path, rows, [[result_of(rows[0], latency_s=0.25, prompt_tokens=3)]])
    assert table.schema.names == [*COLUMNS.names, "flag", "count", "rate", "topic", "tags", "input_row"]
    assert all(table.schema.field(name).type == COLUMNS.field(name).type for name in COLUMNS.names)
    assert table.schema.metadata[b"kubeflow_llm_inference.format_version"] == str(FORMAT_VERSION).encode()
    assert orjson.loads(table.schema.metadata[SETTINGS_KEY]) == SETTINGS
    path = tmp_path / "part.parquet"
    frame = pd.read_parquet(path)
    assert frame.loc[0, ["row", "outcome", "flag", "count", "rate", "topic", "input_row"]].tolist() == [
        0, "ok", True, 5, 0.5, "날씨", "mine",
    ]  # fmt: skip
    relation = duckdb.read_parquet(str(path))
    types = {name: str(kind) for name, kind in zip(relation.columns, relation.types, strict=True)}
    assert types | {
        "row": "BIGINT", "outcome": "VARCHAR", "prompt_tokens": "BIGINT", "attempts": "INTEGER",
        "started_at": "TIMESTAMP WITH TIME ZONE", "latency_s": "DOUBLE", "flag": "BOOLEAN", "count": "BIGINT",
        "rate": "DOUBLE", "topic": "VARCHAR", "tags": "VARCHAR",
    } == types  # fmt: skip
    assert relation.filter("outcome = 'ok'").project("tags ->> 0").fetchall() == [("x",)]


def test_rows_without_an_answer_say_why(tmp_path: Path) -> None:
    rows = [row_of(0, {"prompt": "a"}), row_of(1, {"custom_id": "c", "prompt": 5}), row_of(2, {"prompt": "b"})]
    table, missing = assembled(tmp_path, rows, [[result_of(rows[0])]])
    assert missing == 1
    bad, lost = table.slice(1).to_pylist()
    assert (bad["outcome"], bad["id"], bad["request_hash"], bad["attempts"]) == ("invalid", "c", "", 0)
    assert (bad["error_code"], bad["error_message"]) == (
        "wrong_type",
        "line 2: prompt must be text that is not empty, found a number",
    )
    assert (lost["outcome"], lost["error_code"], lost["attempts"]) == ("failed", MISSING, 0)
    assert lost["request_hash"] == rows[2].request.request_hash  # type: ignore[union-attr]
    assert "run the same command again" in lost["error_message"]


def test_an_answer_taken_over_from_another_row_stands_under_the_rows_own_id(tmp_path: Path) -> None:
    old, new = row_of(0, {"custom_id": "old", "prompt": "a"}), row_of(1, {"custom_id": "new", "prompt": "a"})
    with Ledger(Folder(str(tmp_path)), first_row=0, rows=1) as ledger:
        ledger.commit([result_of(old)])
    with Ledger(Folder(str(tmp_path)), first_row=0, rows=2) as ledger:
        assert ledger.claim(new.request)  # type: ignore[arg-type]
        rows = [row_of(0, {"prompt": "another"}), new]
        write_results(
            tmp_path / "x",
            rows,
            ledger.rows_by_segment(),
            CarriedColumns(),
            joined=ledger.joined,
            first_row=0,
            settings=SETTINGS,
        )
    found = pq.read_table(tmp_path / "x").select(["row", "id", "outcome", "content"]).to_pylist()
    assert [list(row.values()) for row in found] == [[0, "row-0", "failed", None], [1, "new", "ok", "answer 0"]]


def test_an_answer_is_never_given_to_a_row_that_was_edited_since(tmp_path: Path) -> None:
    asked = row_of(0, {"prompt": "a"})
    with Ledger(Folder(str(tmp_path)), first_row=0, rows=1) as ledger:
        ledger.commit([result_of(asked)])
        edited = [row_of(0, {"prompt": "edited"})]
        missing = write_results(
            tmp_path / "x",
            edited,
            ledger.rows_by_segment(),
            CarriedColumns(),
            joined=ledger.joined,
            first_row=0,
            settings=SETTINGS,
        )
    assert missing == 1
    assert pq.read_table(tmp_path / "x")["content"].to_pylist() == [None]


def test_requests_of_megabytes_are_not_held_while_their_window_fills(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        for number in range(300):
            yield row_of(number, {"prompt": str(number) + "x" * (1 << 20)})

    tracemalloc.start()
    try:
        write_results(
            tmp_path / "x", rows(), iter(()), CarriedColumns(), joined=none_joined, first_row=0, settings=SETTINGS
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    assert pq.read_metadata(tmp_path / "x").num_rows == 300


def test_no_scratch_file_is_left_when_the_input_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(gather, "_HELD_BYTES", 0)
    monkeypatch.setattr(assemble, "WINDOW_ROWS", 1)
    row = row_of(0, {"prompt": "a"})

    def broken() -> Iterator[Row]:
        yield row
        raise KeyError("planted")

    with Ledger(Folder(str(tmp_path / "ledger")), first_row=0, rows=1) as ledger:
        ledger.commit([result_of(row)])
        with pytest.raises(KeyError, match="planted"):
            write_results(
                tmp_path / "x",
                broken(),
                ledger.rows_by_segment(),
                CarriedColumns(),
                joined=ledger.joined,
                first_row=0,
                settings=SETTINGS,
            )
    assert list(scratch.iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.unit.test_assemble import SETTINGS, none_joined, row_of
from clients.errors import StorageError
from clients.prompts.columns import CarriedColumns
from clients.results.assemble import write_results
from clients.results.merge import merge_parts

folder = Path(sys.argv[1])
rows = [row_of(number, {"prompt": "a", "x": str(hash(str(number)))}) for number in range(9000)]
carried = CarriedColumns({"x": "text"})
write_results(folder / "part", rows, iter(()), carried, joined=none_joined, first_row=0, settings=SETTINGS)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
for write in (
    lambda: write_results(folder / "x", rows, iter(()), carried, joined=none_joined, first_row=0, settings=SETTINGS),
    lambda: merge_parts([folder / "part"], folder / "results", folder / "rejects"),
):
    try:
        write()
    except StorageError as error:
        print(error)
"""


def test_a_disk_that_takes_no_more_is_one_sentence_with_the_mend(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", FULL, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert ran.stderr == ""
    first, second = ran.stdout.splitlines()
    assert first.startswith(f"cannot write {tmp_path}/x: ")
    assert second.startswith(f"cannot write {tmp_path}/rejects: ")
    assert "File too large" in first
    assert second.endswith("Check that it can be written and run the same command again.")
