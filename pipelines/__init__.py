"""What runs, in what order, with which resources; and the hand-off to people: run, compile.

`from pipelines import as_task` makes a batch pipeline a task of another pipeline; it is loaded, and kfp with it, when
it is asked for. The pipelines themselves are `pipelines.batch_client.batch_client` and so on: a name can be either a
module or what is in it, not both.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.nested import as_task

__all__ = ["as_task"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.nested import as_task

    return as_task
