"""Count the rows that have their own answer in results: a JSONL file, a Parquet file, or a folder of Parquet files."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from benchmarks.inputs import start_of_answer


def answers_in(path: Path) -> Iterator[tuple[int, str | None]]:
    """Every row number and its text; a folder is read as pandas does it, while a run writes there too."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for line in lines:
                answer = orjson.loads(line)
                yield answer["row"], answer.get("content")
    elif not path.is_dir() or any(path.rglob("[!.]*.parquet")):  # else nothing is committed yet
        import pandas as pd

        frame = pd.read_parquet(path, columns=["row", "content"])
        for row, text in zip(frame["row"], frame["content"], strict=True):
            yield int(row), text if isinstance(text, str) else None


def answered(answers: Iterable[tuple[int, str | None]]) -> int:
    """How many rows have the answer that was given to them and to no other."""
    return len({row for row, text in answers if text is not None and text.startswith(start_of_answer(row))})


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps({"answered": answered(answers_in(Path(sys.argv[1])))}))
