"""What a newcomer applies to see: Langfuse in the cluster, and what Prometheus and Grafana are given."""

import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.records import ERROR_OUTCOMES, Outcome
from clients.serving import labels
from clients.serving.manifest import inference_service, metrics_service
from clients.serving.spec import ServingSpec
from tests.servers import crds

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "observability"
LANGFUSE = HERE / "langfuse"
MONITORING = HERE / "monitoring"
SCRIPT = LANGFUSE / "make-secrets.sh"

Object = dict[str, Any]

needs_crds = pytest.mark.skipif(
    crds.crd_folder() is None, reason="no CRDs here: name their folder in KLLM_CRDS (see tests/servers/crds.py)"
)
KUBECTL = shutil.which("kubectl") or ""
PROMTOOL = shutil.which("promtool") or ""
needs_kubectl = pytest.mark.skipif(not KUBECTL, reason="kubectl is not installed")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")

#: Of others: what their dashboards and alerts rest on too. The optional ones say so in their panel.
FOREIGN = {"up", "kube_pod_container_resource_requests", "DCGM_FI_DEV_GPU_UTIL"}

#: Our own metrics of a run, with the labels that each has.
OURS = {
    "llm_batch_rows": {"run", "shard"},
    "llm_batch_rows_total": {"run", "shard", "outcome"},
    "llm_batch_in_flight": {"run", "shard"},
    "llm_batch_output_tokens_total": {"run", "shard"},
    "llm_batch_prompt_tokens_total": {"run", "shard"},
    "llm_batch_retries_total": {"run", "shard"},
    "llm_batch_traces_total": {"run", "shard", "state"},
}


def documents(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def kustomization(folder: Path) -> Object:
    (found,) = documents(folder / "kustomization.yaml")
    return found


def built(folder: Path) -> list[Object]:
    """The objects of a kustomization by its plain files, with the images that it pins."""
    described = kustomization(folder)
    tags = {each["name"]: each["newTag"] for each in described.get("images", [])}
    found = [each for file in described["resources"] for each in documents(folder / file)]
    for _, container in containers(found):
        container["image"] = f"{container['image']}:{tags[container['image']]}"
    return found


def workloads(objects: list[Object]) -> Iterator[Object]:
    return (each for each in objects if each["kind"] in ("Deployment", "StatefulSet", "CronJob"))


def pod_of(workload: Object) -> Object:
    spec = workload["spec"]["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else workload["spec"]
    pod: Object = spec["template"]["spec"]
    return pod


def containers(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    for workload in workloads(objects):
        yield from ((workload, each) for each in pod_of(workload)["containers"])


SERVER = built(LANGFUSE)
WORKLOADS = list(workloads(SERVER))


def name_of(value: Object) -> str:
    return f"{value['kind']}-{value['metadata']['name']}"


# Kustomize.


@needs_kubectl
@pytest.mark.parametrize(("folder", "namespace"), [(LANGFUSE, "langfuse"), (MONITORING, "monitoring")])
def test_kustomize_makes_of_it_what_the_files_say(folder: Path, namespace: str) -> None:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    plain = {(each["kind"], each["metadata"]["name"]) for each in built(folder)}
    assert plain <= {(each["kind"], each["metadata"]["name"]) for each in made}
    assert {each["metadata"].get("namespace", namespace) for each in made} == {namespace}
    assert all(each["kind"] in {kind for kind, _ in plain} | {"ConfigMap"} for each in made)
    images = {container["image"] for _, container in containers(made)}
    assert images == {container["image"] for _, container in containers(built(folder))}
    for pod in (pod_of(each) for each in workloads(made)):  # the hash of a ConfigMap's name reaches every use of it
        known = {each["metadata"]["name"] for each in made if each["kind"] == "ConfigMap"}
        assert set(config_maps_of(pod)) <= known


def config_maps_of(pod: Object) -> Iterator[str]:
    for container in pod["containers"]:
        yield from (each["configMapRef"]["name"] for each in container.get("envFrom", []))
        for variable in container.get("env", []):
            if "configMapKeyRef" in variable.get("valueFrom", {}):
                yield variable["valueFrom"]["configMapKeyRef"]["name"]
    yield from (each["configMap"]["name"] for each in pod.get("volumes", []) if "configMap" in each)


def test_every_file_of_the_folder_is_used() -> None:
    used = set(kustomization(LANGFUSE)["resources"])
    assert {path.name for path in LANGFUSE.glob("*.yaml")} == used | {"kustomization.yaml", "helm-values.yaml"}
    generated = {
        file for each in kustomization(LANGFUSE)["configMapGenerator"] for file in each.get("files", each.get("envs"))
    }
    assert {path.relative_to(LANGFUSE).as_posix() for path in (LANGFUSE / "config").iterdir()} == generated


# The server's objects.


def as_deployment(workload: Object) -> Object:
    """Workloads of other kinds, as the kind that the check knows."""
    pod = json.loads(json.dumps(pod_of(workload)))
    for claim in workload["spec"].get("volumeClaimTemplates", []):
        pod.setdefault("volumes", []).append({"name": claim["metadata"]["name"], "emptyDir": {}})
    for container in pod["containers"]:  # a name of a port is one of its ports
        for handler in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert isinstance(container.get(handler, {}), dict)
    pod.pop("restartPolicy", None)
    template = {"metadata": {"labels": {"app": "x"}}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": workload["metadata"],
        "spec": {
            "selector": {"matchLabels": {"app": "x"}},
            "strategy": {"type": "Recreate"},
            "template": template,
        },
    }


@needs_crds
@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_a_strict_api_server_takes_every_pod(workload: Object) -> None:
    assert crds.problems(as_deployment(workload)) == []


@needs_crds
@pytest.mark.parametrize("value", [each for each in SERVER if each["kind"] in ("Namespace", "Service")], ids=name_of)
def test_a_strict_api_server_takes_every_plain_object(value: Object) -> None:
    assert crds.problems(value) == []


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_pods_have_no_rights_that_they_do_not_need(workload: Object) -> None:
    pod = pod_of(workload)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_every_container_says_what_it_takes_and_how_it_is(workload: Object) -> None:
    for container in pod_of(workload)["containers"]:
        assert set(container["resources"]) == {"requests", "limits"}
        assert set(container["resources"]["requests"]) == set(container["resources"]["limits"]) == {"cpu", "memory"}
        if workload["kind"] != "CronJob":
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_selectors_find_their_pods(workload: Object) -> None:
    if workload["kind"] == "CronJob":
        return
    spec = workload["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    if workload["kind"] == "StatefulSet":
        assert spec["serviceName"] in {each["metadata"]["name"] for each in SERVER if each["kind"] == "Service"}
        assert spec["replicas"] == 1


def labels_of_pods() -> dict[str, dict[str, str]]:
    found = {}
    for each in WORKLOADS:
        spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
        found[each["metadata"]["name"]] = spec["template"]["metadata"]["labels"]
    return found


def selected(selector: Object) -> set[str]:
    """The workloads whose pods a selector finds."""
    found = set()
    for name, own in labels_of_pods().items():
        equal = selector.get("matchLabels", {}).items() <= own.items()
        if equal and all(own.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])):
            found.add(name)
    return found


def test_services_find_a_named_port() -> None:
    ports = {
        workload["metadata"]["name"]: {port["name"] for port in container["ports"]}
        for workload, container in containers(SERVER)
        if "ports" in container
    }
    for service in (each for each in SERVER if each["kind"] == "Service"):
        (name,) = selected({"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} == ports[name]


def test_budgets_let_a_node_be_drained() -> None:
    budgets = [each for each in SERVER if each["kind"] == "PodDisruptionBudget"]
    assert {name for each in budgets for name in selected(each["spec"]["selector"])} == {
        "langfuse-web",
        "langfuse-worker",
    }
    assert {each["spec"]["maxUnavailable"] for each in budgets} == {1}


def allowed_into() -> dict[tuple[str, int], set[str] | None]:
    """Per workload and port: whose pods may come in; None is everybody."""
    found: dict[tuple[str, int], set[str] | None] = {}
    for policy in (each for each in SERVER if each["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            sources = (
                {name for each in rule["from"] for name in selected(each["podSelector"])} if "from" in rule else None
            )
            for target, port in itertools.product(selected(policy["spec"]["podSelector"]), rule["ports"]):
                before = found.setdefault((target, port["port"]), set())
                found[target, port["port"]] = None if sources is None or before is None else before | sources
    return found


def test_only_web_is_reachable_and_stores_from_web_and_worker_alone() -> None:
    policies = [each["spec"] for each in SERVER if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    allowed = allowed_into()
    assert [key for key, sources in allowed.items() if sources is None] == [("langfuse-web", 3000)]
    services = {"langfuse-web", "langfuse-worker"}
    assert allowed["langfuse-postgres", 5432] == services
    assert allowed["langfuse-clickhouse", 8123] == services
    assert allowed["langfuse-clickhouse", 9000] == services | {"langfuse-retention"}
    assert allowed["langfuse-valkey", 6379] == services
    assert allowed["langfuse-s3", 8333] == services


def test_images_are_pinned_and_web_and_worker_are_of_one_version() -> None:
    images = {container["image"] for _, container in containers(SERVER)}
    assert len(images) == 6
    assert [each for each in images if not re.search(r":\d+\.\d+(\.\d+)*$", each)] == []
    (version,) = {each.split(":")[1] for each in images if each.startswith("langfuse/")}
    assert tuple(map(int, version.split("."))) >= (4, 59, 0)  # the least that the Python SDK v5 takes
    (clickhouse,) = {each.split(":")[1] for each in images if each.startswith("clickhouse/")}
    assert (25, 12) <= tuple(map(int, clickhouse.split(".")))[:2] < (26, 8)


def test_the_helm_values_are_of_the_same_versions_and_use_the_same_secrets() -> None:
    (values,) = documents(LANGFUSE / "helm-values.yaml")
    tags = {each["name"]: each["newTag"] for each in kustomization(LANGFUSE)["images"]}
    assert values["langfuse"]["image"]["tag"] == tags["langfuse/langfuse"]
    assert values["clickhouse"]["cluster"]["image"]["tag"] == tags["clickhouse/clickhouse-server"]
    assert values["clickhouse"]["keeper"]["image"]["tag"] == tags["clickhouse/clickhouse-server"]
    assert values["postgresql"]["image"]["tag"] == tags["postgres"]
    assert values["redis"]["image"]["tag"] == tags["valkey/valkey"]
    assert re.search(r"--version \d+\.\d+\.\d+ ", (LANGFUSE / "helm-values.yaml").read_text(encoding="utf-8"))
    references = list(secret_keys(values))
    assert len(references) == 6
    made = secrets_of("team")
    assert all(key in made[name] for name, key in references)


# Settings and secrets.


def settings() -> dict[str, str]:
    lines = (LANGFUSE / "config/langfuse.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def secret_keys(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if isinstance(value.get("secretKeyRef"), dict):
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        elif isinstance(value.get("secret"), dict) and "items" in value["secret"]:
            yield from ((value["secret"]["secretName"], item["key"]) for item in value["secret"]["items"])
        for each in value.values():
            yield from secret_keys(each)
    elif isinstance(value, list):
        for each in value:
            yield from secret_keys(each)


def run_script(*arguments: str, path: str | None = None, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **({"PATH": path} if path else {}), **more}
    return subprocess.run(
        [shutil.which("sh") or "/bin/sh", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def secrets_of(*namespaces: str, path: str | None = None) -> dict[str, dict[str, str]]:
    done = run_script("--dry-run", *namespaces, path=path)
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert all(each["kind"] == "Secret" for each in made)
    return {each["metadata"]["name"]: each["stringData"] for each in made}


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_the_script_makes_every_secret_that_is_asked_for(workload: Object) -> None:
    made = secrets_of("team")
    assert [each for each in secret_keys(pod_of(workload)) if each[1] not in made.get(each[0], {})] == []


def test_nothing_is_made_that_nobody_reads() -> None:
    asked = {each for workload in WORKLOADS for each in secret_keys(pod_of(workload))}
    made = {(name, key) for name, keys in secrets_of("team").items() for key in keys}
    assert {each for each in made - asked if each[0] != "langfuse-credentials"} == set()


def test_the_server_has_all_the_settings_that_it_asks_for() -> None:
    web = next(container for _, container in containers(SERVER) if container["name"] == "web")
    known = {*settings(), *(each["name"] for each in web["env"])}
    s3 = ("BUCKET", "REGION", "ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "FORCE_PATH_STYLE")
    wanted = [
        "DATABASE_URL",
        "NEXTAUTH_URL",
        "NEXTAUTH_SECRET",
        "SALT",
        "ENCRYPTION_KEY",
        "CLICKHOUSE_URL",
        "CLICKHOUSE_MIGRATION_URL",
        "CLICKHOUSE_USER",
        "CLICKHOUSE_PASSWORD",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_AUTH",
        "LANGFUSE_INIT_ORG_ID",
        "LANGFUSE_INIT_ORG_NAME",
        "LANGFUSE_INIT_PROJECT_ID",
        "LANGFUSE_INIT_PROJECT_NAME",
        "LANGFUSE_INIT_PROJECT_RETENTION",
        "LANGFUSE_INIT_PROJECT_PUBLIC_KEY",
        "LANGFUSE_INIT_PROJECT_SECRET_KEY",
        "LANGFUSE_INIT_USER_EMAIL",
        "LANGFUSE_INIT_USER_NAME",
        "LANGFUSE_INIT_USER_PASSWORD",
    ]
    wanted += [f"LANGFUSE_S3_{use}_UPLOAD_{word}" for use in ("EVENT", "MEDIA") for word in s3]
    assert set(wanted) - known == set()
    assert settings()["CLICKHOUSE_CLUSTER_ENABLED"] == "false"
    assert settings()["TELEMETRY_ENABLED"] == "false"
    assert settings()["AUTH_DISABLE_SIGNUP"] == "true"
    assert settings()["HOSTNAME"] == "0.0.0.0"
    assert int(settings()["LANGFUSE_INIT_PROJECT_RETENTION"]) >= 3


def test_addresses_in_the_settings_are_services_with_that_port() -> None:
    ports = {
        (service["metadata"]["name"], port["port"])
        for service in SERVER
        if service["kind"] == "Service"
        for port in service["spec"]["ports"]
    }
    found = re.findall(r"(?:://|@)(langfuse-[a-z0-9]+):(\d+)", " ".join(settings().values()))
    found.append((settings()["REDIS_HOST"], settings()["REDIS_PORT"]))
    assert len(found) == 5
    assert {(host, int(port)) for host, port in found} <= ports


def test_no_secret_stands_in_the_files() -> None:
    for path in HERE.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\b[0-9a-f]{32,}\b", text), path
            assert not re.search(r"(pk|sk)-lf-[0-9a-f]{4}", text), path
    assert not [each for each in SERVER if each["kind"] == "Secret"]
    words = ("PASSWORD", "SECRET", "SALT", "ENCRYPTION", "AUTH=", "PUBLIC_KEY")
    assert not [name for name in settings() if any(word in name for word in words)]


def test_secrets_are_new_each_time_and_of_the_form_that_langfuse_takes() -> None:
    one, two = secrets_of("team"), secrets_of("team")
    for name, keys in one.items():
        for key, value in keys.items():
            assert value != two[name][key] or key == "LANGFUSE_BASE_URL", f"{name} {key}"
    app, credentials = one["langfuse-app"], one["langfuse-credentials"]
    assert re.fullmatch(r"[0-9a-f]{64}", app["ENCRYPTION_KEY"])
    assert re.fullmatch(r"[0-9a-f]{48}", one["langfuse-clickhouse"]["CLICKHOUSE_PASSWORD"])
    assert re.fullmatch(r"pk-lf-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", app["LANGFUSE_INIT_PROJECT_PUBLIC_KEY"])
    assert credentials == {
        "LANGFUSE_PUBLIC_KEY": app["LANGFUSE_INIT_PROJECT_PUBLIC_KEY"],
        "LANGFUSE_SECRET_KEY": app["LANGFUSE_INIT_PROJECT_SECRET_KEY"],
        "LANGFUSE_BASE_URL": "http://langfuse-web.langfuse.svc.cluster.local:3000",
    }
    (identity,) = json.loads(one["langfuse-s3"]["s3.json"])["identities"]
    assert identity["credentials"] == [
        {
            "accessKey": one["langfuse-s3"]["S3_ACCESS_KEY_ID"],
            "secretKey": one["langfuse-s3"]["S3_SECRET_ACCESS_KEY"],
        }
    ]


def test_without_openssl_the_system_s_random_numbers_do(tmp_path: Path) -> None:
    for name in ("od", "tr", "sed", "cat", "dirname", "printf"):
        (tmp_path / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    assert re.fullmatch(r"[0-9a-f]{64}", secrets_of("team", path=str(tmp_path))["langfuse-app"]["SALT"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "name the namespace"),
        (("--base-url", "langfuse:3000", "team"), "begins with http"),
        (("--base-url", 'http://a"b', "team"), "a quote"),
        (("--unknown", "team"), "--unknown is unknown"),
        (("Team",), "cannot be the name"),
        (("--namespace",), "takes a value"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: tuple[str, ...], word: str) -> None:
    done = run_script("--dry-run", *arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert not done.stdout


# The script against a cluster: a small kubectl that keeps Secrets in a folder.

SMALL_KUBECTL = f"""#!{sys.executable}
import base64, json, os, pathlib, re, sys
import yaml
home = pathlib.Path(os.environ["FAKE_CLUSTER"])
words = sys.argv[1:]
if (home / "down").exists():
    sys.exit("The connection to the server was refused")
place = words[words.index("-n") + 1] if "-n" in words else ""
if "create" in words and "-f" in words:
    made = yaml.safe_load(sys.stdin.read())
    path = home / made["metadata"]["namespace"] / made["metadata"]["name"]
    if path.exists():
        sys.exit("AlreadyExists")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made["stringData"]))
elif "apply" in words or "create" in words:
    (home / "langfuse").mkdir(exist_ok=True)
elif "pvc" in words:
    print((home / "claims").read_text() if (home / "claims").exists() else "", end="")
elif "namespace" in words:
    name = words[words.index("namespace") + 1]
    if (home / name).is_dir():
        print("namespace/" + name)
    elif "--ignore-not-found" not in words:
        sys.exit("NotFound")
elif "secret" in words:
    name = words[words.index("secret") + 1]
    path = home / place / name
    template = re.search(r'index .data "([^"]+)"', words[-1])
    if path.exists():
        print(json.loads(path.read_text())[template[1]] if template else "secret/" + name, end="")
"""


@pytest.fixture
def cluster(tmp_path: Path) -> tuple[Path, str]:
    """The folder of the cluster, and the search path on which its kubectl is found first."""
    home, tools = tmp_path / "cluster", tmp_path / "bin"
    (home / "team").mkdir(parents=True)
    (home / "other").mkdir()
    tools.mkdir()
    (tools / "kubectl").write_text(SMALL_KUBECTL, encoding="utf-8")
    (tools / "kubectl").chmod((tools / "kubectl").stat().st_mode | stat.S_IXUSR)
    return home, f"{tools}{os.pathsep}{os.environ['PATH']}"


def contents(home: Path) -> dict[str, Any]:
    return {
        path.relative_to(home).as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(home.glob("*/*"))
    }


def test_run_twice_it_overwrites_nothing_and_gives_one_more_namespace_the_same_keys(cluster: tuple[Path, str]) -> None:
    home, path = cluster
    done = run_script("team", path=path, FAKE_CLUSTER=str(home))
    assert done.returncode == 0, done.stderr
    first = contents(home)
    assert set(first) == {"team/langfuse-credentials"} | {
        f"langfuse/langfuse-{name}" for name in ("app", "postgres", "clickhouse", "valkey", "s3")
    }
    (home / "claims").write_text("persistentvolumeclaim/data-langfuse-postgres-0\n", encoding="utf-8")
    done = run_script("team", "other", path=path, FAKE_CLUSTER=str(home))
    assert done.returncode == 0, done.stderr
    second = contents(home)
    assert {name: second[name] for name in first} == first
    assert second["other/langfuse-credentials"] == first["team/langfuse-credentials"]
    assert not any(value in done.stdout + done.stderr for keys in first.values() for value in keys.values())


def test_no_new_password_for_data_that_are_there(cluster: tuple[Path, str]) -> None:
    home, path = cluster
    (home / "claims").write_text("persistentvolumeclaim/data-langfuse-postgres-0\n", encoding="utf-8")
    done = run_script("team", path=path, FAKE_CLUSTER=str(home))
    assert done.returncode == 1
    assert "restore it from your backup" in done.stderr
    assert contents(home) == {}


def test_other_keys_are_left_alone_and_told(cluster: tuple[Path, str]) -> None:
    home, path = cluster
    other = {"LANGFUSE_PUBLIC_KEY": "pk-of-another"}
    (home / "team/langfuse-credentials").write_text(json.dumps(other), encoding="utf-8")
    done = run_script("team", path=path, FAKE_CLUSTER=str(home))
    assert done.returncode == 0
    assert "with other keys" in done.stderr
    assert contents(home)["team/langfuse-credentials"] == other


def test_a_cluster_that_does_not_answer_is_no_empty_cluster(cluster: tuple[Path, str]) -> None:
    home, path = cluster
    (home / "down").touch()
    done = run_script("team", path=path, FAKE_CLUSTER=str(home))
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert contents(home) == {}


def test_a_namespace_that_is_not_there_is_told_before_anything_is_made(cluster: tuple[Path, str]) -> None:
    home, path = cluster
    done = run_script("team", "tema", path=path, FAKE_CLUSTER=str(home))
    assert done.returncode == 1
    assert "the namespace tema is not there" in done.stderr
    assert contents(home) == {}


# Stores.


def test_clickhouse_s_logs_end() -> None:
    root = ET.parse(LANGFUSE / "config/clickhouse.xml").getroot()  # noqa: S314 - our own file
    kept = {
        each.tag: each.findtext("ttl") or "" for each in root if each.tag.endswith("_log") and not each.get("remove")
    }
    assert kept.keys() == {"query_log", "part_log", "error_log"}  # Langfuse reads query_log
    assert all(re.fullmatch(r"event_date \+ INTERVAL \d+ DAY DELETE", ttl) for ttl in kept.values())
    removed = {each.tag for each in root if each.get("remove")}
    assert {"trace_log", "text_log", "metric_log", "asynchronous_metric_log", "opentelemetry_span_log"} <= removed


def test_queues_are_never_thrown_away() -> None:
    assert "\nmaxmemory-policy noeviction\n" in (LANGFUSE / "config/valkey.conf").read_text(encoding="utf-8")


@pytest.fixture
def clickhouse_client(tmp_path: Path) -> tuple[Path, str]:
    """A client that writes its queries down and says that every table but events_core is there."""
    log, tools = tmp_path / "queries", tmp_path / "bin"
    tools.mkdir()
    client = tools / "clickhouse-client"
    client.write_text(
        '#!/bin/sh\nfor last; do :; done\necho "$last" >> "$QUERIES"\n'
        "case $last in *events_core) echo 0 ;; EXISTS*) echo 1 ;; esac\n",
        encoding="utf-8",
    )
    client.chmod(0o755)
    return log, f"{tools}{os.pathsep}{os.environ['PATH']}"


def run_retention(days: str, log: Path, path: str) -> "subprocess.CompletedProcess[str]":
    more = {"CLICKHOUSE_USER": "u", "CLICKHOUSE_PASSWORD": "p", "LANGFUSE_INIT_PROJECT_RETENTION": days}
    return subprocess.run(
        ["/bin/sh", LANGFUSE / "config/retention.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **more, "PATH": path, "QUERIES": str(log)},
    )


def test_retention_deletes_by_age_from_the_tables_that_are_there(clickhouse_client: tuple[Path, str]) -> None:
    log, path = clickhouse_client
    done = run_retention(settings()["LANGFUSE_INIT_PROJECT_RETENTION"], log, path)
    assert done.returncode == 0, done.stderr
    assert [each for each in log.read_text(encoding="utf-8").splitlines() if not each.startswith("EXISTS")] == [
        "ALTER TABLE default.events_full DELETE WHERE start_time < now() - INTERVAL 90 DAY",
        "ALTER TABLE default.scores DELETE WHERE timestamp < now() - INTERVAL 90 DAY",
    ]


@pytest.mark.parametrize("days", ["", "0", "2", "-1", "90 days", "1; DROP"])
def test_retention_deletes_nothing_by_a_doubtful_number(days: str, clickhouse_client: tuple[Path, str]) -> None:
    log, path = clickhouse_client
    done = run_retention(days, log, path)
    assert done.returncode == 1
    assert "nothing was deleted" in done.stderr
    assert not log.exists()


# Prometheus.

MONITORS = [*documents(MONITORING / "podmonitor.yaml"), *documents(MONITORING / "servicemonitor.yaml")]
RULES = documents(MONITORING / "rules.yaml")[0]["spec"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD: Object = json.loads((MONITORING / "dashboards/batch-run.json").read_text(encoding="utf-8"))


@needs_crds
@pytest.mark.parametrize("monitor", MONITORS, ids=name_of)
def test_the_operator_takes_what_is_scraped(monitor: Object) -> None:
    assert crds.problems(monitor) == []


def test_engines_of_the_pipeline_are_scraped_by_pod_and_by_service() -> None:
    pods, ray, services = MONITORS
    predictor = inference_service(ServingSpec())["spec"]["predictor"]
    service = metrics_service(ServingSpec())
    (endpoint,) = pods["spec"]["podMetricsEndpoints"]
    (expression,) = pods["spec"]["selector"]["matchExpressions"]
    assert expression == {"key": labels.SERVICE_LABEL, "operator": "Exists"}
    assert endpoint["portNumber"] == predictor["containers"][0]["ports"][0]["containerPort"]
    assert str(endpoint["portNumber"]) == predictor["annotations"]["prometheus.io/port"]
    assert endpoint["path"] == predictor["annotations"]["prometheus.io/path"]
    assert predictor["annotations"]["prometheus.io/scrape"] == "true"
    assert services["spec"]["selector"]["matchExpressions"][0]["key"] in service["metadata"]["labels"]
    (endpoint,) = services["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    name = re.fullmatch(endpoint["relabelings"][0]["regex"], service["metadata"]["name"])
    assert name is not None
    assert name[1] == service["metadata"]["labels"]["app"]
    options = {
        each["metadata"]["labels"]["app"]
        for file in (ROOT / "ray-option").glob("*.yaml")
        for each in documents(file)
        if each["kind"] in ("RayCluster", "LeaderWorkerSet")
    }
    assert set(ray["spec"]["selector"]["matchExpressions"][0]["values"]) == options
    for monitor in MONITORS:
        (endpoint,) = monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]
        assert endpoint["relabelings"][-1]["targetLabel"] == "inferenceservice"


def test_all_carry_the_label_that_the_stack_looks_for() -> None:
    (rules,) = documents(MONITORING / "rules.yaml")
    assert {each["metadata"]["labels"]["release"] for each in (*MONITORS, rules)} == {"kube-prometheus-stack"}


def test_every_alert_says_what_where_and_what_to_do() -> None:
    assert (rules := documents(MONITORING / "rules.yaml")[0])["apiVersion"] == "monitoring.coreos.com/v1"
    assert rules["kind"] == "PrometheusRule"
    assert {each["alert"] for each in ALERTS} >= {"LLMQueueStuck", "LLMEngineDown", "LLMGpusIdle", "LLMKVCacheFull"}
    for each in ALERTS:
        assert set(each) <= {"alert", "expr", "for", "labels", "annotations"}
        assert each["labels"]["severity"] in ("warning", "critical")
        assert set(each["annotations"]) == {"summary", "description"}
        assert re.search("[가-힣]", each["annotations"]["description"])


def engine_metrics() -> dict[str, str]:
    """Every series name of the pinned vLLM, and the family that it belongs to."""
    found = {}
    for line in (ROOT / "tests/data/vllm_metrics.txt").read_text(encoding="utf-8").splitlines():
        name, kind = line.split()
        for series in (f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,):
            found[series] = name
    return found


def metrics_of(expression: str) -> set[str]:
    """The names of the metrics in an expression of PromQL."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*(?!\w)(?!\s*\()", re.sub(r"\b\d[\w.]*", " ", bare))
    return {each for each in names if each not in ("and", "or", "unless", "bool", "offset")}


def panels() -> list[Object]:
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    found = [(each["alert"], each["expr"]) for each in ALERTS]
    found += [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    for variable in DASHBOARD["templating"]["list"]:
        if query := re.fullmatch(r"label_values\((.+), (\w+)\)", variable.get("definition", "")):
            found.append((variable["name"], query[1]))
    return found


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_metric_is_one_that_somebody_exposes(where: str, expression: str) -> None:
    names = metrics_of(expression)
    assert names, where
    assert names - set(engine_metrics()) - set(OURS) - FOREIGN == set(), where


def test_the_reader_of_expressions_sees_a_wrong_name() -> None:
    planted = 'sum by (le) (rate(vllm:no_such_bucket{a="x"}[5m])) / up > 0.5 and on (pod) other{run=~"a|b"}'
    assert metrics_of(planted) == {"vllm:no_such_bucket", "up", "other"}


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_our_own_metrics_are_asked_for_labels_that_they_have(where: str, expression: str) -> None:
    for name, matchers in re.findall(r"\b(llm_batch_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)(?:=|!)", matchers)) <= OURS[name], where
    if all(name in OURS for name in metrics_of(expression)):
        known = set.intersection(*(OURS[name] for name in metrics_of(expression)))
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert set(grouped.split(", ")) <= known, where


def test_the_alert_on_errors_counts_what_the_gate_counts() -> None:
    (alert,) = (each for each in ALERTS if each["alert"] == "LLMBatchErrors")
    found = re.search(r'outcome!~"([a-z_|]+)"', alert["expr"])
    assert found is not None
    assert set(found[1].split("|")) == {str(each) for each in set(Outcome) - ERROR_OUTCOMES}


# Grafana.


def test_the_dashboard_shows_what_a_run_needs_to_be_seen() -> None:
    shown = set().union(*(metrics_of(expression) for _, expression in expressions()))
    assert {engine_metrics().get(each, each) for each in shown} >= {
        *OURS,
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:e2e_request_latency_seconds",
        "vllm:time_to_first_token_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "DCGM_FI_DEV_GPU_UTIL",
    }


def test_panels_have_their_own_place_and_number() -> None:
    everything = DASHBOARD["panels"]
    assert len({each["id"] for each in everything}) == len(everything)
    taken: dict[tuple[int, int], str] = {}
    for each in everything:
        place = each["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert taken.setdefault(cell, each["title"]) == each["title"]


def test_every_panel_asks_the_chosen_source_and_only_known_variables() -> None:
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "namespace", "service", "run"}
    built_in = {"__rate_interval", "__range"}
    for panel in panels():
        assert panel["targets"]
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= variables | built_in


def test_grafana_s_sidecar_finds_the_dashboard() -> None:
    (generator,) = kustomization(MONITORING)["configMapGenerator"]
    assert generator["files"] == ["dashboards/batch-run.json"]
    assert generator["options"]["labels"] == {"grafana_dashboard": "1"}


# promtool, where it is installed.


@needs_promtool
def test_promtool_takes_the_alerts_and_the_dashboard(tmp_path: Path) -> None:
    values = {"__rate_interval": "5m", "__range": "1h", "namespace": "a", "service": "b", "run": "c"}
    asked = [re.sub(r"\$(\w+)", lambda found: values[found[1]], expression) for _, expression in expressions()]
    recorded = [{"record": f"asked:{number}", "expr": each} for number, each in enumerate(asked)]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [*RULES["groups"], {"name": "asked", "rules": recorded}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", rules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


ENGINE = 'namespace="ml", inferenceservice="qwen", pod="qwen-0"'

#: Per case: series of one value a minute, the minute looked at, and the alerts that fire then.
CASES: dict[str, tuple[dict[str, str], int, set[str]]] = {
    "at work": (
        {
            f"up{{{ENGINE}}}": "1x60",
            f"vllm:num_requests_running{{{ENGINE}}}": "8x60",
            f"vllm:num_requests_waiting{{{ENGINE}}}": "100x60",
            f"vllm:generation_tokens_total{{{ENGINE}}}": "0+1000x60",
            f"vllm:prompt_tokens_total{{{ENGINE}}}": "0+500x60",
            f"vllm:kv_cache_usage_perc{{{ENGINE}}}": "0.99x60",
            f"vllm:num_preemptions_total{{{ENGINE}}}": "0x60",
            f'vllm:request_success_total{{{ENGINE}, finished_reason="stop"}}': "0+60x60",
            'llm_batch_in_flight{run="r", shard="0"}': "8x60",
            'llm_batch_rows_total{run="r", shard="0", outcome="ok"}': "0+60x60",
        },
        60,
        set(),
    ),
    "stuck": (
        {
            f"vllm:num_requests_running{{{ENGINE}}}": "8x60",
            f"vllm:num_requests_waiting{{{ENGINE}}}": "100x60",
            f"vllm:generation_tokens_total{{{ENGINE}}}": "1000x60",
            f"vllm:prompt_tokens_total{{{ENGINE}}}": "500x60",
        },
        20,
        {"LLMQueueStuck"},
    ),
    "idle": (
        {
            f"vllm:num_requests_running{{{ENGINE}}}": "8x10 0x50",
            f"vllm:num_requests_waiting{{{ENGINE}}}": "0x60",
        },
        40,
        {"LLMGpusIdle"},
    ),
    "loading": ({f"up{{{ENGINE}}}": "0x60"}, 60, set()),
    "dead": ({f"up{{{ENGINE}}}": "1x10 0x50"}, 20, {"LLMEngineDown"}),
    "full": (
        {
            f"vllm:kv_cache_usage_perc{{{ENGINE}}}": "0.99x60",
            f"vllm:num_preemptions_total{{{ENGINE}}}": "0+60x60",
        },
        50,
        {"LLMKVCacheFull"},
    ),
    "errors": (
        {
            f'vllm:request_success_total{{{ENGINE}, finished_reason="stop"}}': "0+60x60",
            f'vllm:request_success_total{{{ENGINE}, finished_reason="error"}}': "0+60x60",
        },
        30,
        {"LLMEngineErrors"},
    ),
    "a job that died": (
        {
            'llm_batch_in_flight{run="r", shard="0"}': "8x100",
            'llm_batch_rows_total{run="r", shard="0", outcome="ok"}': "500x100",
        },
        90,
        {"LLMBatchStalled"},
    ),
    "bad rows, lost traces": (
        {
            'llm_batch_in_flight{run="r", shard="0"}': "8x60",
            'llm_batch_rows_total{run="r", shard="0", outcome="ok"}': "0+60x60",
            'llm_batch_rows_total{run="r", shard="0", outcome="failed"}': "0+30x60",
            'llm_batch_traces_total{run="r", shard="0", state="dropped"}': "3x60",
        },
        30,
        {"LLMBatchErrors", "LLMTracesDropped"},
    ),
    "a run that is over, its last numbers at the Pushgateway": (
        {
            'llm_batch_in_flight{run="r", shard="0"}': "0x60",
            'llm_batch_rows_total{run="r", shard="0", outcome="ok"}': "0+60x60",
            'llm_batch_rows_total{run="r", shard="0", outcome="failed"}': "0+30x60",
            'llm_batch_traces_total{run="r", shard="0", state="dropped"}': "3x60",
        },
        30,
        set(),
    ),
}


@needs_promtool
@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_when_they_should_and_only_then(case: str, tmp_path: Path) -> None:
    series, minute, firing = CASES[case]
    quiet = [{**rule, "annotations": {}, "labels": {}} for rule in ALERTS]  # else they would stand here once more
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": quiet}]}))
    own = {"LLMEngineDown": {"namespace": "ml", "inferenceservice": "qwen", "pod": "qwen-0"}}
    by_run = {
        "LLMBatchErrors": {"run": "r"},
        "LLMTracesDropped": {"run": "r"},
        "LLMBatchStalled": {"run": "r", "shard": "0"},
    }
    expected = own | by_run
    tests = [
        {
            "eval_time": f"{minute}m",
            "alertname": rule["alert"],
            "exp_alerts": [{"exp_labels": expected.get(rule["alert"], {"namespace": "ml", "inferenceservice": "qwen"})}]
            if rule["alert"] in firing
            else [],
        }
        for rule in ALERTS
    ]
    played = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": tests,
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [played]}))
    done = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Pages.

PAGES = [LANGFUSE, MONITORING]


def page(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)


def shape(text: str) -> dict[str, list[int]]:
    bare = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        "headings": [len(mark) for mark in re.findall(r"^(#+) ", bare, flags=re.MULTILINE)],
        "tables": [found.count("\n") for found in re.findall(r"(?:^\|.*\n)+", bare, flags=re.MULTILINE)],
    }


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: str(folder.name))
def test_both_pages_have_the_same_headings_tables_and_code(folder: Path) -> None:
    english, korean = page(folder, "README.md"), page(folder, "README_ko.md")
    assert shape(english) == shape(korean)
    assert code_blocks(english) == code_blocks(korean)
    assert code_blocks(english)


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: str(folder.name))
def test_files_and_alerts_that_a_page_names_are_there(folder: Path) -> None:
    alerts = {each["alert"] for each in ALERTS}
    for name in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page(folder, "README.md"), flags=re.S | re.M)):
        if re.fullmatch(r"[\w./-]+\.(yaml|env|sh|json)", name):
            assert (folder / name).is_file(), name
        if re.fullmatch(r"LLM[A-Z]\w+", name):
            assert name in alerts


def test_the_page_tells_the_versions_that_are_pinned() -> None:
    tags = [each["newTag"] for each in kustomization(LANGFUSE)["images"]]
    for name, tag in itertools.product(("README.md", "README_ko.md"), tags):
        assert tag in page(LANGFUSE, name)


def test_the_page_names_every_key_of_every_secret() -> None:
    made = secrets_of("team")
    for name in ("README.md", "README_ko.md"):
        text = page(LANGFUSE, name)
        assert all(f"`{secret}`" in text for secret in made)
        assert all(f"`{key}`" in text for secret in ("langfuse-app", "langfuse-credentials") for key in made[secret])


def test_the_page_of_metrics_names_all_of_ours() -> None:
    for name in ("README.md", "README_ko.md"):
        assert set(re.findall(r"`(llm_batch_\w+)`", page(MONITORING, name))) == set(OURS)


@pytest.mark.parametrize(
    "path",
    [each for each in sorted(HERE.rglob("*")) if each.suffix in (".yaml", ".sh", ".env", ".xml", ".conf")],
    ids=lambda path: str(path.relative_to(HERE)),
)
def test_comments_explain_in_both_languages(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search("[가-힣]", text)
    assert re.search("[a-z]{4} [a-z]{4}", text)
