"""The output folder of a run on this machine: where results, logs and the state of unfinished work lie."""

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients.batch.journal import PREFIX as JOURNAL_PREFIX
from clients.errors import LedgerInUseError, SettingsError
from clients.prompts.lines import read_lines


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Paths of one run.

    Attributes:
        output: The results, the report, the summary; everything else is below it.
        state: The ledger: `state/0001`, and with --fresh the next number.
        summary_before: When summary.json was last written before this run, in ns; 0 for never.
    """

    output: Path
    state: Path
    summary_before: int

    @classmethod
    def prepare(cls, prompts: Path, output: Path, *, fresh: bool) -> "Workplace":
        """Check that the prompts can be read and the folder can be written, before anything is started.

        Args:
            prompts: The input file.
            output: The folder; made if it is not there.
            fresh: Whether to begin a new ledger instead of going on with the last one.

        Raises:
            PromptsError: the prompts cannot be used.
            SettingsError: the folder cannot be written.
        """
        next(read_lines(str(prompts)), None)
        state = output / "state"
        try:
            (output / "logs").mkdir(parents=True, exist_ok=True)
            state.mkdir(exist_ok=True)
            # A ledger that --fresh began counts from its first answer on: a run that came to nothing replaces nothing.
            begun = [int(path.name) for path in _numbered(state) if _has_answers(path)]
            if fresh and begun:
                _take_over(state / f"{max(begun):04d}", state / f"{max(begun) + 1:04d}")
        except OSError as error:
            raise _not_writable(output, error) from error
        number = max(begun, default=0) + fresh
        place = cls(output, state / f"{max(1, number):04d}", 0)
        return dataclasses.replace(place, summary_before=place._summary_written())

    @property
    def summary(self) -> Path:
        """The summary as JSON; written last, so the other files stand when it does."""
        return self.output / "summary.json"

    @property
    def run_log(self) -> Path:
        """What the runner and the steps wrote."""
        return self.output / "logs/run.log"

    @property
    def server_log(self) -> Path:
        """What the embedded server wrote."""
        return self.output / "logs/server.log"

    @property
    def scratch(self) -> Path:
        """Artifacts and temporary files of the run, on the same disk as the results."""
        return self.output / ".scratch"

    def earlier_results(self) -> str:
        """The results that a run with --fresh will replace, which tell it how long answers take; "" without any."""
        results = self.output / "results.parquet"
        return str(results.resolve()) if results.is_file() else ""

    def summary_is_new(self) -> bool:
        """Tell whether this run wrote its summary."""
        return self._summary_written() > self.summary_before

    def read_summary(self) -> Any:
        """The summary that stands."""
        return json.loads(self.summary.read_text(encoding="utf-8"))

    def settle(self) -> None:
        """Remove what the finished run no longer needs: the state that --fresh replaced."""
        for path in _numbered(self.state.parent):
            if path.name < self.state.name:
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder for as long as the block lasts; the system lets go when the process dies.

        Raises:
            LedgerInUseError: another run is at work in the folder.
            SettingsError: the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context((self.state.parent / ".lock").open("w"))
            except OSError as error:
                raise _not_writable(self.output, error) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LedgerInUseError(
                    f"another run is at work in {self.output}. Wait until it ends, stop it, or choose another --output."
                ) from error
            except OSError:
                pass  # a mounted volume without locks
            shutil.rmtree(self.scratch, ignore_errors=True)  # what a killed run left behind
            yield

    def _summary_written(self) -> int:
        return self.summary.stat().st_mtime_ns if self.summary.exists() else 0


def _has_answers(state: Path) -> bool:
    return any(any(state.rglob(pattern)) for pattern in ("*.parquet", f"{JOURNAL_PREFIX}*"))


def _take_over(before: Path, state: Path) -> None:
    """What the earlier state says of its runs, so that one that begins anew is compared with what it replaces."""
    state.mkdir(exist_ok=True)
    for note in before.glob(".finished-*.json"):
        shutil.copyfile(note, state / note.name)


def _numbered(state: Path) -> list[Path]:
    return [path for path in state.glob("[0-9]*") if path.name.isdecimal()]


def _not_writable(output: Path, error: OSError) -> SettingsError:
    return SettingsError(f"cannot write {output}: {error.strerror}. Choose another folder with --output.")
