"""Checks of the GPUs: what the nodes offer, and whether the service goes into it."""

import json
from collections import Counter

from clients.errors import ApiError, ForbiddenError
from clients.serving.cluster import Object
from clients.serving.evidence import name_of, objects, text, whole
from clients.serving.labels import GPU_PRODUCT
from clients.serving.manifest import GPU
from pipelines.checks.room import Node, Wanted, holders, nodes_of
from pipelines.checks.scene import Scene
from pipelines.checks.verdict import Verdict, failed, may_not, ok, unknown, warning

_HELM = "helm install gpu-operator --namespace gpu-operator --create-namespace"

_PLUGIN = (
    "install NVIDIA's GPU operator, which brings the device plugin and the labels",
    f"{_HELM} --repo https://helm.ngc.nvidia.com/nvidia gpu-operator",
)

_SHOW_NODES = f"kubectl get nodes -L {GPU_PRODUCT}"


def gpu_nodes(scene: Scene) -> Verdict:
    """Which GPUs the nodes offer, and how many of them are free."""
    nodes, free = _look(scene)
    offering = [node for node in nodes if node.gpus]
    silent = [node for node in nodes if node.looks_nvidia and not node.gpus]
    if not offering:
        return _none(scene, nodes, silent)
    products = Counter((node.gpus, node.product or "GPUs without a product label") for node in offering)
    about = ", ".join(f"{count} x {gpus} {product}" for (gpus, product), count in products.most_common(4))
    total = sum(node.gpus for node in offering)
    found = f"{about} (nodes x GPUs); {total} allocatable, {free}"
    if silent:
        return warning(
            f"{found}; {_some(silent)} of NVIDIA's by the labels, but offering none",
            "see the device plugin's pods there",
            f"kubectl describe node {silent[0].name}",
        )
    return ok(found)


def _look(scene: Scene) -> tuple[list[Node], str]:
    """The nodes, and how many GPUs are free in words."""
    try:
        nodes = nodes_of(scene.nodes, scene.pods)
    except ForbiddenError:
        return nodes_of(scene.nodes, []), "how many free this account may not see (it lists no pods elsewhere)"
    away = [node for node in nodes if node.gpus and node.away]
    free = sum(node.free_gpus for node in nodes if not node.away)
    return nodes, f"{free} free" + (f" without {_some(away)} {away[0].away}" if away else "")


def _some(nodes: list[Node]) -> str:
    names = ", ".join(node.name for node in nodes[:3])
    return f"{len(nodes)} nodes ({names}, …)" if len(nodes) > 3 else f"node{'s' * (len(nodes) > 1)} {names}"


def _none(scene: Scene, nodes: list[Node], silent: list[Node]) -> Verdict:
    """Why no node offers a GPU."""
    if not silent:
        found = f"none of {len(nodes)} nodes offers {GPU}"
        if scaler := autoscaler(scene):
            return warning(f"{found}; {scaler} may add some", "see that it knows a group of GPU nodes", _SHOW_NODES)
        return failed(found, "add GPU nodes; where there are some, " + _PLUGIN[0], _PLUGIN[1])
    found = f"{_some(silent)} of NVIDIA's by the labels, but none offers {GPU}"
    try:
        plugins = [each for each in scene.cluster.list("DaemonSet", all_namespaces=True) if _is_plugin(each)]
    except ForbiddenError as error:
        return failed(f"{found} ({may_not(error)}, so the plugin is not seen)", *_PLUGIN)
    if not plugins:
        return failed(f"{found}: no NVIDIA device plugin is installed", *_PLUGIN)
    plugin = plugins[0]
    where, name = text(plugin, "metadata", "namespace"), name_of(plugin)
    ready, wanted = whole(plugin, "status", "numberReady"), whole(plugin, "status", "desiredNumberScheduled")
    return failed(
        f"{found}: its device plugin {where}/{name} has {ready} of {wanted} pods ready",
        "see why",
        f"kubectl -n {where} describe daemonset {name}",
    )


def _is_plugin(daemon: Object) -> bool:
    images = [text(each, "image") for each in objects(daemon, "spec", "template", "spec", "containers")]
    words = " ".join([text(daemon, "metadata", "name"), *images]).lower()
    return "nvidia" in words and "device-plugin" in words


def autoscaler(scene: Scene) -> str:
    """What may add nodes to the cluster; "" when nothing is seen to."""
    try:
        if scene.ask("/apis/karpenter.sh"):
            return "Karpenter"
        status = scene.cluster.get("ConfigMap", "cluster-autoscaler-status", namespace="kube-system")
    except ApiError:
        return ""
    return "the cluster autoscaler" if status else ""


def room(scene: Scene) -> Verdict:
    """Whether all replicas go into the cluster, when it is empty and as it is."""
    wanted = Wanted.by(scene.predictor, scene.spec.replicas)
    nodes = nodes_of(scene.nodes, [])
    if never := _never(scene, wanted, nodes):
        scaler = autoscaler(scene)
        if scaler:
            return warning(f"{never.found}; {scaler} may add what is missing", never.mend, never.command)
        return never
    try:
        pods = scene.pods
    except ForbiddenError as error:
        return unknown(
            f"{_shape(scene)} go into the empty cluster; what is free now cannot be told: {may_not(error)}",
            "ask an administrator to look, or to apply the ClusterRole in kserve/rbac.yaml",
        )
    return _now(scene, wanted, nodes_of(scene.nodes, pods), pods)


def _shape(scene: Scene) -> str:
    replicas, each = scene.spec.replicas, scene.spec.gpus_per_replica
    return f"{replicas} replica{'s' * (replicas > 1)} of {each} GPU{'s' * (each > 1)}"


def _never(scene: Scene, wanted: Wanted, nodes: list[Node]) -> Verdict | None:
    """Why the replicas do not even go into the empty cluster; None when they do."""
    labelled = [node for node in nodes if not node.lacks_labels(wanted)]
    if not labelled:
        return _no_labels(scene, wanted, nodes)
    tainted = [node for node in labelled if node.taint(wanted)]
    usable = [node for node in labelled if node not in tainted]
    places = sum(wanted.places(node.offered) for node in usable)
    if places >= wanted.replicas:
        return None
    taint = next((node.taint(wanted) for node in tainted if wanted.places(node.offered)), None)
    if taint:
        return _tainted(scene, taint, places, [node for node in tainted if wanted.places(node.offered)])
    if places:
        return failed(
            f"{_shape(scene)} are wanted, and the empty cluster has room for {places}",
            f"give --replicas {places} (parameter replicas), or add {wanted.replicas - places} nodes",
            _SHOW_NODES,
        )
    return _too_small(scene, wanted, usable)


def _no_labels(scene: Scene, wanted: Wanted, nodes: list[Node]) -> Verdict:
    products = Counter(node.product for node in nodes if node.gpus)
    selector = ", ".join(f"{key}={value}" for key, value in wanted.selector.items())
    found = f"no node has the label{'s' * (len(wanted.selector) > 1)} {selector}"
    named = [product for product, _ in products.most_common() if product]
    if scene.spec.gpu_product and named and scene.spec.gpu_product not in named:
        return failed(
            f"{found}; found {', '.join(named[:4])}", f"choose --gpu-product {named[0]} (parameter gpu_product)"
        )
    if scene.spec.gpu_product and products and not named:
        return failed(found, 'give --gpu-product "" (any GPU), or have the labels made: ' + _PLUGIN[0], _PLUGIN[1])
    return failed(found, "choose labels that some node has, or label a node", "kubectl get nodes --show-labels")


def _tainted(scene: Scene, taint: Object, places: int, nodes: list[Node]) -> Verdict:
    key, value, effect = (text(taint, field) for field in ("key", "value", "effect"))
    words = f"{key}={value}:{effect}" if value else f"{key}:{effect}"
    toleration = {"key": key, "operator": "Equal", "value": value} if value else {"key": key, "operator": "Exists"}
    given = json.dumps([*scene.spec.tolerations, {**toleration, "effect": effect}])
    return failed(
        f"{_shape(scene)} are wanted, with room for {places}: {_some(nodes)} would do but for the taint {words}",
        "tolerate it (parameter tolerations)",
        f"--tolerations '{given}'",
    )


def _too_small(scene: Scene, wanted: Wanted, nodes: list[Node]) -> Verdict:
    """No node can take even one replica: what it is that they lack."""
    each, most = scene.spec.gpus_per_replica, max((node.gpus for node in nodes), default=0)
    if most < each:
        found = f"a replica takes {each} GPUs of one node, and no usable node offers more than {most}"
        if not most:
            return failed(found, "add GPU nodes, or choose others by --gpu-product", _SHOW_NODES)
        fewer = 1 << (most.bit_length() - 1)
        replicas = max(1, scene.spec.gpus // fewer)
        return failed(found, f"--gpus-per-replica {fewer} --replicas {replicas} (parameters of the same names)")
    best = max(nodes, key=lambda node: (node.gpus >= each, -len(wanted.lacking(node.offered))))
    lacking = [name for name in wanted.lacking(best.offered) if name != GPU]
    about = ", ".join(
        f"{_amount(name, wanted.amounts[name])} {name} (offered {_amount(name, best.offered.get(name, 0))})"
        for name in lacking
    )
    flags = [f"--{name} {_less(name, best.offered.get(name, 0))}" for name in lacking if name in ("cpu", "memory")]
    return failed(
        f"a replica asks for {about}, more than any usable node has, such as {best.name}",
        f"{' '.join(flags)} (parameters of the same names)" if flags else "keep the models in a claim (model_cache)",
    )


def _amount(name: str, value: float) -> str:
    return f"{value / 2**30:.4g}Gi" if name in ("memory", "ephemeral-storage") else f"{value:.4g}"


def _less(name: str, offered: float) -> str:
    """An amount that goes into a node beside what its daemons take."""
    share = 0.9 * offered
    return f"{int(share / 2**30)}Gi" if name == "memory" else str(int(share))


def _now(scene: Scene, wanted: Wanted, nodes: list[Node], pods: list[Object]) -> Verdict:
    """Whether the replicas go into what is free."""
    fitting = [node for node in nodes if not node.lacks_labels(wanted) and not node.taint(wanted)]
    usable = [node for node in fitting if not node.away]
    places = sum(wanted.places(node.free) for node in usable)
    free = sum(node.free_gpus for node in usable)
    if places >= wanted.replicas:
        return ok(f"{_shape(scene)} go in now ({free} usable GPUs free)")
    found = f"{_shape(scene)} are wanted; there is room for {places} now ({free} usable GPUs free)"
    away = [node for node in fitting if node.away and wanted.places(node.offered)]
    if away:
        return warning(f"{found}; {_some(away)} {away[0].away}", "bring it back", _bring_back(away[0]))
    lacking = sorted({name for node in usable for name in wanted.lacking(node.free)}, key=lambda name: name != GPU)
    if lacking and GPU not in lacking:
        return warning(f"{found}; {', '.join(lacking)} is taken by other pods", "ask for less, or free some")
    held = holders(pods)
    who = ", ".join(f"{name} ({gpus})" for name, gpus in held[:3]) + (", …" if len(held) > 3 else "")
    first = f"kubectl -n {held[0][0].partition('/')[0]} get inferenceservices,pods" if held else _SHOW_NODES
    return warning(f"{found}; held by {who or 'pods'}", "a run would wait; end one of these, or ask for fewer", first)


def _bring_back(node: Node) -> str:
    return f"kubectl uncordon {node.name}" if node.away == "cordoned" else f"kubectl describe node {node.name}"
