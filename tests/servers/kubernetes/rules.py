"""What the server checks and fills in whoever asks: names, labels, defaults, fields that never change, quotas."""

import base64
import re
from decimal import Decimal

from tests.servers.kubernetes.kinds import CLAIM, DEPLOYMENT, POD, SERVICE, Kind, Obj
from tests.servers.kubernetes.statuses import Refusal, forbidden, invalid

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NAME = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"

_BAD_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_BAD_SERVICE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_BAD_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_BAD_KEY = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)

Problem = tuple[str, str, str]


def check(kind: Kind, obj: Obj) -> None:
    """Refuse what no schema says: names, labels, annotations.

    Raises:
        Refusal: 422.
    """
    meta = obj["metadata"]
    problems = _name_problems(kind, str(meta.get("name", "")))
    problems += _label_problems("metadata.labels", meta.get("labels") or {})
    problems += [
        ("metadata.annotations", "FieldValueInvalid", f'Invalid value: "{key}": {_BAD_KEY}')
        for key in meta.get("annotations") or {}
        if not _is_key(key)
    ]
    if kind is DEPLOYMENT:
        problems += _template_problems(obj)
    if problems:
        raise invalid(kind, str(meta.get("name", "")), problems)


def _name_problems(kind: Kind, name: str) -> list[Problem]:
    if not name:
        return [("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")]
    if kind is SERVICE:
        fits, words, longest = re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), _BAD_SERVICE, 63
    else:
        fits, words, longest = re.fullmatch(_SUBDOMAIN, name), _BAD_SUBDOMAIN, 253
    if len(name) > longest:
        words, fits = f"must be no more than {longest} characters", None
    return [] if fits else [("metadata.name", "FieldValueInvalid", f'Invalid value: "{name}": {words}')]


def _label_problems(field: str, labels: Obj) -> list[Problem]:
    problems = []
    for key, value in labels.items():
        if not _is_key(key):
            problems.append((field, "FieldValueInvalid", f'Invalid value: "{key}": {_BAD_KEY}'))
        if not isinstance(value, str):
            continue
        if len(value) > 63:
            said = f'Invalid value: "{value}": must be no more than 63 characters'
            problems.append((field, "FieldValueInvalid", said))
        elif not re.fullmatch(rf"({_NAME})?", value):
            problems.append((field, "FieldValueInvalid", f'Invalid value: "{value}": {_BAD_VALUE}'))
    return problems


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and not (re.fullmatch(_SUBDOMAIN, prefix) and len(prefix) <= 253):
        return False
    return len(name) <= 63 and re.fullmatch(_NAME, name) is not None


def _template_problems(obj: Obj) -> list[Problem]:
    """The few of a Deployment's checks that what KServe makes can fail."""
    spec = obj["spec"]
    template = spec["template"]
    problems = _label_problems("spec.template.labels", template["metadata"].get("labels") or {})
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    if rolling and {str(rolling.get(key)) for key in ("maxSurge", "maxUnavailable")} <= {"0", "0%"}:
        said = "Invalid value: 0: may not be 0 when `maxSurge` is 0"
        problems.append(("spec.strategy.rollingUpdate.maxUnavailable", "FieldValueInvalid", said))
    volumes = {volume["name"] for volume in template["spec"].get("volumes") or []}
    for number, container in enumerate(template["spec"].get("containers") or []):
        where = f"spec.template.spec.containers[{number}]"
        for place, mount in enumerate(container.get("volumeMounts") or []):
            if mount["name"] not in volumes:
                said = f'Not found: "{mount["name"]}"'
                problems.append((f"{where}.volumeMounts[{place}].name", "FieldValueNotFound", said))
        problems += _gpu_problems(where, container.get("resources") or {})
    return problems


def _gpu_problems(where: str, resources: Obj) -> list[Problem]:
    asked = (resources.get("requests") or {}).get("nvidia.com/gpu")
    most = (resources.get("limits") or {}).get("nvidia.com/gpu")
    if asked is None or str(asked) == str(most):
        return []
    said = "Required value: Limit must be set for non overcommitable resources"
    if most is not None:
        said = f'Invalid value: "{asked}": must be equal to nvidia.com/gpu limit of {most}'
    kind = "FieldValueRequired" if most is None else "FieldValueInvalid"
    return [(f"{where}.resources.requests", kind, said)]


def check_change(kind: Kind, old: Obj, new: Obj) -> None:
    """Refuse changes of what is fixed once made.

    Raises:
        Refusal: 422.
    """
    name = new["metadata"]["name"]
    if kind is CLAIM and old.get("spec") != new.get("spec"):
        if _without_size(old) != _without_size(new) or (old.get("status") or {}).get("phase") != "Bound":
            said = (
                "Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName "
                "for bound claims"
            )
            raise invalid(kind, name, [("spec", "FieldValueForbidden", said)])
        if amount(_size(new)) < amount(_size(old)):
            said = "Forbidden: field can not be less than status.capacity"
            raise invalid(kind, name, [("spec.resources.requests.storage", "FieldValueForbidden", said)])
    if kind is DEPLOYMENT and old["spec"].get("selector") != new["spec"].get("selector"):
        said = "Invalid value: field is immutable"
        raise invalid(kind, name, [("spec.selector", "FieldValueInvalid", said)])


def _size(claim: Obj) -> str:
    return str(((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0"))


def _without_size(claim: Obj) -> Obj:
    return {key: value for key, value in claim["spec"].items() if key not in ("resources", "volumeName")}


_TOP = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
_FIELDS = {
    "Secret": frozenset({"data", "stringData", "type", "immutable"}),
    "ConfigMap": frozenset({"data", "binaryData", "immutable"}),
}
_SPEC_FIELDS = {
    "PersistentVolumeClaim": frozenset(
        {"accessModes", "resources", "storageClassName", "volumeMode", "volumeName", "selector", "dataSource"}
        | {"dataSourceRef", "volumeAttributesClassName"}
    ),
    "Service": frozenset(
        {"ports", "selector", "clusterIP", "clusterIPs", "type", "externalIPs", "sessionAffinity", "externalName"}
        | {"loadBalancerIP", "internalTrafficPolicy", "externalTrafficPolicy", "ipFamilies", "ipFamilyPolicy"}
        | {"publishNotReadyAddresses", "allocateLoadBalancerNodePorts", "sessionAffinityConfig", "healthCheckNodePort"}
    ),
}


def unknown_fields(kind: Kind, obj: Obj) -> list[str]:
    """Fields that the few core kinds that a pipeline writes do not have."""
    found = []
    if kind.kind in _FIELDS:
        found += [f".{name}" for name in obj if name not in _TOP | _FIELDS[kind.kind] or name == "spec"]
    if kind.kind in _SPEC_FIELDS:
        found += [f".{name}" for name in obj if name not in _TOP]
        found += [f".spec.{name}" for name in obj.get("spec") or {} if name not in _SPEC_FIELDS[kind.kind]]
    return [f"{path}: field not declared in schema" for path in found]


def fill_in(kind: Kind, obj: Obj) -> None:
    """The defaults of core kinds, and the Secret's `stringData`."""
    spec = obj.get("spec") or {}
    if kind.kind == "Secret":
        plain = obj.pop("stringData", None) or {}
        obj.setdefault("type", "Opaque")
        if plain:
            coded = {key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()}
            obj["data"] = {**(obj.get("data") or {}), **coded}
    elif kind is CLAIM:
        spec.setdefault("volumeMode", "Filesystem")
        obj.setdefault("status", {"phase": "Pending"})
    elif kind is SERVICE:
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        for port in spec.get("ports") or []:
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
    elif kind is POD:
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("terminationGracePeriodSeconds", 30)
        obj.setdefault("status", {"phase": "Pending"})
    elif kind is DEPLOYMENT:
        spec.setdefault("replicas", 1)
        spec.setdefault("progressDeadlineSeconds", 600)
        strategy = spec.setdefault("strategy", {})
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxSurge", "25%")
            rolling.setdefault("maxUnavailable", "25%")


# ------------------------------------------------------------------- quotas

_UNITS = {"m": Decimal("0.001"), "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9}
_UNITS |= {"T": Decimal(10) ** 12, "Ki": Decimal(2) ** 10, "Mi": Decimal(2) ** 20, "Gi": Decimal(2) ** 30}
_UNITS |= {"Ti": Decimal(2) ** 40, "Pi": Decimal(2) ** 50, "": Decimal(1)}


def amount(quantity: object) -> Decimal:
    """A quantity such as `8`, `500m` or `3Ti` as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert match is not None, quantity
    return Decimal(match[1]) * _UNITS[match[2]]


def requests_of(pod_spec: Obj) -> dict[str, Decimal]:
    """What a pod asks for, by resource; a limit counts where no request is given."""
    total: dict[str, Decimal] = {}
    for container in pod_spec.get("containers") or []:
        resources = container.get("resources") or {}
        for name, value in ((resources.get("limits") or {}) | (resources.get("requests") or {})).items():
            total[name] = total.get(name, Decimal(0)) + amount(value)
    return total


def quota_refusal(pod: Obj, quotas: list[Obj], pods: list[Obj]) -> Refusal | None:
    """The refusal of a pod that one more would be too many for, as the quota admission words it."""
    asked = _counted(pod)
    for quota in quotas:
        over = []
        for name, hard in sorted(((quota.get("spec") or {}).get("hard") or {}).items()):
            used = sum((_counted(other).get(name, Decimal(0)) for other in pods), Decimal(0))
            if name in asked and used + asked[name] > amount(hard):
                over.append((name, str(asked[name].normalize()), str(used), str(hard)))
        if over:
            rows = [",".join(f"{row[0]}={row[place]}" for row in over) for place in (1, 2, 3)]
            why = f"exceeded quota: {quota['metadata']['name']}, requested: {rows[0]}, used: {rows[1]}, "
            return forbidden(POD, pod["metadata"]["name"], why + f"limited: {rows[2]}")
    return None


def quota_status(quota: Obj, pods: list[Obj]) -> Obj:
    """What the quota controller writes: the limits, and what counts against them."""
    hard = (quota.get("spec") or {}).get("hard") or {}
    rows = [_counted(pod) for pod in pods]
    used = {name: f"{sum((row.get(name, Decimal(0)) for row in rows), Decimal(0)):f}" for name in hard}
    return {"hard": dict(hard), "used": used}


def _counted(pod: Obj) -> dict[str, Decimal]:
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return {}
    found = {"pods": Decimal(1)}
    for name, value in requests_of(pod["spec"]).items():
        found |= {f"requests.{name}": value, name: value}
    return found
