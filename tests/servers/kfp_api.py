"""A stand-in for the API of Kubeflow Pipelines 2.14 to 2.17 on a real loopback socket; it keeps what it is sent.

`with KfpApi() as api:` and `api.host`. Runs go through the frames of `api.store.script`, one with each look at them.
As a process, to try commands by hand: `python -m tests.servers.kfp_api --port 8080`.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from aiohttp import web

from tests.servers.kfp.script import Frame
from tests.servers.kfp.state import RefusedError, Store, not_found

__all__ = ["Frame", "KfpApi", "Seen", "Store"]


@dataclasses.dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclasses.dataclass(kw_only=True)
class KfpApi:
    """The stand-in; every attribute may also be changed while it runs.

    Attributes:
        port: 0 lets the system choose, once: a stopped server starts again at the same address.
        version: What healthz calls `tag_name`.
        token: Bearer token that is asked for; "" for none.
        cookie: Session cookie that is asked for; "" for none.
        login: What an unknown person gets: 401 as from the API, 302 to Dex, 301 to https, or 200 with the login page.
        prefix: Path before /apis, such as /pipeline behind Kubeflow's gateway.
        pages: Whether it also serves the pages that people look at, and not the API's log endpoint.
        logs: Whether the API's log endpoint gives logs.
        faults: Asked for each request; returns a status, "reset", "hang" or "lost" (done, but the answer gets lost).
        tls: For https.
    """

    store: Store = dataclasses.field(default_factory=Store)
    port: int = 0
    version: str = "2.16.0"
    token: str = ""
    cookie: str = ""
    login: int = 401
    prefix: str = ""
    pages: bool = False
    logs: bool = True
    faults: Callable[[Seen], int | str | None] | None = None
    tls: ssl.SSLContext | None = None
    requests: list[Seen] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self._stack = contextlib.ExitStack()

    @property
    def host(self) -> str:
        """What --host takes."""
        return f"http{'s' if self.tls else ''}://localhost:{self.port}{self.prefix}"

    def sent(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests of a kind, in order."""
        return [seen.body for seen in self.requests if seen.method == method and seen.path == path]

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self._stack.enter_context(self._in_thread())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def start(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @contextlib.contextmanager
    def _in_thread(self) -> Iterator[None]:
        ready, failure, done = threading.Event(), [], asyncio.Event()
        loop = asyncio.new_event_loop()

        async def live() -> None:
            try:
                await self.start()
            except OSError as error:
                failure.append(error)
                return
            finally:
                ready.set()
            await done.wait()
            await self.stop()

        def work() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(live())

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        ready.wait()
        if failure:
            raise failure[0]
        try:
            yield
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join()

    # --------------------------------------------------------------- requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        seen = await _seen(request, self.prefix)
        self.requests.append(seen)
        fault = self.faults(seen) if self.faults is not None else None
        if isinstance(fault, int):
            return _problem(fault, 14, "upstream connect error or disconnect/reset before headers")
        if fault == "hang":
            await asyncio.sleep(600)
        if fault == "reset":
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()
        if not self._knows(request):
            return self._to_login()
        try:
            response: web.StreamResponse = await handler(request)
        except RefusedError as error:
            response = _problem(error.status, error.code, str(error))
        if fault == "lost":
            request.transport.abort()  # type: ignore[union-attr]
        return response

    def _knows(self, request: web.Request) -> bool:
        if self.token and request.headers.get("Authorization") == f"Bearer {self.token}":
            return True
        if self.cookie and self.cookie in request.headers.get("Cookie", ""):
            return True
        return not self.token and not self.cookie

    def _to_login(self) -> web.Response:
        if self.login == 301:
            return web.Response(status=301, headers={"Location": f"https://localhost:{self.port}/"})
        if self.login == 302:
            return web.Response(status=302, headers={"Location": "/dex/auth?client_id=kubeflow-oidc-authservice"})
        if self.login == 200:
            return web.Response(text="<html><title>dex</title>Log in to Your Account</html>", content_type="text/html")
        said = "Unauthenticated: Request header error: there is no user identity header."
        return _problem(self.login, 16, said)

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.path
        if self.prefix:
            if not path.startswith(self.prefix):
                return web.Response(text="<html>Kubeflow Central Dashboard</html>", content_type="text/html")
            path = path.removeprefix(self.prefix)
        if self.pages and not path.startswith(("/apis/v2beta1", "/apis/v1beta1")):
            return self._page(path, request.query)
        seen = await _seen(request, self.prefix)
        found = self._route(request.method, path, seen)
        return found if isinstance(found, web.Response) else web.json_response(found)

    def _page(self, path: str, query: Any) -> web.Response:
        if path == "/k8s/pod/logs":
            text = self.store.log(query.get("runid", ""), query.get("podname", ""))
            return web.Response(text=text) if text is not None else web.Response(status=404, text="pod not found")
        return web.Response(text="<html><title>Kubeflow Pipelines</title></html>", content_type="text/html")

    def _route(self, method: str, path: str, seen: Seen) -> Any:
        match path.strip("/").split("/"):
            case ["apis", "v2beta1", "healthz"]:
                return {"tag_name": self.version, "multi_user": self.store.multi_user, "pipeline_store": "database"}
            case ["apis", "v2beta1", kind, *rest]:
                handler = getattr(self, f"_{kind}", None)
                if handler is not None:
                    return handler(method, rest, seen)
            case ["apis", "v1alpha1", "runs", run, "nodes", node, "log"]:
                text = self.store.log(run, node) if self.logs else None
                if text is None:
                    said = f"Failed to read logs from pod {node}"
                    return web.json_response({"error_message": said, "error_details": said}, status=500)
                return web.Response(text=text)
        return web.Response(status=404, text="404 page not found\n")

    # ---------------------------------------------------------------- objects

    def _experiments(self, method: str, rest: list[str], seen: Seen) -> Any:
        if method == "POST":
            return self.store.create_experiment(seen.body)
        if rest:
            return _one(self.store.experiments, rest[0], "Experiment")
        namespace = self.store.check_namespace(seen.query.get("namespace", ""))
        return _listed("experiments", self.store.experiments, seen, namespace)

    def _pipelines(self, method: str, rest: list[str], seen: Seen) -> Any:
        match method, rest:
            case "POST", []:
                return self.store.create_pipeline(seen.body)
            case "POST", ["upload"]:
                made = self.store.create_pipeline(seen.query)
                self.store.create_version(made["pipeline_id"], made["name"], "", seen.body)
                return made
            case "POST", ["upload_version"]:
                query = seen.query
                return self.store.create_version(
                    query.get("pipelineid", ""), query.get("name", ""), query.get("description", ""), seen.body
                )
            case "GET", []:
                return _listed(
                    "pipelines", self.store.pipelines, seen, self.store.check_namespace(seen.query.get("namespace", ""))
                )
            case "GET", [pipeline, "versions"]:
                mine = {k: v for k, v in self.store.versions.items() if v["pipeline_id"] == pipeline}
                return _listed("pipeline_versions", mine, seen, None)
            case "GET", [_, "versions", version]:
                return _one(self.store.versions, version, "PipelineVersion")
            case "GET", [pipeline]:
                return _one(self.store.pipelines, pipeline, "Pipeline")
        raise not_found("Path", "/".join(rest))

    def _runs(self, method: str, rest: list[str], seen: Seen) -> Any:
        match method, rest:
            case "POST", []:
                return self.store.create_run(seen.body)
            case "POST", [text] if text.endswith(":terminate"):
                run = text.removesuffix(":terminate")
                _one(self.store.runs, run, "Run")
                self.store.runs[run].ended_by_hand = "CANCELED"
                return {}
            case "POST", [text] if text.endswith(":retry"):
                run = text.removesuffix(":retry")
                _one(self.store.runs, run, "Run")
                self.store.runs[run].looks = 0
                return {}
            case "GET", []:
                shown = {run: self.store.shown(run) for run in self.store.runs}
                if experiment := seen.query.get("experiment_id"):
                    shown = {run: each for run, each in shown.items() if each["experiment_id"] == experiment}
                return _listed("runs", shown, seen, None)
            case "GET", [run]:
                return self.store.look(run)
            case "GET", [run, "nodes", _, "artifacts", _]:  # of version 2 pipelines it has none
                raise not_found("artifact of run", run)
        raise not_found("Path", "/".join(rest))

    def _recurringruns(self, method: str, rest: list[str], seen: Seen) -> Any:
        match method, rest:
            case "POST", []:
                return self.store.create_recurring(seen.body)
            case "POST", [text]:
                name, _, action = text.partition(":")
                self.store.set_mode(name, action.upper())
                return {}
            case "GET", []:
                namespace = self.store.check_namespace(seen.query.get("namespace", ""))
                return _listed("recurringRuns", self.store.recurring, seen, namespace)
            case "GET", [name]:
                return _one(self.store.recurring, name, "RecurringRun")
            case "DELETE", [name]:
                _one(self.store.recurring, name, "RecurringRun")
                del self.store.recurring[name]
                return {}
        raise not_found("Path", "/".join(rest))


async def _seen(request: web.Request, prefix: str) -> Seen:
    body: Any = None
    if request.content_type == "multipart/form-data":
        form = await request.post()
        body = form["uploadfile"].file.read()  # type: ignore[union-attr]
        form["uploadfile"].file.seek(0)  # type: ignore[union-attr]
    elif data := await request.read():
        with contextlib.suppress(ValueError):
            body = json.loads(data)
    path = request.path.removeprefix(prefix)
    return Seen(request.method, path, dict(request.query), dict(request.headers), body)


def _one(objects: dict[str, Any], name: str, kind: str) -> Any:
    if name not in objects:
        raise not_found(kind, name)
    return objects[name]


def _listed(key: str, objects: dict[str, Any], seen: Seen, namespace: str | None) -> dict[str, Any]:
    """One page of a list; tokens are opaque."""
    found = [each for each in objects.values() if namespace is None or each.get("namespace") == namespace]
    if text := seen.query.get("filter"):
        for predicate in json.loads(text)["predicates"]:
            found = [each for each in found if each.get(predicate["key"]) == predicate.get("stringValue")]
    found.sort(key=lambda each: str(each["created_at"]), reverse="desc" in seen.query.get("sort_by", ""))
    start = int(base64.b64decode(seen.query.get("page_token") or b"MA=="))
    size = int(seen.query.get("page_size") or 10)
    page: dict[str, Any] = {key: found[start : start + size], "total_size": len(found)}
    if start + size < len(found):
        page["next_page_token"] = base64.b64encode(str(start + size).encode()).decode()
    return page if page[key] else {"total_size": len(found)}


def _problem(status: int, code: int, message: str) -> web.Response:
    """An error as grpc-gateway writes it."""
    return web.json_response({"error": message, "code": code, "message": message, "details": []}, status=status)


def _demo(body: Any) -> list[Frame]:
    """A run of three shards that ends well, for people who try commands by hand."""
    rows = [120, 120, 60]
    planned = {"event": "shards.planned", "plan": "demo", "rows": 300, "rows_of_shard": rows}
    steps: dict[str, Any] = {"check-prompts": "RUNNING"}
    checked = {"event": "prompts.checked", "rows": 300, "invalid": 0, "repeated_ids": 0, "duplicates": 0}
    logs: dict[str, Any] = {}
    frames = [Frame(state="PENDING"), Frame(steps=dict(steps))]
    for step in ("check-prompts", "resolve-endpoint", "plan-shards"):
        frames.append(Frame(steps={**steps, step: "RUNNING"}, logs=dict(logs)))
        steps[step] = "SUCCEEDED"
        logs |= {"check-prompts": [checked]} if step == "check-prompts" else {step: []}
    logs["plan-shards"] = [planned]
    for done in (0, 30, 70, 100):
        for shard, of_shard in enumerate(rows):
            number = of_shard * done // 100
            progress = {"event": "shard.progress", "shard": shard, "rows": of_shard, "done": number, "reused": 0}
            progress |= {"output_tokens": 90 * number, "in_flight": 8, "outcomes": {"ok": number}}
            logs[f"run-shard#{shard}"] = [*logs.get(f"run-shard#{shard}", []), progress]
        frames.append(Frame(steps={**steps, "run-shard": ["RUNNING"] * 3}, logs=dict(logs)))
    steps |= {"run-shard": ["SUCCEEDED"] * 3, "merge-shards": "SUCCEEDED", "gate": "SUCCEEDED"}
    merged = {"event": "results.merged", "rows": 300, "outcomes": {"ok": 297, "rejected": 3}, "duration_s": 41.0}
    logs |= {"merge-shards": [merged], "gate": []}
    if (body["runtime_config"]["parameters"].get("max_error_rate") or 0.2) < 0.01:
        said = "3 of 300 rows went wrong (rejected 3), more than max_error_rate 0.001 allows."
        logs["gate"] = [{"event": "step.failed", "step": "gate", "error": said, "exit_code": 1}]
        steps["gate"] = "FAILED"
    return [*frames, Frame(state=steps["gate"], steps=steps, logs=logs)]


def main() -> None:
    parser = argparse.ArgumentParser(description="A Kubeflow Pipelines API to try commands against.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pages", action="store_true", help="as svc/ml-pipeline-ui: pages, and their log endpoint")
    options = parser.parse_args()
    with KfpApi(port=options.port, pages=options.pages, store=Store(script=_demo)) as api:
        print(api.host, flush=True)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
