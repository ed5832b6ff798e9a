"""How the answers of a segment lie in its file: Parquet, so that anything can read them while a run goes on."""

import operator
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clients.errors import StorageError
from clients.records import ChatResult
from clients.results.schema import COLUMNS
from clients.storage import Folder

#: Columns with few different values; for the others a dictionary is made in vain.
_REPEATED = ["outcome", "finish_reason", "model", "endpoint", "error_code"]

#: What is known of a segment whose answers are not read.
INDEX_COLUMNS = pa.schema([COLUMNS.field(name) for name in ("row", "request_hash", "outcome")])

_values_of = operator.attrgetter(*COLUMNS.names)


def table_of(results: Sequence[ChatResult]) -> pa.Table:
    """Some answers as a table of `COLUMNS`; there is at least one."""
    columns = zip(*map(_values_of, results), strict=True)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, COLUMNS, strict=True)]
    return pa.Table.from_arrays(arrays, schema=COLUMNS)


def encode(table: pa.Table) -> pa.Buffer:
    """The bytes of a segment."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=_REPEATED, write_statistics=False, write_page_checksum=True
    )
    return sink.getvalue()


def read_segment(folder: Folder, name: str, columns: pa.Schema) -> pa.Table:
    """Some columns of a segment; of one row group alone when the name ends in `#` and its number.

    Args:
        folder: The state.
        name: Path in it, as the journal names it.
        columns: Those wanted; nullable ones that the file lacks are null.

    Raises:
        StorageError: it cannot be read, or is none.
    """
    path, _, group = name.partition("#")
    with folder.open(path) as stream:
        try:
            with pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=folder.local_path is None) as file:
                groups = [int(group)] if group else range(file.num_row_groups)
                table = file.read_row_groups(groups, columns=columns.names, use_threads=False)
            for at, field in enumerate(columns):  # a column that was added since
                if field.nullable and field.name not in table.column_names:
                    table = table.add_column(at, field, pa.nulls(len(table), field.type))
            return table.cast(columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(folder, name, error) from error


def unreadable(folder: Folder, name: str, error: Exception) -> StorageError:
    """What to say of a file among the segments that is none.

    Args:
        folder: The state.
        name: Path in it.
        error: What reading it raised.
    """
    found = " ".join(str(error).split())
    return StorageError(
        f"cannot read {folder.location}/{name}: {found}. Move the file away; its rows are then sent again."
    )
