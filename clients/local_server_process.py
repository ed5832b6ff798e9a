"""The process that is the embedded server. LocalServer runs this file by its path; it imports nothing of ours.

Argument 1 is a JSON object: `package` (folder that holds xllamacpp), `parent` (process id), `gguf`, `alias`, `slots`,
`context_tokens` (of one slot), `threads`. Standard output gets one line, the server's URL, once the model is loaded;
standard input is the parent's end of a pipe: when it closes, the parent is gone and so is this process.
"""

import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

_LOOK_S = 1.0  # how often to look whether the parent still is the parent


def main() -> NoReturn:
    """Loads the model, tells the URL, serves until the parent goes."""
    settings = json.loads(sys.argv[1])
    _end_with(settings["parent"])
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp writes to standard output too, which would be taken for the URL
    try:
        server = _serve(settings)
    except RuntimeError as error:  # xllamacpp's only word; the cause stands above it in the log
        sys.exit(f"{error}")
    os.write(answer, f"{server.listening_address}\n".encode())
    os.close(answer)
    while os.getppid() == settings["parent"]:
        if select.select([0], [], [], _LOOK_S)[0]:
            break
    # The server's destructor would wait for requests in flight, a minute and more.
    os._exit(0)


def _end_with(parent: int) -> None:
    """Lets the kernel end this process: xllamacpp holds the GIL while it loads, so Python code would come too late."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # both are inherited from the parent, which may have changed them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":  # elsewhere SIGIO is ignored by default, and the loop in main() has to do
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if os.getppid() != parent or select.select([0], [], [], 0)[0]:  # it went before the lines above took effect
        os._exit(0)


def _serve(settings: dict[str, Any]) -> Any:
    sys.path.insert(0, settings["package"])
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.model_alias = {settings["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the kernel chooses one that is free, and nobody can take it in between
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context_tokens"]
    params.kv_unified = False  # each slot its own share: one long row must not starve the others
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.n_gpu_layers = 0
    params.fit_params = False
    params.cache_ram_mib = 0
    params.cache_prompt = False  # else an answer at temperature 0 depends on the requests before it
    params.cont_batching = True
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.cors_origins = ""  # the default lets every web page in this person's browser read the answers
    params.ui = False
    params.offline = True
    params.verbosity = 2  # warnings and errors; 3 adds seven lines to the log for every request
    return xllamacpp.Server(params)  # returns once the model is loaded


if __name__ == "__main__":
    main()
