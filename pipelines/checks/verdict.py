"""What a check says, and how many of them are asked at the same time without one holding up the others."""

import dataclasses
import enum
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from clients.errors import ForbiddenError, LLMInferenceError, UnreachableApiError
from clients.serving.evidence import quoted

_LOOK_FOR_ME = "ask an administrator to look, or to apply the ClusterRole in kserve/rbac.yaml"


class Status(enum.StrEnum):
    """How a check went. Only `failed` makes the doctor's exit code 1."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found, and how to mend it.

    Attributes:
        status: See Status.
        found: What was found, on one line.
        mend: What to do, in words.
        command: The very command to type for it; "" when no one command does.
        details: More lines, such as the RBAC rules that are missing.
    """

    status: Status
    found: str
    mend: str = ""
    command: str = ""
    details: tuple[str, ...] = ()


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict(Status.OK, found)


def warning(found: str, mend: str, command: str = "") -> Verdict:
    """A run may work, or will miss something.

    Args:
        found: What was found.
        mend: What to do about it.
        command: To type for that; "" for none.
    """
    return Verdict(Status.WARNING, found, mend, command)


def failed(found: str, mend: str, command: str = "", details: tuple[str, ...] = ()) -> Verdict:
    """A run cannot work.

    Args:
        found: What was found.
        mend: What to do about it.
        command: To type for that; "" for none.
        details: More lines for those who want to know.
    """
    return Verdict(Status.FAILED, found, mend, command, details)


def unknown(found: str, mend: str, command: str = "") -> Verdict:
    """It could not be looked at.

    Args:
        found: What stood in the way.
        mend: What to do about it.
        command: To type for that; "" for none.
    """
    return Verdict(Status.UNKNOWN, found, mend, command)


@dataclasses.dataclass(frozen=True)
class Question:
    """One check to be made.

    Attributes:
        name: What it is about, in two or three words.
        ask: Makes it; may raise whatever it likes.
        late: What it means when no answer comes in time.
    """

    name: str
    ask: Callable[[], Verdict]
    late: Status = Status.UNKNOWN


@dataclasses.dataclass(frozen=True)
class Check:
    """A check that was made."""

    name: str
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """The check as `--json` prints it: `mend` holds words and command, `command` what can be typed as it is."""
        verdict = self.verdict
        return {
            "name": self.name,
            "status": verdict.status.value,
            "found": verdict.found,
            "mend": ": ".join(filter(None, (verdict.mend, verdict.command))),
            "command": verdict.command,
            "details": list(verdict.details),
        }


def answer_all(questions: Sequence[Question], *, deadline_s: float) -> list[Check]:
    """Make checks at the same time, and wait for the slowest or the deadline.

    Args:
        questions: The checks; the answers come in their order.
        deadline_s: Seconds after which a check counts as late. Its thread is left behind and dies with the process.
    """
    answers: queue.SimpleQueue[tuple[int, Verdict]] = queue.SimpleQueue()

    def work(number: int, question: Question) -> None:
        answers.put((number, _answer(question)))

    ends = time.monotonic() + deadline_s
    for number, question in enumerate(questions):
        threading.Thread(target=work, args=(number, question), daemon=True).start()
    found: dict[int, Verdict] = {}
    while len(found) < len(questions):
        try:
            number, verdict = answers.get(timeout=max(0.0, ends - time.monotonic()))
        except queue.Empty:
            break
        found[number] = verdict
    return [
        Check(question.name, found.get(number) or _too_late(question, deadline_s))
        for number, question in enumerate(questions)
    ]


def _too_late(question: Question, deadline_s: float) -> Verdict:
    return Verdict(question.late, f"no answer within {deadline_s:g} s", "check the network and the VPN, then try again")


def _answer(question: Question) -> Verdict:
    """The answer to a question; what it raises becomes one too."""
    try:
        return question.ask()
    except ForbiddenError as error:
        return unknown(may_not(error), _LOOK_FOR_ME)
    except UnreachableApiError as error:
        return failed(str(error).partition(". ")[0], "check the network, the VPN and the kubeconfig, then try again")
    except LLMInferenceError as error:
        return failed(*found_and_mend(error))
    except Exception as error:  # noqa: BLE001  (odd data in one place of a cluster must not hide all others)
        what = quoted(f"{type(error).__name__}: {error}")
        return unknown(f"this check stumbled over what it read ({what})", "look by hand, and report it to us")


def found_and_mend(error: LLMInferenceError) -> tuple[str, str]:
    """What one of our errors says was found, and what to do about it."""
    said = str(error)
    found, mark, mend = said.rpartition("): ")  # foreign words in brackets may hold anything
    if mark:
        return f"{found})", mend
    found, mark, mend = said.partition(". ")
    if not mark:
        found, _, mend = said.partition(": ")
    return found.rstrip("."), mend.rstrip(".")


def may_not(error: ForbiddenError) -> str:
    """What an account lacks, out of the server's words."""
    found = re.search(r'cannot (\w+) resource "([^"]+)"(.*?at the cluster scope)?', str(error))
    if not found:
        return quoted(str(error).partition(". Apply")[0])
    return f"this account may not {found[1]} {found[2]}" + (" of the whole cluster" if found[3] else "")
