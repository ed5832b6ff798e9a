from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.batch.ledger import Ledger
from clients.batch.lengths import KnownLengths
from clients.errors import SettingsError, StorageError
from clients.records import ChatResult, Outcome
from clients.storage import Folder

HASHES = [f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}{number:016x}" for number in range(1000)]


def write(path: Path, hashes: list[str | None], tokens: list[int | None]) -> None:
    table = pa.table({"request_hash": pa.array(hashes, pa.string()), "completion_tokens": pa.array(tokens, pa.int64())})
    pq.write_table(table, path, row_group_size=300)


def test_every_length_is_found_by_its_hash(tmp_path: Path) -> None:
    write(tmp_path / "results.parquet", [*HASHES], [*range(1, 1001)])
    write(tmp_path / "rejects.parquet", ["f" * 32], [5])
    for location in (tmp_path, tmp_path / "results.parquet"):
        known = KnownLengths(str(location))
        assert len(known) == 1000
        assert [known.tokens(name) for name in HASHES] == [*range(1, 1001)]
        assert known.tokens("f" * 32) is None
        assert known.tokens("0" * 31 + "1") is None or HASHES[0].startswith("0" * 16)


def test_rows_without_an_answer_say_nothing(tmp_path: Path) -> None:
    write(tmp_path / "results.parquet", ["", None, HASHES[1], HASHES[2], HASHES[3]], [7, 7, None, 0, 9])
    known = KnownLengths(str(tmp_path))
    assert [known.tokens(name) for name in HASHES[1:4]] == [None, None, 9]


def test_a_ledger_says_the_same(tmp_path: Path) -> None:
    with Ledger(Folder(str(tmp_path / "ledger/plan/00000")), first_row=0, rows=2) as ledger:
        for row in (0, 1):
            ledger.commit(
                [ChatResult(row=row, id="x", request_hash=HASHES[row], outcome=Outcome.OK, completion_tokens=row + 1)]
            )
    known = KnownLengths(str(tmp_path))
    assert [known.tokens(name) for name in HASHES[:2]] == [1, 2]


def test_what_holds_no_lengths_is_named_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no results\. Give the results\.parquet"):
        KnownLengths(str(tmp_path))
    for data in (b"", b"rubbish"):
        (tmp_path / "results.parquet").write_bytes(data)
        with pytest.raises(StorageError, match=r"cannot read .*results\.parquet: .* Give the results.parquet"):
            KnownLengths(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "results.parquet")
    with pytest.raises(StorageError, match=r"cannot read .*results\.parquet: .* Give the results.parquet"):
        KnownLengths(str(tmp_path))
    write(tmp_path / "results.parquet", ["not hexadecimal, but 32 letters!!"[:32]], [1])
    with pytest.raises(StorageError, match=r"cannot read .*results\.parquet: .* Give the results.parquet"):
        KnownLengths(str(tmp_path))
