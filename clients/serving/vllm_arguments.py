"""The command line of `vllm serve`: what a user adds to it, checked and merged with what we say ourselves."""

import dataclasses
import re
import shlex
from collections.abc import Iterable, Sequence

from clients.errors import SettingsError

#: Flags that vLLM took away. It dies at start on each of them, after the image is pulled and a node is held.
REMOVED = {
    "--disable-log-requests": "leave it out, for requests are not logged unless --enable-log-requests asks for it",
    "--enable-reasoning": "leave it out, for --reasoning-parser alone turns it on",
    "--guided-decoding-backend": "write --structured-outputs-config.backend instead",
    "--num-scheduler-steps": "leave it out, for scheduling is asynchronous by itself",
    "--swap-space": "leave it out, for there is no swap space any more",
    "--task": "write --runner, and --convert where it is needed, instead",
    "--worker-use-ray": "leave it out, for a replica lives on one node here; see ray-option/ for more",
}

#: Flags that the rest of the manifest depends on, or that would show a secret to everyone who may read a pod.
RESERVED = {
    "--api-key": "leave it out, for it would be readable in the manifest; the endpoint is open within the cluster only",
    "--headless": "leave it out, for probes ask the HTTP server of each replica",
    "--hf-token": "put the token into the Secret that hf_secret names",
    "--host": "leave it out, for probes come from outside the container",
    "--model": "give model_id instead",
    "--nnodes": "leave it out, for a replica lives on one node; see ray-option/leaderworkerset.yaml for more",
    "--port": "leave it out, for probes, the Service and Prometheus expect 8080",
    "--served-model-name": "give served_model_name instead",
    "--ssl-certfile": "leave it out, for probes and the Service speak plain HTTP",
    "--ssl-keyfile": "leave it out, for probes and the Service speak plain HTTP",
    "--uds": "leave it out, for probes and the Service speak TCP",
}

#: Short names of the flags that are looked at here.
_SHORT = {
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-n": "--nnodes",
    "-pcp": "--prefill-context-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-tp": "--tensor-parallel-size",
}

#: A word that begins a flag; `-1` is a value.
_FLAG = re.compile(r"--?[A-Za-z]")


@dataclasses.dataclass(frozen=True)
class Argument:
    """One flag with its values.

    Attributes:
        flag: Its long name, by which a repetition is found; of `--no-x` the name `--x`.
        words: How it stands on the command line.
    """

    flag: str
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        """The text after the flag, or after its `=`; "" when there is none."""
        _, equals, value = self.words[0].partition("=")
        return value if equals else " ".join(self.words[1:])


def argument(*words: str) -> Argument:
    """A flag and its values as they stand on the command line."""
    flag = _long(words[0])
    for opposite in ("--no-", "--disable-"):  # --no-enable-x and --disable-x both say the opposite of --enable-x
        if flag.startswith(opposite):
            flag = flag.replace(opposite, "--" if opposite == "--no-" else "--enable-", 1)
    return Argument(flag, words)


def _long(word: str) -> str:
    """The long name of a flag. vLLM reads `--max_model_len` as `--max-model-len`; after a dot stands a key."""
    name = word.partition("=")[0]
    head, dot, key = _SHORT.get(name, name).partition(".")
    return head.replace("_", "-") + dot + key if head.startswith("--") else name


def parse(text: str) -> tuple[Argument, ...]:
    """Read arguments as a user would type them in a shell.

    Raises:
        SettingsError: quotes are not closed, a value belongs to no flag, or a flag cannot be used.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"vllm_args {text!r} cannot be read ({error}): close the quotes") from error
    groups: list[list[str]] = []
    for word in words:
        if _FLAG.match(word):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            raise SettingsError(f"vllm_args must begin with a flag, found {word!r}: write it as --flag value")
    found = tuple(argument(*group) for group in groups)
    for each in found:
        _check(each)
    return found


def _check(found: Argument) -> None:
    flag = _long(found.words[0])
    if flag in REMOVED:
        raise SettingsError(f"vllm_args holds {flag}, which vLLM 0.32 does not know any more: {REMOVED[flag]}")
    if flag in RESERVED:
        raise SettingsError(f"vllm_args must not hold {flag}: {RESERVED[flag]}")


def merge(ours: Iterable[Argument], theirs: Sequence[Argument]) -> tuple[Argument, ...]:
    """Our arguments without those that `theirs` repeats, then `theirs`."""
    repeated = {each.flag for each in theirs}
    return (*(each for each in ours if each.flag not in repeated), *theirs)


def number(arguments: Iterable[Argument], flag: str, default: int, *, least: int = 1) -> int:
    """The whole number that a flag is given last.

    Args:
        arguments: All of them.
        flag: With its dashes.
        default: Where the flag is not given.
        least: The least that is allowed.

    Raises:
        SettingsError: what stands there is no whole number, or below `least`.
    """
    for each in reversed(tuple(arguments)):
        if each.flag == flag:
            if not (each.value.isascii() and each.value.isdigit() and int(each.value) >= least):
                raise SettingsError(f"vllm_args: {flag} must be a whole number from {least} on, found {each.value!r}")
            return int(each.value)
    return default
