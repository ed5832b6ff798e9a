"""Why the containers of a pod that has a node do not start, or do not stay up."""

import dataclasses
import re
from collections.abc import Iterator

from clients.serving.causes import Cause
from clients.serving.crashes import known, last_words
from clients.serving.evidence import (
    Evidence,
    Object,
    at,
    first_seen,
    main_container,
    mapping,
    name_of,
    objects,
    quoted,
    text,
    whole,
)
from clients.serving.stages import log_stage

#: Seconds until an image that the registry refuses, or does not have, is taken for good.
_IMAGE_S = 20

#: Seconds until a container that cannot be made is given up: what it lacks may be created a moment later.
_MISSING_S, _UNMAKEABLE_S = 30, 120

#: Seconds until a volume that cannot be mounted is given up: a disk may take minutes to come from another node.
_MOUNT_S = 300

#: A container that ran for so many seconds had served; what ended it need not end the next one.
_SERVED_S = 3600

#: A pod that failed and was made longer ago says nothing about today.
_RECENT_S = 7200

_PULL_FAILS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
        "SignatureValidationFailed",
    }
)
_UNMAKEABLE = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError"}
)
_NOT_STARTED = frozenset({"StartError", "ContainerCannotRun"})
_PASSING = re.compile(
    r"timeout|timed out|deadline exceeded|toomanyrequests|too many requests|rate limit|connection re|no such host"
    r"|server misbehaving|unexpected EOF|TLS handshake|temporary failure|\b50[0-4] [A-Z]|unreachable",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"unauthorized|denied|authentication|forbidden|no basic auth|insufficient_scope", re.IGNORECASE)
_ABSENT = re.compile(
    r"not found|manifest unknown|no match for platform|does not exist|not present with pull", re.IGNORECASE
)
_PULL_WORDS = re.compile(
    r"rpc error: code = \w+ desc = |Back-off pulling image(?: \"[^\"]*\")?:? ?|Err\w*Pull\w*: "
    r"|failed to (?:pull and unpack image|resolve (?:reference|image)|copy|pull image) \"[^\"]*\": ?",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class _Container:
    """One container of a pod: its status, what it was to be, and whether it only prepares."""

    pod: Object
    status: Object
    spec: Object
    is_main: bool
    is_init: bool

    def __str__(self) -> str:
        """How messages call it; the main container goes without saying."""
        kind = "init container" if self.is_init else "container"
        return f"pod {name_of(self.pod)}" + (
            "" if self.is_main else f", {kind} {quoted(text(self.status, 'name'), 60)}"
        )

    @property
    def waits_for(self) -> str:
        """Why it waits; "" when it does not."""
        return text(self.status, "state", "waiting", "reason")


def container_causes(pod: Object, evidence: Evidence) -> Iterator[Cause]:
    """What keeps the containers of a pod from serving."""
    main = main_container(pod)
    for is_init in (True, False):
        specs = objects(pod, "spec", "initContainers" if is_init else "containers")
        for status in objects(pod, "status", "initContainerStatuses" if is_init else "containerStatuses"):
            name = text(status, "name")
            spec = next((one for one in specs if text(one, "name") == name), {})
            cause = _cause(_Container(pod, status, spec, not is_init and name == main, is_init), evidence)
            if cause is not None:
                yield cause


def _cause(one: _Container, evidence: Evidence) -> Cause | None:
    if one.status.get("ready") is True:
        return None
    if one.waits_for in _PULL_FAILS:
        return _image(one, evidence)
    if one.waits_for in _UNMAKEABLE:
        return _config(one, text(one.status, "state", "waiting", "message"), evidence)
    return _end(one, evidence)


def _image(one: _Container, evidence: Evidence) -> Cause:
    image = text(one.spec, "image") or text(one.status, "image")
    failures = [
        said for said in evidence.about("Pod", one.pod, "Failed", "InspectFailed", "ErrImageNeverPull")
        if image in said.message and ("pull" in said.message or "nspect" in said.message)
    ]  # fmt: skip
    waiting = _PULL_WORDS.sub("", text(one.status, "state", "waiting", "message")[:4000])
    said = waiting or _PULL_WORDS.sub("", failures[0].message[:4000] if failures else "") or one.waits_for
    never, mend = True, "Correct the image's name and tag"
    if "no space left" in said:
        return Cause(
            kind="disk_full", message=f"{one}: the node's disk is too full for image {quoted(image)}", fatal=False
        )
    if one.waits_for == "InvalidImageName" or "invalid reference format" in said:
        pass
    elif _PASSING.search(said):
        never, mend = False, "The kubelet tries again"
        mend += "; a mirror or imagePullSecrets help" if re.search(r"(?i)too ?many ?requests|rate limit", said) else ""
    elif _REFUSED.search(said):
        mend = "Check the image's name, and give the pod imagePullSecrets that may read it"
    elif not _ABSENT.search(said):
        never, mend = False, "The kubelet tries again"
    age = evidence.age(first_seen(failures)) or evidence.scheduled(one.pod)
    often = sum(failure.count for failure in failures) >= 2 or one.waits_for == "InvalidImageName"
    message = f"{one}: image {quoted(image, 120)} cannot be pulled: {quoted(said)}. {mend}"
    return Cause(kind="image_pull", message=message, fatal=never and (often or age >= _IMAGE_S))


def _config(one: _Container, said: str, evidence: Evidence) -> Cause:
    """A container that cannot be made: something it refers to is missing, or its command."""
    failures = [each for each in evidence.about("Pod", one.pod, "Failed") if "pull" not in each.message.lower()]
    age = evidence.age(first_seen(failures)) or evidence.scheduled(one.pod)
    if found := re.search(r"(?i)\b(secret|configmap) \"([^\"]*)\" not found", said):
        what, limit = f"{found[1].capitalize()} {quoted(found[2], 80)} does not exist. Create it", _MISSING_S
    elif found := re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)", said):
        what, limit = f"{found[2]} {quoted(found[3], 120)} has no key {quoted(found[1], 80)}. Add it", _MISSING_S
    elif "executable file not found" in said or "no such file or directory" in said:
        what, limit = f"{quoted(said)}. Correct the container's command", _MISSING_S
    else:
        what, limit = f"{quoted(said or one.waits_for)}. See kubectl describe pod", _UNMAKEABLE_S
    fatal = age >= limit and not _PASSING.search(said)
    return Cause(kind="config", message=f"{one} cannot be started: {what}", fatal=fatal)


def _end(one: _Container, evidence: Evidence) -> Cause | None:
    """Why a container died: the one that is down, or the one before."""
    down = mapping(one.status, "state", "terminated")
    ended = down or mapping(one.status, "lastState", "terminated")
    looping = one.waits_for == "CrashLoopBackOff"
    if not ended and not looping:
        return _killed(one, {}, _log(one, evidence, is_down=True), 1, evidence)
    if one.is_init and not looping and whole(ended, "exitCode") == 0:
        return None
    crashes = max(whole(one.status, "restartCount") + bool(down or looping), 2 if looping else 1)
    if text(ended, "reason") in _NOT_STARTED:
        config = _config(one, text(ended, "message"), evidence)
        return dataclasses.replace(config, fatal=config.fatal or crashes > 1)
    before = mapping(one.status, "lastState", "terminated")
    if down and before and whole(before, "exitCode") != whole(down, "exitCode"):
        crashes -= 1  # it ended in another way before
    is_down = bool(down) or looping
    lines = _log(one, evidence, is_down=is_down) or text(ended, "message").splitlines()
    lived = evidence.age(ended.get("startedAt")) - evidence.age(ended.get("finishedAt"))
    if lived > _SERVED_S or (one.is_main and log_stage(lines)[0] == "serving"):
        crashes -= 1
    return (
        _death(one, ended, lines, crashes)
        or _killed(one, ended, lines, crashes, evidence)
        or _crash(one, ended, lines, crashes if is_down else 1)  # the one that runs now may do better
    )


def _log(one: _Container, evidence: Evidence, *, is_down: bool) -> list[str]:
    """The last lines of the container that died."""
    if not one.is_main:
        return []
    return evidence.log(one.pod, died=True) or (evidence.log(one.pod) if is_down else [])


def _death(one: _Container, ended: Object, lines: list[str], crashes: int) -> Cause | None:
    """A way to die that is known."""
    if text(ended, "reason") == "OOMKilled":
        limit = text(one.spec, "resources", "limits", "memory")
        facts = f"was killed for using more memory than its limit{f' {quoted(limit, 20)}' if limit else ''} (OOMKilled)"
        mend = "Raise it" + (
            " (storageInitializer in KServe's ConfigMap), or use HF_HOME on a claim" if one.is_init else ""
        )
        return Cause(kind="oom", message=f"{one} {facts}. {mend}", fatal=crashes >= 1)
    if found := known(lines):
        signature, line = found
        return Cause(
            kind=signature.kind, message=f"{one}: {line}. {signature.mend}", fatal=crashes >= signature.crashes
        )
    return None


def _crash(one: _Container, ended: Object, lines: list[str], crashes: int) -> Cause:
    """Any other end."""
    code, words = whole(ended, "exitCode"), last_words(lines)
    how = (
        "ended by itself" if code == 0 else f"died with exit code {code}" + (" (killed)" if code in (137, 143) else "")
    )
    facts = f"{one} {how}, restarted {whole(one.status, 'restartCount')} x" + (f": {words}" if words else "")
    return Cause(kind="crash_loop", message=f"{facts}. See kubectl logs --previous", fatal=crashes >= 2)


def _killed(one: _Container, ended: Object, lines: list[str], crashes: int, evidence: Evidence) -> Cause | None:
    """A container that was killed since it did not answer a probe in time."""
    life = ended or mapping(one.status, "state", "running")
    for said in evidence.about("Pod", one.pod, "Killing"):
        found = re.search(r"failed (startup|liveness) probe", said.message)
        if found and evidence.age(said.last) <= evidence.age(life.get("startedAt"), said.last) + 1:
            return _probe(one, found[1], lines, crashes)
    return None


def _probe(one: _Container, probe: str, lines: list[str], crashes: int) -> Cause:
    stage, words = log_stage(lines)
    settings = mapping(one.spec, f"{probe}Probe")
    allowed = (whole(settings, "failureThreshold") or 3) * (whole(settings, "periodSeconds") or 10)
    was = f" while {words}" if lines else ""
    message = (
        f"{one} was killed{was}: its {probe} probe failed for {allowed + whole(settings, 'initialDelaySeconds')} s. "
        f"Raise the {probe} probe's failureThreshold"
    )
    # What a download has brought so far stays in the cache: the next one starts further on.
    may_go_on = stage == "downloading" or not lines
    return Cause(kind=f"{probe}_probe", message=message, fatal=crashes >= (4 if may_go_on else 2))


def pod_causes(pod: Object, evidence: Evidence) -> Iterator[Cause]:
    """What keeps a pod that has a node from starting its containers: volumes and the network."""
    events = evidence.about("Pod", pod)
    last = next((one for one in events if one.reason not in ("Unhealthy", "FailedScheduling", "Scheduled")), None)
    started = any("running" in mapping(one, "state") for one in objects(pod, "status", "containerStatuses"))
    if last is None or started:
        return
    since = evidence.age(first_seen(one for one in events if one.reason == last.reason))
    where = f"pod {name_of(pod)} cannot be started: "
    if last.reason in ("FailedMount", "FailedAttachVolume", "FailedMapVolume"):
        if found := re.search(r"(?i)\b(secret|configmap) \"([^\"]*)\" not found", last.message):
            what = f"{found[1].capitalize()} {quoted(found[2], 80)} does not exist. Create it"
            yield Cause(kind="config", message=where + what, fatal=since >= 2 * _MISSING_S)
            return
        what = f"{quoted(last.message)}. Check the volume and its driver; one of ReadWriteOnce serves one node only"
        yield Cause(kind="volume_mount", message=where + what, fatal=since >= _MOUNT_S)
    elif last.reason == "FailedCreatePodSandBox":
        what = f"{quoted(last.message)}. The kubelet tries again; see the node's network plugin and runtime"
        yield Cause(kind="sandbox", message=where + what, fatal=False)


def failed_pods(pods: list[Object], evidence: Evidence) -> Iterator[Cause]:
    """What ended pods that Kubernetes has given up and replaces: evictions, nodes that shut down."""
    failed = [
        pod for pod in pods if text(pod, "status", "phase") == "Failed"
        and evidence.age(at(pod, "metadata", "creationTimestamp")) < _RECENT_S
    ]  # fmt: skip
    if not failed:
        return
    newest = max(failed, key=lambda pod: -evidence.age(at(pod, "metadata", "creationTimestamp")))
    reason, said = text(newest, "status", "reason"), text(newest, "status", "message")
    is_disk = "ephemeral" in said
    own = is_disk and re.search(r"exceeded its|exceeds the total limit|usage of EmptyDir", said)
    often = sum(text(pod, "status", "reason") == reason for pod in failed) > 1
    mend = "Raise the ephemeral-storage limit, or keep the model on a claim (HF_HOME)" if own else "It is replaced"
    yield Cause(
        kind="disk_full" if is_disk else "evicted",
        message=f"pod {name_of(newest)} was ended by its node ({quoted(reason or '?', 40)}): {quoted(said)}. {mend}",
        fatal=bool(own) and often,
    )
