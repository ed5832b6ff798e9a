"""Everything that happens at run time, in a pod or on a laptop. Nothing here imports kfp.

`from clients import run_batch, read_results` is for Python and notebooks, see `clients.api`. It is loaded when somebody
asks for it: this file goes into every pod, what it offers does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.api import BatchFailedError, BatchResult, read_results, run_batch

__all__ = ["BatchFailedError", "BatchResult", "read_results", "run_batch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # by its name: an import statement would have the code of a pod carry all of it

    return getattr(importlib.import_module("clients.api"), name)
