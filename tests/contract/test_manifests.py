"""The YAML that a person applies: taken by a strict API server, the same as what the pipeline applies, startable."""

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.serving import vllm_arguments
from clients.serving.kinds import KINDS
from clients.serving.manifest import (
    for_kserve_0_15,
    inference_service,
    metrics_service,
    model_cache,
    vllm_command_line,
)
from clients.serving.prerequisites import RIGHTS
from clients.serving.spec import HF_TOKEN_KEY, TOKEN_PLACEHOLDER, ServingSpec
from tests.servers import crds

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("kserve", "ray-option") for path in (ROOT / folder).rglob("*.yaml"))
FLAGS: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/data/vllm_flags.json").read_text(encoding="utf-8"))[
    "flags"
]

needs_crds = pytest.mark.skipif(
    crds.crd_folder() is None, reason="no CRDs here: name their folder in KLLM_CRDS (see tests/servers/crds.py)"
)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in FILES:
        for document in documents(path):
            for pod in crds.pod_specs(document):
                yield from ((f"{named(path)} {each['name']}", each) for each in pod["containers"])


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every argument list of `vllm serve`, in the files and made of a spec."""
    for where, container in containers():
        if container.get("command") == ["vllm", "serve"]:
            yield where, container["args"]
        elif script := re.search(r"vllm serve ((?:.*\\\n)*.*)", "\n".join(container.get("args", []))):
            yield where, shlex.split(script[1].replace("\\\n", " "))
    for profile in ("guide", "throughput"):
        yield profile, vllm_command_line(ServingSpec(profile=profile))
    yield "another model", vllm_command_line(ServingSpec(model_id="meta-llama/Llama-3.1-8B-Instruct"))


@needs_crds
@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_strict_api_server_takes_every_object(path: Path) -> None:
    assert {document["metadata"]["name"]: crds.problems(document) for document in documents(path)} == {
        document["metadata"]["name"]: [] for document in documents(path)
    }


@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("inference-service.yaml", ServingSpec()),
        ("inference-service-throughput.yaml", ServingSpec(profile="throughput")),
    ],
)
def test_the_file_is_what_the_pipeline_applies(file: str, spec: ServingSpec) -> None:
    assert documents(ROOT / "kserve/vllm" / file) == [inference_service(spec), metrics_service(spec)]


def test_the_claim_is_what_the_pipeline_makes() -> None:
    assert documents(ROOT / "kserve/vllm/pvc-model.yaml") == [model_cache(ServingSpec())]


def test_the_secret_has_the_name_the_key_and_the_placeholder_that_the_code_knows() -> None:
    (secret,) = documents(ROOT / "kserve/vllm/hf-secret.yaml")
    assert secret["metadata"]["name"] == ServingSpec().hf_secret
    assert secret["stringData"] == {HF_TOKEN_KEY: TOKEN_PLACEHOLDER}


@pytest.mark.parametrize("path", [*FILES, ROOT / "ray-option/Dockerfile"], ids=named)
def test_comments_explain_in_both_languages(path: Path) -> None:
    comments = re.findall(r"#(.*)", path.read_text(encoding="utf-8"))
    assert any(re.search("[가-힣]", comment) for comment in comments)
    assert any(re.search("[a-z]{4}", comment) for comment in comments)


def test_images_are_fixed() -> None:
    images = {container["image"] for _, container in containers()}
    floating = [image for image in images if not re.search(r":v?\d+\.\d+\.\d+", image)]
    assert images
    assert not floating


@pytest.mark.parametrize(("where", "arguments"), list(command_lines()))
def test_vllm_knows_every_flag_and_takes_every_value(where: str, arguments: list[str]) -> None:
    assert not arguments[0].startswith("-"), "the model comes first"
    for found in vllm_arguments_of(arguments[1:]):
        flag, values = found.words[0], found.words[1:]
        assert flag in FLAGS, f"{where}: vLLM has no {flag}"
        known = FLAGS[flag]
        assert len(values) == int(known["takes_value"]), f"{where}: {flag} {values}"
        for value in values:
            assert known["choices"] is None or value in known["choices"], f"{where}: {flag} {value}"
            assert known["kind"] != "int" or value.startswith("$(LWS_") or value.isdigit(), f"{where}: {flag} {value}"


def vllm_arguments_of(words: list[str]) -> list[vllm_arguments.Argument]:
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [vllm_arguments.argument(*group) for group in groups]


@pytest.mark.parametrize("flag", list(vllm_arguments.REMOVED))
def test_what_is_refused_as_gone_is_gone(flag: str) -> None:
    assert flag not in FLAGS


@pytest.mark.parametrize(("where", "arguments"), list(command_lines()))
def test_fp8_blocks_are_never_cut(where: str, arguments: list[str]) -> None:
    size = int(arguments[arguments.index("--tensor-parallel-size") + 1])
    if "Qwen3-30B-A3B" in arguments[0]:
        assert 768 % (128 * size) == 0 or "--enable-expert-parallel" in arguments, where


def test_both_forms_over_two_nodes_use_all_sixteen_gpus() -> None:
    forms = [arguments for where, arguments in command_lines() if where.startswith("ray-option")]
    assert len(forms) == 3  # Ray's head, the leader and the worker
    assert {arguments[arguments.index("--tensor-parallel-size") + 1] for arguments in forms} == {"16"}


def test_the_ray_image_is_the_servers_with_the_ray_that_the_cluster_names() -> None:
    dockerfile = (ROOT / "ray-option/Dockerfile").read_text(encoding="utf-8")
    (cluster,) = documents(ROOT / "ray-option/raycluster.yaml")
    assert f"FROM {ServingSpec().image}\n" in dockerfile
    assert f"ray[default]=={cluster['spec']['rayVersion']}" in dockerfile
    images = {each["image"] for pod in crds.pod_specs(cluster) for each in pod["containers"]}
    assert len(images) == 1
    assert images.pop() in dockerfile


def test_kuberay_adds_no_second_port_8080_to_the_head() -> None:
    (cluster,) = documents(ROOT / "ray-option/raycluster.yaml")
    head = cluster["spec"]["headGroupSpec"]
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert str(ports["metrics"]) == head["rayStartParams"]["metrics-export-port"]
    assert len(set(ports.values())) == len(ports)


def rules(file: str, kind: str) -> list[dict[str, Any]]:
    return [rule for each in documents(ROOT / "kserve" / file) if each["kind"] == kind for rule in each["rules"]]


def allowed(granted: list[dict[str, Any]], kind: str, verb: str, subresource: str) -> bool:
    resource = f"{KINDS[kind].plural}/{subresource}" if subresource else KINDS[kind].plural
    return any(
        KINDS[kind].group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
        for rule in granted
    )


@pytest.mark.parametrize(("kind", "verbs", "subresource"), RIGHTS)
def test_the_role_grants_what_deploying_asks_for(kind: str, verbs: tuple[str, ...], subresource: str) -> None:
    assert all(allowed(rules("rbac.yaml", "Role"), kind, verb, subresource) for verb in verbs)


def test_no_role_grants_everything_or_writes_secrets() -> None:
    granted = [*rules("rbac.yaml", "Role"), *rules("rbac.yaml", "ClusterRole"), *rules("sweep.yaml", "Role")]
    assert not any("*" in rule[field] for rule in granted for field in ("apiGroups", "resources", "verbs"))
    assert not any(allowed(granted, "Secret", verb, "") for verb in ("list", "create", "patch", "delete"))
    assert not any(allowed(granted, "PersistentVolumeClaim", verb, "") for verb in ("patch", "delete"))
    assert not {verb for rule in rules("rbac.yaml", "ClusterRole") for verb in rule["verbs"]} - {"get", "list"}


@needs_crds
def test_an_older_kserve_gets_a_form_that_it_takes() -> None:
    service = for_kserve_0_15(inference_service(ServingSpec()))
    annotations = service["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "RawDeployment"
    assert "serving.kserve.io/autoscalerClass" not in annotations
    assert inference_service(ServingSpec())["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    assert len(crds.problems(service)) == 1, "nothing but the strategy, which today's KServe ties to the new name"


def predictor(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service["spec"]["predictor"]
    return found


def container(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = predictor(service)["containers"][0]
    return found


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an unknown field": lambda s: predictor(s).update(replicas=2),
    "an unknown field deep down": lambda s: container(s)["resources"].update(request={}),
    "a number as the value of a variable": lambda s: container(s)["env"].append({"name": "A", "value": 1}),
    "a number among the arguments": lambda s: container(s)["args"].append(8080),
    "replicas as text": lambda s: predictor(s).update(minReplicas="2"),
    "an annotation that is no text": lambda s: s["metadata"]["annotations"].update(a=True),
    "a bad quantity": lambda s: container(s)["resources"]["limits"].update(memory="800GB"),
    "a metric that is none": lambda s: predictor(s).update(scaleMetric="gpu"),
    "a port without a number": lambda s: container(s)["ports"].append({"name": "x"}),
    "a port twice": lambda s: container(s)["ports"].append(dict(container(s)["ports"][0])),
    "a variable twice": lambda s: container(s)["env"].append(dict(container(s)["env"][1])),
    "a label that is none": lambda s: s["metadata"]["labels"].update(a="b c"),
    "more GPUs asked than allowed": lambda s: container(s)["resources"]["limits"].update({crds.GPU: "4"}),
    "a port out of range": lambda s: container(s)["ports"][0].update(containerPort=99999),
    "a mount without a volume": lambda s: predictor(s)["volumes"].pop(),
    "a strategy that is none": lambda s: predictor(s).update(deploymentStrategy={"type": "Replace"}),
    "more replicas at least than at most": lambda s: predictor(s).update(minReplicas=3),
    "a name with a dot": lambda s: s["metadata"].update(name="a.b"),
    "a name that is too long": lambda s: s["metadata"].update(name="a" * 49),
    "no container": lambda s: predictor(s).update(containers=[]),
    "a model beside a container": lambda s: predictor(s).update(model={"modelFormat": {"name": "vLLM"}}),
    "another mode": lambda s: s["metadata"]["annotations"].pop("serving.kserve.io/deploymentMode"),
    "another kind": lambda s: s.update(apiVersion="serving.kserve.io/v1"),
}


@needs_crds
@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_the_check_finds(mistake: str) -> None:
    service = copy.deepcopy(inference_service(ServingSpec()))
    MISTAKES[mistake](service)
    assert crds.problems(service)
