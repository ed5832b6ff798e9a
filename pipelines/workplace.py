"""The folder of a local run: where results, logs and the state of unfinished work lie."""

import dataclasses
import shutil
from pathlib import Path

from clients.errors import SettingsError
from clients.prompts.lines import read_lines
from pipelines.settings import RunSettings


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
    def prepare(cls, settings: RunSettings) -> "Workplace":
        """Check that the prompts can be read and the folder can be written, before anything is started.

        Raises:
            PromptsError: the prompts cannot be used.
            SettingsError: the folder cannot be written.
        """
        next(read_lines(str(settings.prompts)), None)
        state = settings.output / "state"
        try:
            (settings.output / "logs").mkdir(parents=True, exist_ok=True)
            number = max((int(path.name) for path in state.glob("[0-9]*")), default=0)
            current = state / f"{max(1, number + settings.fresh):04d}"
            current.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"cannot write {settings.output}: {error.strerror}. Choose another folder with --output."
            ) from error
        place = cls(settings.output, current, 0)
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
        return self.output / "state/scratch"

    def summary_is_new(self) -> bool:
        """Tell whether this run wrote its summary."""
        return self._summary_written() > self.summary_before

    def settle(self) -> None:
        """Remove what the finished run no longer needs: the state that --fresh replaced."""
        for path in self.state.parent.glob("[0-9]*"):
            if path.name < self.state.name:
                shutil.rmtree(path, ignore_errors=True)

    def _summary_written(self) -> int:
        return self.summary.stat().st_mtime_ns if self.summary.exists() else 0
