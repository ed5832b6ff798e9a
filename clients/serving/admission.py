"""Pods that Kubernetes refuses to create: quotas, policies, limits, webhooks."""

import re
from collections.abc import Iterator

from clients.serving.causes import Cause
from clients.serving.evidence import Evidence, Object, Said, condition, mapping, name_of, quoted, text, whole
from clients.serving.quantity import number

#: Seconds until a refusal counts as final: a service account or a policy may be set up a moment later.
_PATIENCE_S = 20

#: Refusals that pass: the webhook is away, or two requests met.
_PASSING = re.compile(
    r"failed calling webhook|failed to call webhook|Internal error|Operation cannot be fulfilled|timeout|timed out"
    r"|connection refused|context deadline|TooManyRequests|etcdserver",
    re.IGNORECASE,
)
_FINAL = (
    ("violates PodSecurity", "Use a namespace whose Pod Security level allows it, or drop what it names"),
    ("security context constraint", "Let the service account use a fitting SecurityContextConstraint"),
    ("serviceaccount", "Create the service account"),
    ("PriorityClass", "Name a PriorityClass that exists"),
    ("admission webhook", "Change what the policy refuses, or ask its owner"),
    ("ValidatingAdmissionPolicy", "Change what the policy refuses, or ask its owner"),
    ("must specify", "Set the requests and limits that it names"),
    (" per Container", "Keep within the namespace's LimitRange (kubectl describe limitrange)"),
    (" per Pod", "Keep within the namespace's LimitRange (kubectl describe limitrange)"),
    ("is invalid", "Correct the manifest"),
    ("forbidden", "Change what is refused, or ask the namespace's owner"),
)


def refusals(deployment: Object, evidence: Evidence, wanted: int) -> Iterator[Cause]:
    """Why a Deployment's pods are not created.

    Args:
        deployment: The Deployment.
        evidence: What was seen, its events among it.
        wanted: Pods that it should have.
    """
    failed = condition(deployment, "ReplicaFailure")
    if failed.get("status") == "True" and text(failed, "message"):
        yield _refusal(deployment, text(failed, "message"), evidence.age(failed.get("lastTransitionTime")), wanted)
        return
    if whole(deployment, "status", "replicas") >= wanted:
        return
    for said in _newest(deployment, evidence):
        if said.reason == "FailedCreate":
            yield _refusal(deployment, said.message, evidence.age(said.first), wanted)


def _newest(deployment: Object, evidence: Evidence) -> list[Said]:
    """The last word about creating pods from this Deployment's ReplicaSets."""
    owner = text(deployment, "metadata", "name")
    born = mapping(deployment, "metadata").get("creationTimestamp")
    sets = {text(e, "involvedObject", "name") for e in evidence.snapshot.events if isinstance(e, dict)}
    said = [
        one
        for name in sets
        if owner and name.startswith(owner + "-")
        for one in evidence.about(
            "ReplicaSet", {"metadata": {"name": name, "creationTimestamp": born}}, "FailedCreate", "SuccessfulCreate"
        )
    ]
    return sorted(said, key=lambda one: one.last)[-1:]


def _refusal(deployment: Object, said: str, age: float, wanted: int) -> Cause:
    """A refusal in words."""
    where = f"pods of {name_of(deployment)} are not created: "
    if "exceeded quota" in said:
        return _quota(where, said, wanted)
    words = quoted(re.sub(r'^.*?pods? "[^"]*" is (?:forbidden|invalid): ', "", said[:2000]))
    mend = next((mend for word, mend in _FINAL if word in said), "")
    if not mend or _PASSING.search(said):
        return Cause(kind="admission", message=f"{where}{words}. It is tried again", fatal=False)
    kind = "quota" if "must specify" in said else "admission"
    return Cause(kind=kind, message=f"{where}{words}. {mend}", fatal=age >= _PATIENCE_S)


def _quota(where: str, said: str, wanted: int) -> Cause:
    """A quota that is full, or too small for ever."""
    found = re.search(r"exceeded quota: ([^,\s]+), requested: (.*?), used: (.*?), limited: (.*)", said[:2000])
    if not found:
        return Cause(kind="quota", message=f"{where}{quoted(said)}. Have the quota raised", fatal=False)
    asked, used, limits = (dict(re.findall(r"([\w./-]+)=([^,\s]+)", part)) for part in found.groups()[1:])
    for name, quantity in asked.items():
        limit = limits.get(name, "")
        if limit and max(wanted, 1) * number(quantity) > number(limit):
            facts = f"quota {found[1]} allows {name}={limit}, and {wanted} x {quantity} are asked for"
            message = f"{where}{quoted(facts)}. It can never fit: ask for less, or have the quota raised"
            return Cause(kind="quota", message=message, fatal=True)
    name = next(iter(asked), "?")
    facts = (
        f"quota {found[1]} allows {name}={limits.get(name)}, {used.get(name)} are used, {asked.get(name)} more asked"
    )
    return Cause(kind="quota", message=f"{where}{quoted(facts)}. Wait until others finish, or raise it", fatal=False)
