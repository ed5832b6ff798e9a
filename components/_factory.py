"""How a step becomes a KFP component: one image, pinned packages, and the code it needs."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components._embedding import CODE_VARIABLE, prelude

#: Python of the pods. The laptop may run a newer one; the code is tested on 3.11.
IMAGE = "python:3.11.14-slim-bookworm"

#: What the engine's steps install, pinned as in constraints.txt (a test holds the two together).
ENGINE_PACKAGES = ("httptools==0.9.0", "orjson==3.13.0", "uvloop==0.23.0", "pyarrow==26.0.1", "jsonschema==4.26.0")
RESULTS_PACKAGES = ("orjson==3.13.0", "pyarrow==26.0.1")

#: What the steps install that talk to Kubernetes.
SERVING_PACKAGES = ("lightkube==1.0.1", "lightkube-models==1.37.0.8", "httpx2==2.16.2")


def step(module: str, *, packages: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a component whose pod can import `module` and what that imports of `clients`.

    Args:
        module: The step, such as `clients.steps.gate`.
        packages: What the pod installs, as exact requirements. kfp itself is added by KFP.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        component = dsl.component(function, base_image=IMAGE, packages_to_install=list(packages))
        container = component.component_spec.implementation.container
        source, rest = prelude(module)
        container.command[-1] = source + container.command[-1]
        if rest:
            container.env = {CODE_VARIABLE: rest}
        return component

    return decorate
