"""Check a cluster against what a run needs, before anyone waits for GPUs. Nothing is changed there.

The cluster is the one that kubectl would talk to. Each finding says how to mend it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.errors import LLMInferenceError, SettingsError
from clients.serving.json_flags import json_list, json_object
from clients.wide_help import WideHelp

if TYPE_CHECKING:
    from clients.serving.spec import ServingSpec
    from pipelines.checks.scene import Scene
    from pipelines.checks.services import Langfuse
    from pipelines.checks.verdict import Check, Question, Verdict

_EXAMPLES = """examples:
  python -m pipelines.doctor -n ml
  python -m pipelines.doctor -n ml --profile throughput --gpu-product NVIDIA-A100-SXM4-80GB
  python -m pipelines.doctor -n ml --host http://localhost:8080 --json

exit code: 0 nothing failed (warnings may stand), 1 something failed, 2 wrong usage
"""

#: Seconds for which a request is tried again: a person waits for the answer.
_PATIENCE_S = 5.0

#: Seconds until an API server that says nothing is taken for dead, and until all other checks have to be done.
_API_DEADLINE_S, _DEADLINE_S = 12.0, 40.0


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, print; returns the exit code."""
    options = _parser().parse_args(arguments)
    from clients.display import error_line
    from clients.steps.interrupts import interruptible

    try:
        with interruptible():
            where, checks = check_all(options)
            _print(where, checks, as_json=options.json)
    except LLMInferenceError as error:
        error_line(str(error))
        return error.exit_code
    return int(_has_failed(checks))


def check_all(options: argparse.Namespace) -> "tuple[dict[str, str], list[Check]]":
    """Make all checks; returns where was looked, and what was found.

    Raises:
        SettingsError: a flag has to be mended.
    """
    from pipelines.checks.questions import api_question, cluster_questions
    from pipelines.checks.verdict import Check, answer_all, failed, found_and_mend

    spec, services = _spec(options), _service_questions(options)
    try:
        where, scene = _scene(options, spec)
    except SettingsError as error:
        api = Check("Kubernetes API", failed(*found_and_mend(error)))
        return {}, [api, *answer_all(services, deadline_s=_DEADLINE_S)]
    api, *beside = answer_all([api_question(scene), *services], deadline_s=_API_DEADLINE_S)
    asked = [] if _has_failed([api]) else cluster_questions(scene, ray=options.ray, lws=options.lws)
    return where, [api, *answer_all(asked, deadline_s=_DEADLINE_S), *beside]


def _has_failed(checks: "list[Check]") -> bool:
    from pipelines.checks.verdict import Status

    return any(check.verdict.status is Status.FAILED for check in checks)


def _spec(options: argparse.Namespace) -> "ServingSpec":
    """The choices that were made; what was left out is ServingSpec's own default."""
    from dataclasses import fields

    from clients.serving.spec import ServingSpec

    given = {field.name: getattr(options, field.name, None) for field in fields(ServingSpec)}
    return ServingSpec(**{name: value for name, value in given.items() if value is not None})


def _scene(options: argparse.Namespace, spec: "ServingSpec") -> "tuple[dict[str, str], Scene]":
    """Where is looked, in words, and the cluster.

    Raises:
        SettingsError: no cluster is known, or its credentials cannot be used.
    """
    from clients.serving.cluster import Cluster
    from clients.serving.connection import Connection, find_config
    from pipelines.checks.scene import Scene

    config, in_cluster = find_config(_environment("KUBECONFIG"), options.context)
    connection = Connection(config, in_cluster=in_cluster, patience_s=_PATIENCE_S)
    cluster = Cluster(connection, options.namespace or config.namespace)
    where = {
        "server": connection.server,
        "context": "in cluster" if in_cluster else str(config.context_name),
        "namespace": cluster.namespace,
    }
    return where, Scene(
        connection=connection,
        cluster=cluster,
        spec=spec,
        service_account=options.service_account,
        in_cluster=in_cluster,
    )


def _service_questions(options: argparse.Namespace) -> "list[Question]":
    """What is asked beside the cluster."""
    from pipelines.checks.services import langfuse
    from pipelines.checks.verdict import Question

    traces = _langfuse()
    return [
        Question("Langfuse", lambda: langfuse(traces)),
        Question("Pipelines API", lambda: _pipelines(options.host or _environment("KF_PIPELINES_ENDPOINT"))),
    ]


def _langfuse() -> "Langfuse":
    from pipelines.checks.services import Langfuse

    return Langfuse(
        host=_environment("LANGFUSE_BASE_URL") or _environment("LANGFUSE_HOST"),
        public_key=_environment("LANGFUSE_PUBLIC_KEY"),
        secret_key=_environment("LANGFUSE_SECRET_KEY"),
    )


def _pipelines(host: str) -> "Verdict":
    from pipelines.checks.services import pipelines_api
    from pipelines.checks.verdict import Status, Verdict

    if not host:
        return Verdict(Status.SKIPPED, "not asked: neither --host nor KF_PIPELINES_ENDPOINT")
    path = _environment("KF_PIPELINES_SA_TOKEN_PATH")
    try:
        token = Path(path).read_text(encoding="utf-8").strip() if path else ""
    except OSError:
        token = ""
    return pipelines_api(host, token=token)


def _environment(name: str) -> str:
    return os.environ.get(name, "").strip()


def _print(where: dict[str, str], checks: "list[Check]", *, as_json: bool) -> None:
    if as_json:
        found = {**where, "checks": [check.as_json() for check in checks], "ok": not _has_failed(checks)}
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from pipelines.checks.view import print_checks

    print_checks(checks, Console(highlight=False), where=where)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.doctor",
        usage="%(prog)s [-n NAMESPACE] [option ...]",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=WideHelp,
    )
    where = parser.add_argument_group("where")
    where.add_argument("-n", "--namespace", default="", help="of the runs (default: the context's, or the pod's)")
    where.add_argument("--context", default="", help="of the kubeconfig (default: the current one)")
    where.add_argument("--service-account", metavar="NAME", default="", help="of the runs (default: found)")
    where.add_argument("--host", metavar="URL", default="", help="Kubeflow Pipelines (default: KF_PIPELINES_ENDPOINT)")
    _add_shape(parser.add_argument_group("what is to run (defaults: the pipeline's own)"))
    what = parser.add_argument_group("what else")
    what.add_argument("--ray", action="store_true", help="KubeRay too, for ray-option/raycluster.yaml")
    what.add_argument("--lws", action="store_true", help="LeaderWorkerSet too, for ray-option/leaderworkerset.yaml")
    what.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_shape(group: Any) -> None:
    """Flags of the service; names and meanings are ServingSpec's."""
    group.add_argument("--profile", metavar="NAME", help="guide (2 x 8 GPUs) or throughput (16 x 1 GPU)")
    group.add_argument("--replicas", metavar="N", type=int, help="pods that serve")
    group.add_argument("--gpus-per-replica", metavar="N", type=int, help="GPUs of each")
    group.add_argument("--gpu-product", metavar="NAME", help='label nvidia.com/gpu.product; "" for any')
    group.add_argument("--node-selector", metavar="JSON", type=json_object, help="more labels of the nodes")
    group.add_argument("--tolerations", metavar="JSON", type=json_list, help="taints that are tolerated")
    group.add_argument("--cpu", metavar="N", help="cores of each replica")
    group.add_argument("--memory", metavar="SIZE", help="of each replica, such as 256Gi")
    group.add_argument("--hf-secret", metavar="NAME", help='Secret with the token; "" for none')
    group.add_argument("--model-cache", metavar="NAME", help='claim that keeps models; "" for none')
    group.add_argument("--storage-class", metavar="NAME", help="of that claim")
    group.add_argument("--no-ipc-lock", dest="ipc_lock", action="store_false", default=None, help="no InfiniBand")


if __name__ == "__main__":
    sys.exit(main())
