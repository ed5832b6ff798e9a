"""How a step becomes a KFP component: one image, pinned packages, and the code it needs."""

from collections.abc import Callable
from typing import Any

import kfp
from kfp import dsl

from components._bare_source import without_blanks, without_comments
from components._embedding import modules_to_bring, prelude

#: Python of the pods, for every processor that it is built for. The laptop may run a newer one; the code is tested on
#: 3.11.
IMAGE = "python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d"

#: What the steps install: exact versions, as in constraints.txt, and whatever they need in turn, since pip is not asked
#: to look for it (tests hold all of that together). One call of pip instead of KFP's two, no search for what packages
#: need, and no bytecode for modules that are never imported: a pod starts in two thirds of the time.
RESULTS_PACKAGES = ("orjson==3.13.0", "pyarrow==26.0.1")
ENGINE_PACKAGES = (
    *RESULTS_PACKAGES,
    "httptools==0.9.0",
    "uvloop==0.23.0",
    "jsonschema==4.26.0",
    "attrs==26.1.0",
    "jsonschema-specifications==2025.9.1",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "typing_extensions==4.16.0",
)

#: What the steps install that talk to Kubernetes.
SERVING_PACKAGES = (
    "lightkube==1.0.1",
    "lightkube-models==1.37.0.8",
    "msgspec==0.22.0",
    "PyYAML==6.0.3",
    "httpx2==2.16.2",
    "httpcore2==2.16.2",
    "anyio==4.16.0",
    "h11==0.16.0",
    "h2==4.4.1",
    "hpack==4.2.0",
    "hyperframe==6.1.0",
    "idna==3.20",
    "truststore==0.10.5",
    "typing_extensions==4.16.0",
    "wsproto==1.3.2",
)

#: What the steps install that unpack code of ours.
CODE_PACKAGES = ("pyppmd==1.3.1",)

#: Ends each list: what runs a component's function, which needs nothing that kfp needs elsewhere, and how pip works.
_INSTALL = (f"kfp=={kfp.__version__}", "--no-deps", "--no-compile")


# Which step brings which code along: some at the start that do nothing else, and each of the others what it needs
# beside what it gets. A container with its task should stay below 30 kB: of two copies that are so near each other,
# Argo's compression keeps one. check_prompts has little code for that: its parameters may be long.

#: What stores_code, prompts_code and engine_code bring along.
STORES = (
    "clients.batch.options",
    "clients.models",
    "clients.steps.boundary",
    "clients.storage.inputs",
    "clients.tracing.spans",
)
PROMPTS = ("clients.prompts.check", "clients.prompts.start", "clients.tracing.live")
ENGINE = (
    "clients.batch.answers",
    "clients.batch.connection",
    "clients.batch.ledger",
    "clients.batch.pool",
    "clients.results.gather",
)
BROUGHT = (*STORES, *PROMPTS, *ENGINE)
CHECKED = (*BROUGHT, "clients.steps.check_prompts")

#: What serving_code brings along for deploy_service and wait_service.
SERVING = ("clients.serving.diagnose", "clients.serving.lease", "clients.serving.stages", "clients.serving.observe")

#: What plan_shards brings along beside its own.
SENDING = ("clients.steps.run_shard", "clients.steps.finish_shards", "clients.steps.gate")
PLANNED = (*CHECKED, "clients.steps.plan_shards", *SENDING)


def step(
    module: str = "", *, packages: tuple[str, ...] = (), brings: tuple[str, ...] = (), there: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a component whose pod can import `module` and what that imports of `clients`.

    Args:
        module: The step, such as `clients.steps.gate`; "" for a function that needs nothing of ours.
        packages: What the pod installs beside kfp and what unpacks code, as exact requirements, with all that they
            need in turn.
        brings: Further modules that it brings along for later steps.
        there: Modules that earlier steps have brought along, with what those import; the function hands the artifact
            to `use_code`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        modules = (*filter(None, [module]), *brings)
        carried = modules_to_bring(modules, there)
        needed = (*packages, *(CODE_PACKAGES if carried else ()), *_INSTALL)
        component = dsl.component(function, base_image=IMAGE, packages_to_install=[*needed])
        container = component.component_spec.implementation.container
        own = without_blanks(without_comments(container.command[-1]))
        container.command[-1] = f"{prelude(carried)}{own}" if modules else own
        return component

    return decorate
