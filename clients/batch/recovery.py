"""What a killed process left in its journal becomes a segment, before anything is read."""

from clients.batch.journal import journals, read_journal
from clients.batch.lock import release_lock, take_lock
from clients.errors import LedgerInUseError
from clients.records import ChatResult
from clients.storage import Folder, refusals

#: A journal holds what was about to be committed, and was, if the process was killed before it removed the file: then
#: it stands in one of so many newest segments.
_NEWEST = 4


def recover(home: Folder) -> None:
    """Commit what the journals in a shard's folder hold. Only for the process that holds the folder's lock.

    Raises:
        StorageError: a segment cannot be read or written, or a journal not be read or removed.
    """
    if home.local_path is None:
        return
    place = home.local_path
    found = [path for path in journals(place) if path.parent == place]
    if not found:
        return
    from clients.batch.segments import INDEX_COLUMNS, encode, read_segment, table_of  # late, with Arrow

    names = [name for name in home.names() if name.endswith(".parquet")]
    committed: set[tuple[int, str]] = set()
    for name in names[-_NEWEST:]:
        table = read_segment(home, name, INDEX_COLUMNS)
        committed.update(zip(table["row"].to_pylist(), table["request_hash"].to_pylist(), strict=True))
    with refusals("read", home.location):
        answers: dict[int, ChatResult] = {result.row: result for path in found for result in read_journal(path)}
        news = [answers[row] for row in sorted(answers) if (row, answers[row].request_hash) not in committed]
        if news:
            number = max((int(name[:6]) + 1 for name in names if name[:6].isdigit()), default=0)
            home.write(f"{number:06d}-recovered.parquet", encode(table_of(news)))
        for path in found:
            path.unlink()


def recover_earlier(folders: tuple[Folder, ...]) -> None:
    """Do the same for the shards of other plans, unless somebody works on them.

    Raises:
        StorageError: as in `recover`.
    """
    for folder in folders:
        if folder.local_path is None:
            continue
        for place in sorted({path.parent for path in journals(folder.local_path)}):
            home = Folder(str(place))
            try:
                lock = take_lock(home, 0.0)
            except LedgerInUseError:
                continue
            try:
                recover(home)
            finally:
                release_lock(lock)
