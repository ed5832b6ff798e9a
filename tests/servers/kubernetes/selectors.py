"""Label and field selectors."""

import re

from tests.servers.kubernetes.kinds import EVENT, POD, Kind, Obj
from tests.servers.kubernetes.statuses import refusal

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<verb>in|notin)\s*\((?P<values>[^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s*(?P<verb>==|=|!=)\s*(?P<value>[^\s!=,()]*)\s*$")
_PRESENT = re.compile(r"^\s*(?P<no>!?)\s*(?P<key>[^\s!=,()]+)\s*$")

_FIELDS = {
    POD.plural: ("spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"),
    EVENT.plural: (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "secrets": ("type",),
}


def matches(kind: Kind, obj: Obj, labels: str, fields: str) -> bool:
    """Whether an object passes both selectors.

    Raises:
        Refusal: 400, a selector cannot be read.
    """
    return labels_match(obj, labels) and fields_match(kind, obj, fields)


def labels_match(obj: Obj, selector: str) -> bool:
    found = (obj.get("metadata") or {}).get("labels") or {}
    return all(_label_term(found, term) for term in re.split(r",(?![^(]*\))", selector) if term.strip())


def _label_term(found: dict[str, str], term: str) -> bool:
    if match := _SET.match(term):
        values = [value.strip() for value in match["values"].split(",")]
        inside = match["key"] in found and found[match["key"]] in values
        return inside if match["verb"] == "in" else not inside
    if match := _EQUAL.match(term):
        equal = found.get(match["key"]) == match["value"]
        return not equal if match["verb"] == "!=" else equal
    if match := _PRESENT.match(term):
        return (match["key"] in found) != bool(match["no"])
    raise refusal(400, f"unable to parse requirement: found '{term}', expected: in, notin, =, ==, !=, gt, lt")


def fields_match(kind: Kind, obj: Obj, selector: str) -> bool:
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get(kind.plural, ()))
    for term in filter(None, (part.strip() for part in selector.split(","))):
        match = _EQUAL.match(term)
        if match is None:
            raise refusal(400, f"invalid selector: '{selector}'; can't understand '{term}'")
        if match["key"] not in known:
            raise refusal(
                400,
                f'Unable to find "{kind.group}/{kind.version}, Resource={kind.plural}" that match label selector "", '
                f'field selector "{selector}": field label not supported: {match["key"]}',
            )
        if (_field(obj, match["key"]) == match["value"]) == (match["verb"] == "!="):
            return False
    return True


def _field(obj: Obj, path: str) -> str:
    found: object = obj
    if path == "source":
        path = "source.component"
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return str(found or "")
