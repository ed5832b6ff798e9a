"""Checks of what is allowed: the Secret, the rights of the pipeline's account, and the namespace's quotas."""

import json
from collections.abc import Callable

from clients.errors import ForbiddenError, SettingsError
from clients.serving.cluster import Object
from clients.serving.evidence import mapping, name_of, text
from clients.serving.kinds import KINDS
from clients.serving.prerequisites import RIGHTS, check_secret
from clients.serving.quantity import number
from clients.serving.spec import HF_TOKEN_KEY
from pipelines.checks.room import Amounts, requests
from pipelines.checks.scene import Scene
from pipelines.checks.verdict import Status, Verdict, failed, ok, unknown, warning

#: What a run does if it may: make the model cache, look at the Secret and the quota, and see whether a run lives.
_USEFUL: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("PersistentVolumeClaim", ("get", "create"), ""),
    ("Secret", ("get",), ""),
    ("ResourceQuota", ("list",), ""),
    ("Workflow", ("list",), ""),
)

#: Accounts of pipeline pods: in a Kubeflow profile, and of Kubeflow Pipelines alone.
_ACCOUNTS = ("default-editor", "pipeline-runner")

#: Tells for a right whether it is given; None where the cluster does not say.
_Ask = Callable[[str, str, str], bool | None]


def secret(scene: Scene) -> Verdict:
    """Whether the Hugging Face token is there and is none of the placeholder's making."""
    name = scene.spec.hf_secret
    if not name:
        return ok("not needed: no Secret is used")
    try:
        scene.cluster.get("Secret", name)
        check_secret(scene.cluster, name)
    except ForbiddenError:
        look = f"kubectl -n {scene.namespace} describe secret {name}"
        return unknown("this account may not read Secrets", f"see that it has the key {HF_TOKEN_KEY}", look)
    except SettingsError as error:
        return _to_make(scene, str(error))
    return ok(f"Secret {scene.namespace}/{name} holds a token")


def _to_make(scene: Scene, said: str) -> Verdict:
    found, _, mend = said.partition(": ")
    on = f"kubectl -n {scene.namespace}"
    make = f"{on} create secret generic {scene.spec.hf_secret} --from-literal={HF_TOKEN_KEY}=<your token>"
    if "delete it" in mend:
        return failed(found, "write your token there", f"{on} delete secret {scene.spec.hf_secret} && {make}")
    return failed(found, 'make it, or give --hf-secret "" (parameter hf_secret) for a public model', make)


def rights(scene: Scene) -> Verdict:
    """Whether the account of the pipeline's pods may do what a run does."""
    account = _account(scene)
    if isinstance(account, Verdict):
        return account
    ask, who, certain = _asker(scene, account)
    if ask("InferenceService", "get", "") is None:
        return unknown(
            "the cluster does not tell what an account may do", "ask an administrator", _can_i(scene, account)
        )
    lacking, useful = _lacking(ask, RIGHTS), _lacking(ask, _USEFUL)
    apply = f"kubectl apply -n {scene.namespace} -f kserve/rbac.yaml"
    if lacking:
        found = f"{who} lacks {len(lacking)} of {len(RIGHTS)} rules that a run needs"
        return failed(found, "give them", apply, tuple(f"- {rule}" for rule in lacking))
    if not certain:
        return unknown(f"{who} has all rights; nobody may ask for another account", "see", _can_i(scene, account))
    if useful:
        found = f"{who} may run, but not do what makes it comfortable: see the Secret, make the claim"
        return Verdict(Status.WARNING, found, "give it the rest", apply, tuple(f"- {rule}" for rule in useful))
    return ok(f"{who} may do all that a run does")


def _account(scene: Scene) -> str | Verdict:
    """The account of the pipeline's pods."""
    wanted, namespace = scene.service_account, scene.namespace
    for name in (wanted,) if wanted else _ACCOUNTS:
        try:
            if scene.cluster.get("ServiceAccount", name) is not None:
                return name
        except ForbiddenError:
            return wanted or "the pipeline's account"
    if wanted:
        make = f"kubectl -n {namespace} create serviceaccount {wanted}"
        return failed(f"service account {namespace}/{wanted} is not there", "make it, or name another", make)
    return failed(
        f"neither {_ACCOUNTS[0]} nor {_ACCOUNTS[1]} is in namespace {namespace}",
        "name the account of the pipeline's pods with --service-account; see",
        f"kubectl -n {namespace} get serviceaccounts",
    )


def _asker(scene: Scene, account: str) -> tuple[_Ask, str, bool]:
    """How to ask, who is asked about in words, and whether that is the pipeline's account for certain."""
    user = f"system:serviceaccount:{scene.namespace}:{account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{scene.namespace}", "system:authenticated"]

    def of_it(kind: str, verb: str, subresource: str) -> bool | None:
        spec = {"user": user, "groups": groups, "resourceAttributes": _attributes(scene, kind, verb, subresource)}
        return scene.cluster.review("SubjectAccessReview", spec)

    def of_us(kind: str, verb: str, subresource: str) -> bool | None:
        spec = {"resourceAttributes": _attributes(scene, kind, verb, subresource)}
        return scene.cluster.review("SelfSubjectAccessReview", spec)

    named = " " not in account
    if named and of_it("InferenceService", "get", "") is not None:
        return of_it, f"{scene.namespace}/{account}", True
    us = _who_we_are(scene)
    if us == user or (scene.in_cluster and not us):
        return of_us, f"{scene.namespace}/{account}" if us else "this pod's account", True
    return of_us, f"your own account{f' {us}' if us else ''} (asking for {account} is not allowed)", False


def _attributes(scene: Scene, kind: str, verb: str, subresource: str) -> Object:
    wanted = KINDS[kind]
    told = {"group": wanted.group, "resource": wanted.plural, "verb": verb, "subresource": subresource}
    return {"namespace": scene.namespace, **{name: value for name, value in told.items() if value}}


def _who_we_are(scene: Scene) -> str:
    """Our user name by the API server (Kubernetes 1.28 and newer); "" where it does not tell."""
    body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    answer = scene.connection.send("POST", path, params={}, body=body, content_type="application/json")
    try:
        return text(json.loads(answer.text), "status", "userInfo", "username") if answer.status < 300 else ""
    except ValueError:
        return ""


def _lacking(ask: _Ask, rights: tuple[tuple[str, tuple[str, ...], str], ...]) -> list[str]:
    found = []
    for kind, verbs, subresource in rights:
        missing = [verb for verb in verbs if ask(kind, verb, subresource) is False]
        if missing:
            found.append(KINDS[kind].rule(*missing, subresource=subresource))
    return found


def _can_i(scene: Scene, account: str) -> str:
    name = account if " " not in account else _ACCOUNTS[0]
    user = f"system:serviceaccount:{scene.namespace}:{name}"
    return f"kubectl -n {scene.namespace} auth can-i create inferenceservices.serving.kserve.io --as {user}"


def quota(scene: Scene) -> Verdict:
    """Whether the quotas of the namespace leave room for the service."""
    each = requests(scene.predictor)
    needed = {name: amount * scene.spec.replicas for name, amount in each.items()} | {
        "pods": float(scene.spec.replicas)
    }
    quotas = scene.cluster.list("ResourceQuota")
    tight = [verdict for found in quotas if (verdict := _judge(scene, found, needed)) is not None]
    tight.sort(key=lambda verdict: verdict.status is not Status.FAILED)
    if tight:
        return tight[0]
    return ok(f"{len(quotas)} in namespace {scene.namespace}, with room" if quotas else "none: nothing is limited")


def _judge(scene: Scene, found: Object, needed: Amounts) -> Verdict | None:
    """What a quota says to the service; None: nothing against it."""
    hard = mapping(found, "spec", "hard") | mapping(found, "status", "hard")
    used = mapping(found, "status", "used")
    name = f"ResourceQuota {scene.namespace}/{name_of(found)}"
    describe = f"kubectl -n {scene.namespace} describe resourcequota {name_of(found)}"
    full: Verdict | None = None
    for key, limit in hard.items():
        resource = key.removeprefix("requests.").removeprefix("limits.")
        amount = needed.get(resource, 0)
        if amount > number(limit):
            return failed(
                f"{name} allows {limit} {key}, and the service needs {_shown(resource, amount)}",
                "ask for a larger quota, or for fewer replicas or GPUs",
                describe,
            )
        if amount and number(used.get(key, 0)) + amount > number(limit):
            full = full or warning(
                f"{name}: {used.get(key)} of {limit} {key} are used, and the service needs {_shown(resource, amount)}",
                "end what uses them, or ask for a larger quota",
                describe,
            )
    return full


def _shown(resource: str, amount: float) -> str:
    return f"{amount / 2**30:.4g}Gi" if resource in ("memory", "ephemeral-storage") else f"{amount:.6g}"
