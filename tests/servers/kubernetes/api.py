"""A Kubernetes API server in memory, on a real loopback socket.

    with KubernetesServer(namespaces=("ml",)) as server:
        server.kubeconfig(tmp_path / "config", namespace="ml")
        server.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf-secret", "namespace": "ml"}})
        server.fail(status=429, times=2, retry_after_s=1, path="/pods")

It knows nothing of the code under test: it does what a real server was seen to do. Controllers are in other modules.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from tests.servers.kubernetes.access import EVERYTHING, Access, Rule
from tests.servers.kubernetes.faults import Fault, Faults
from tests.servers.kubernetes.http_server import Listener, Request, Response, as_json
from tests.servers.kubernetes.kinds import CRD, INSTALLED, KINDS, Kind, Obj, crd_of, discovery, kind_named
from tests.servers.kubernetes.kinds import kind_of as kind_of_object
from tests.servers.kubernetes.objects import Objects, Validator
from tests.servers.kubernetes.routes import read_route
from tests.servers.kubernetes.statuses import Refusal, refusal
from tests.servers.kubernetes.storage import Storage
from tests.servers.kubernetes.verbs import Call, Reply, Verbs
from tests.servers.kubernetes.watching import events


@dataclass(kw_only=True)
class Seen:
    """One request as the server saw it.

    Attributes:
        status: HTTP status of the answer; 0 while there is none, and for good when the connection was cut.
    """

    method: str
    target: str
    user: str = ""
    body: bytes = b""
    status: int = 0


class KubernetesServer:
    """The server. It may be stopped and started again at the same port, its objects stay.

    Args:
        namespaces: Those there are; "default" and "kube-system" always.
        installed: What besides Kubernetes there is: kserve, argo, kuberay, lws, prometheus, keda.
        validator: Tells what is wrong with an object by its schema, one problem a line as `.spec.x: words`.
        version: As `/version` says it.
        port: 0 lets the system choose.

    Attributes:
        objects: For tests and controllers that act without HTTP.
        requests: What came, in order.
        errors: What went wrong in the stand-in itself; the `with` statement raises it at its end.
    """

    def __init__(
        self,
        *,
        namespaces: Iterable[str] = ("ml",),
        installed: Iterable[str] = INSTALLED,
        validator: Validator | None = None,
        version: str = "v1.33.2",
        port: int = 0,
    ) -> None:
        self.port = port
        self.version = version
        self.storage = Storage()
        self.objects = Objects(self.storage, validator)
        self.access = Access()
        self.faults = Faults()
        self.verbs = Verbs(self.objects, self.access)
        self.requests: list[Seen] = []
        self.errors: list[Exception] = []
        self._installed: set[str] = set()
        self._listener: Listener | None = None
        for name in dict.fromkeys(("default", "kube-system", *namespaces)):
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for name in sorted(installed):
            self.install(name)

    # ------------------------------------------------------------------- life

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._listener is not None

    def start(self) -> None:
        if self._listener is None:
            self._listener = Listener(self._respond, self.port)
            self.port = self._listener.port

    def stop(self) -> None:
        """As if killed: open connections are reset, the port is closed. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def cut_connections(self) -> None:
        """Reset what is open, watches among them, and go on serving."""
        if self._listener is not None:
            self._listener.cut_all()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is None and self.errors:
            raise ExceptionGroup("the stand-in for Kubernetes failed", self.errors)

    def kubeconfig(self, path: Path, *, namespace: str = "ml", token: str = "", token_file: str = "") -> Path:
        """Write a kubeconfig for this server and give its path."""
        user: dict[str, Any] = {"token": token} if token else {}
        if token_file:
            user = {"tokenFile": token_file}
        context = {"cluster": "stand-in", "user": "tester", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": user}],
            "contexts": [{"name": "stand-in", "context": context}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    # ------------------------------------------------------- what tests set up

    def install(self, name: str) -> None:
        """Bring in the kinds of `kserve`, `argo`, `kuberay`, `lws`, `prometheus` or `keda`."""
        self._installed.add(name)
        for kind in KINDS:
            if kind.brought_by == name and self.storage.read(CRD, "", kind.resource) is None:
                definition = crd_of(kind)
                self.storage.insert(CRD, definition)

    def uninstall(self, name: str) -> None:
        """Take those kinds away; their objects are forgotten with them."""
        self._installed.discard(name)
        for kind in KINDS:
            if kind.brought_by == name:
                self.storage.remove(CRD, "", kind.resource)
                for obj in self.storage.find(kind):
                    self.storage.remove(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])

    def grant(self, token: str, rules: Sequence[Rule] = (EVERYTHING,), *, user: str = "") -> None:
        """Know a token; from the first one on, requests without a known token get 401."""
        self.access.grant(token, user or "system:serviceaccount:ml:pipeline-runner", rules)

    def rotate(self, old: str, new: str) -> None:
        """Refuse `old` from now on and take `new` in its place."""
        self.access.rotate(old, new)

    def fail(self, **settings: Any) -> Fault:
        """Play a fault on the next requests that match; see `Fault` for the settings."""
        return self.faults.add(Fault(**settings))

    def put(self, obj: Obj, *, manager: str = "tester") -> Obj:
        """Make an object, or bring it to this state, status included; no admission by webhooks is asked."""
        kind = kind_of_object(obj)
        meta = obj["metadata"]
        namespace = meta.get("namespace", "ml") if kind.namespaced else ""
        admission, self.objects.admission = self.objects.admission, []
        try:
            with self.storage.changed:
                if self.storage.read(kind, namespace, meta["name"]) is None:
                    made, _ = self.objects.create(kind, namespace, obj, manager=manager, strict=False)
                else:
                    made = self.objects.merge(kind, namespace, meta["name"], obj, manager=manager)
                if "status" in obj and kind.status:
                    patch = {"status": obj["status"]}
                    made = self.objects.merge(kind, namespace, meta["name"], patch, subresource="status")
                return made
        finally:
            self.objects.admission = admission

    def get(self, kind: str, name: str, namespace: str = "ml") -> Obj | None:
        """One object, `kind` as `Pod` or `pods`; None: there is none."""
        found = kind_named(kind)
        return self.storage.read(found, namespace if found.namespaced else "", name)

    def find(self, kind: str, namespace: str = "") -> list[Obj]:
        """All objects of a kind; "" looks in every namespace."""
        return self.storage.find(kind_named(kind), namespace)

    def change(self, kind: str, name: str, patch: Obj, namespace: str = "ml", *, manager: str = "tester") -> Obj:
        """A merge patch by somebody else; a status in it goes to the status."""
        found = kind_named(kind)
        namespace = namespace if found.namespaced else ""
        made = self.objects.merge(found, namespace, name, patch, manager=manager)
        if "status" in patch and found.status:
            made = self.objects.merge(found, namespace, name, {"status": patch["status"]}, subresource="status")
        return made

    def remove(self, kind: str, name: str, namespace: str = "ml") -> None:
        """Delete an object, as anybody with the right to would."""
        found = kind_named(kind)
        self.objects.delete(found, namespace if found.namespaced else "", name)

    def forget_history(self) -> None:
        """Make every version up to now too old for watches and pages."""
        self.storage.forget()

    def seen(self, method: str = "", path: str = "") -> list[Seen]:
        """Requests of a method whose target contains `path`."""
        return [seen for seen in self.requests if method in ("", seen.method) and path in seen.target]

    def wait_for(self, reached: Callable[[], Any], timeout_s: float = 5.0) -> Any:
        """Wait until `reached` says something true, and give what it says.

        Raises:
            TimeoutError: it never did.
        """
        deadline = time.monotonic() + timeout_s
        while not (found := reached()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not reached in {timeout_s} s")
            with self.storage.changed:  # not held while it asks: `reached` may well send requests
                self.storage.changed.wait(0.02)
        return found

    # --------------------------------------------------------------- requests

    def _respond(self, request: Request) -> Response:
        seen = Seen(method=request.method, target=request.target, body=request.body)
        self.requests.append(seen)
        try:
            response = self._play(request, seen) or self._answer(request, seen)
        except Refusal as refused:
            response = _refused(refused)
        except Exception as error:  # noqa: BLE001 - shown when the server stops
            self.errors.append(error)
            traceback.print_exc()
            response = _refused(refusal(500, f"the stand-in failed: {error!r}"))
        seen.status = 0 if response.reset else response.code
        return response

    def _play(self, request: Request, seen: Seen) -> Response | None:
        """The answer that a fault gives; None: the usual one."""
        fault = self.faults.take(request.method, request.target)
        if fault is None:
            return None
        deadline = time.monotonic() + fault.hang_s
        while time.monotonic() < deadline and request.alive():
            time.sleep(min(0.02, fault.hang_s))
        if fault.after:
            self._answer(request, seen)
        if fault.reset:
            return Response(reset=True)
        if fault.status == 0:
            return None
        return _refused(refusal(fault.status, fault.message, retry_after=fault.retry_after_s))

    def _answer(self, request: Request, seen: Seen) -> Response:
        path = request.target.partition("?")[0]
        if path in ("/healthz", "/livez", "/readyz"):
            return Response(body=b"ok", content_type="text/plain")
        account = self.access.account(request.headers.get("authorization", ""))
        seen.user = account.user
        if path == "/version":
            major, minor = self.version.removeprefix("v").split(".")[:2]
            return _sent(Reply(body={"major": major, "minor": minor, "gitVersion": self.version}))
        found = discovery(path, [kind for kind in KINDS if self._serves(kind)])
        if found is not None and request.method == "GET":
            return _sent(Reply(body=found))
        route = read_route(request.method, request.target, self._serves)
        call = Call(
            route=route,
            account=account,
            body=request.body,
            content_type=request.headers.get("content-type", "").partition(";")[0].strip(),
            user_agent=request.headers.get("user-agent", ""),
        )
        if route.verb == "watch":
            self.verbs.authorize(call)
            lines = (as_json(event) + b"\n" for event in events(self.storage, route, request.alive))
            return Response(stream=lines)
        return _sent(self.verbs.answer(call))

    def _serves(self, kind: Kind) -> bool:
        return not kind.brought_by or kind.brought_by in self._installed


def _sent(reply: Reply) -> Response:
    if isinstance(reply.body, str):
        return Response(code=reply.code, body=reply.body.encode(), content_type="text/plain")
    warnings = [("Warning", '299 - "' + words.replace('"', '\\"') + '"') for words in reply.warnings]
    return Response(code=reply.code, body=as_json(reply.body), headers=warnings)


def _refused(refused: Refusal) -> Response:
    headers = [("Retry-After", str(refused.retry_after))] if refused.retry_after is not None else []
    if refused.status is None:
        return Response(code=refused.code, body=b"404 page not found\n", content_type="text/plain", headers=headers)
    return Response(code=refused.code, body=as_json(refused.status), headers=headers)


__all__ = ["KubernetesServer", "Seen"]
