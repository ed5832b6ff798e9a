"""What every test may rely on."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

#: `make test-all` tries as many examples of each property as hypothesis does by itself, `make test` fewer. None has a
#: deadline: that a machine is busy is no fault of an example.
hypothesis.settings.register_profile("whole", deadline=None)
hypothesis.settings.load_profile("whole")
hypothesis.settings.register_profile("quick", max_examples=25)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and every process below inherits that. The tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HERE = Path(__file__).parent

#: Tests that run our commands as processes, whose every word they read, against servers in this process that are cut
#: short in the middle of requests: what is collected here then is a socket of those servers, and none of ours.
_AGAINST_CUT_SERVERS = (_HERE / "local", _HERE / "resume/test_kill.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(place) for place in _AGAINST_CUT_SERVERS):
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True)
def events_go_nowhere_afterwards() -> Iterator[None]:
    """A command that is called within a test chooses where events go; the next test starts without that choice."""
    logger = logging.getLogger("clients")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
