"""Serve a model on Kubernetes from a terminal or a CronJob: the same code as the pipeline's steps.

The cluster is the one that kubectl would talk to; in a pod, the pod's own.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from clients.errors import LLMInferenceError
from clients.events import log_to_stderr
from clients.serving.json_flags import json_list, json_object
from clients.serving.spec import ServingSpec
from clients.wide_help import WideHelp

_EXAMPLES = """examples:
  python -m clients.serving manifest --profile throughput | kubectl apply -f -
  python -m clients.serving deploy --name vllm-qwen3-30b-fp8
  python -m clients.serving status --name vllm-qwen3-30b-fp8
  python -m clients.serving release --name vllm-qwen3-30b-fp8
  python -m clients.serving sweep --all-namespaces --dry-run
"""

#: The holder of what a person deploys by hand.
_RUN = "by-hand"


def main(arguments: list[str] | None = None) -> int:
    """Parse, do, print; returns the exit code."""
    options = _parser().parse_args(arguments)
    from clients.steps.interrupts import interruptible

    log_to_stderr()
    try:
        with interruptible(), contextlib.ExitStack() as stack:
            options.connected = stack
            return int(options.run(options) or 0)
    except LLMInferenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _manifest(options: argparse.Namespace) -> None:
    import yaml

    from clients.serving.manifest import inference_service, metrics_service, model_cache

    spec = _spec(options)
    objects = [inference_service(spec), metrics_service(spec), *([model_cache(spec)] if spec.model_cache else [])]
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True))


def _deploy(options: argparse.Namespace) -> None:
    from clients.serving.deploy import deploy
    from clients.serving.wait import wait_until_ready

    cluster = _cluster(options)
    deployed = deploy(
        cluster, _spec(options), run=_RUN, after_run=options.after_run, lease_s=options.lease_hours * 3600
    )
    if options.no_wait:
        return
    serving = wait_until_ready(
        cluster,
        deployed,
        ready_timeout_s=options.ready_timeout,
        lease_s=options.lease_hours * 3600,
        api_key=os.environ.get("OPENAI_API_KEY") or None,
    )
    print(serving.url)


def _status(options: argparse.Namespace) -> int:
    """Print what stands; exit code 0 when it serves, 1 when it does not."""
    from clients.serving.diagnose import diagnose
    from clients.serving.observe import Observer

    snapshot = Observer(_cluster(options), options.name).look()
    predictor = ((snapshot.service or {}).get("spec") or {}).get("predictor") or {}
    finding = diagnose(snapshot, wanted_replicas=int(predictor.get("minReplicas") or 1))
    print(finding.detail)
    if finding.cause is not None:
        print(f"{finding.cause.kind}: {finding.cause.message}")
    return 0 if finding.ready else 1


def _release(options: argparse.Namespace) -> None:
    from clients.serving.release import release

    print(json.dumps(dataclasses.asdict(release(_cluster(options), options.name, run=options.held_by))))


def _sweep(options: argparse.Namespace) -> int:
    from clients.serving.sweep import sweep

    failed = False
    for released in sweep(_cluster(options), all_namespaces=options.all_namespaces, dry_run=options.dry_run):
        print(json.dumps(dataclasses.asdict(released)), flush=True)
        failed = failed or released.action == "failed"
    return int(failed)


def _cluster(options: argparse.Namespace) -> Any:
    from clients.serving.cluster import Cluster

    kubeconfig = os.environ.get("KUBECONFIG", "")
    cluster = Cluster.connect(kubeconfig=kubeconfig, context=options.context, namespace=options.namespace)
    return options.connected.enter_context(cluster)


def _spec(options: argparse.Namespace) -> ServingSpec:
    """The choices that were made; what was left out is ServingSpec's own default."""
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(ServingSpec)}
    return ServingSpec(**{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.serving",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=WideHelp,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_spec(_command(commands, "manifest", _manifest, "print what deploy would apply, as YAML", cluster=False))
    deploy = _command(commands, "deploy", _deploy, "deploy the model, wait until it answers, print its address")
    _add_spec(deploy)
    how = deploy.add_argument_group("how it is deployed")
    how.add_argument(
        "--after-run",
        choices=("delete", "stop", "keep"),
        default="keep",
        help="what sweep and release do with it (default: %(default)s)",
    )
    how.add_argument(
        "--lease-hours",
        type=float,
        metavar="H",
        default=12.0,
        help="unless it is kept, sweep frees its GPUs after so long (default: %(default)g)",
    )
    how.add_argument(
        "--ready-timeout", type=float, metavar="S", default=7200.0, help="seconds to wait (default: %(default)g)"
    )
    how.add_argument("--no-wait", action="store_true", help="only apply")
    _named(_command(commands, "status", _status, "tell how far a service is, and what stands in its way"))
    release = _named(_command(commands, "release", _release, "end a service as its maker chose"))
    release.add_argument("--held-by", metavar="RUN", default=_RUN, help="whose hold is given up (default: your own)")
    sweep = _command(commands, "sweep", _sweep, "end services that no living run holds; for a CronJob")
    sweep.add_argument("-A", "--all-namespaces", action="store_true", help="look everywhere")
    sweep.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, cluster: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="\n".join(["example:", *(line for line in _EXAMPLES.splitlines() if f" {name} " in line)]),
        formatter_class=WideHelp,
    )
    parser.set_defaults(run=run)
    if cluster:
        parser.add_argument("-n", "--namespace", default="", help="namespace (default: the context's, or the pod's)")
        parser.add_argument("--context", default="", help="context of the kubeconfig (default: the current one)")
    return parser


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--name", required=True, help="name of the InferenceService")
    return parser


def _add_spec(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of ServingSpec, with the help that stands in its docstring."""
    parser.usage = f"{parser.prog} [option ...]"
    shape = parser.add_argument_group("what is served")
    helps = dict(_described(ServingSpec.__doc__ or ""))
    for field in dataclasses.fields(ServingSpec):
        if field.name == "ipc_lock":
            shape.add_argument(
                "--no-ipc-lock",
                dest=field.name,
                action="store_false",
                default=None,
                help="do not ask for the right to lock memory, which InfiniBand needs",
            )
            continue
        kind, metavar = _FLAG_KINDS.get(field.name) or ((int, "N") if field.type is int else (str, "TEXT"))
        shape.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            type=kind,
            default=None,
            metavar=metavar,
            help=helps.get(field.name, "").replace("%", "%%"),
        )


def _described(docstring: str) -> Iterator[tuple[str, str]]:
    """Attribute and description out of a docstring's Attributes section."""
    name, words = "", [""]
    for line in docstring.partition("Attributes:")[2].splitlines():
        head, colon, text = line.strip().partition(": ")
        if colon and head.isidentifier():
            yield name, " ".join(words)
            name, words = head, [text]
        elif line.strip():
            words.append(line.strip())
    yield name, " ".join(words)


_FLAG_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "node_selector": (json_object, "JSON"),
    "tolerations": (json_list, "JSON"),
}


if __name__ == "__main__":
    sys.exit(main())
