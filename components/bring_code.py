"""Bring along code that later steps run; Kubeflow has no other place for it than the container of a step."""

from kfp.dsl import Artifact, Output

from components._embedding import use_code
from components._factory import ENGINE, PROMPTS, SERVING, STORES, step


@step(brings=STORES)
def stores_code(code: Output[Artifact]) -> None:
    """Brings along the code that reads and writes object stores.

    Args:
        code: It, for later steps.
    """
    use_code(kept=code)


@step(brings=PROMPTS, there=STORES)
def prompts_code(code: Output[Artifact]) -> None:
    """Brings along the code that reads and checks prompts.

    Args:
        code: It, for later steps.
    """
    use_code(kept=code)


@step(brings=ENGINE, there=(*STORES, *PROMPTS))
def engine_code(code: Output[Artifact]) -> None:
    """Brings along code of the engine that sends the requests.

    Args:
        code: It, for later steps.
    """
    use_code(kept=code)


@step(brings=SERVING, there=(*STORES, *PROMPTS, *ENGINE))
def serving_code(code: Output[Artifact]) -> None:
    """Brings along code that deploys a model and finds out why it does not start.

    Args:
        code: It, for later steps.
    """
    use_code(kept=code)
