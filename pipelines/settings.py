"""The settings of a run: built once from the command line, checked, and passed on."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from clients.batch.options import RunOptions
from clients.errors import SettingsError

#: An answer of the embedded model ends here unless the row or the command says otherwise: it writes some 50 tokens/s.
EMBEDDED_MAX_TOKENS = 128

#: Requests in flight: enough to keep the embedded server's four slots filled.
EMBEDDED_CONCURRENCY = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What `python -m pipelines.run` was asked to do.

    Attributes:
        prompts: The input file.
        output: Folder for results, logs and state.
        url: Endpoint; "" starts the embedded server.
        model: Model name; "" takes what the endpoint lists.
        gguf: The embedded server's model; None for the one it brings.
        system_prompt: First message of rows that have no system message.
        request_defaults: Request fields of rows that have no such field.
        template: User message with `{name}` where a column's value goes; "" takes a row's own.
        batch_output: File that gets the answers as OpenAI batch lines; None for no such file.
        shards: Number of shards.
        concurrency: Most requests in flight over all shards; 0 leaves it to the engine.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        fresh: Whether to answer every row anew.
        options: See RunOptions.
    """

    prompts: Path
    output: Path
    url: str = ""
    model: str = ""
    gguf: Path | None = None
    system_prompt: str = ""
    request_defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    template: str = ""
    batch_output: Path | None = None
    shards: int = 4
    concurrency: int = 0
    max_error_rate: float = 0.2
    server_wait_s: int = 30
    fresh: bool = False
    options: RunOptions = dataclasses.field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.url and self.gguf:
            raise SettingsError("--gguf is for the embedded server and --url for another one; give only one of them")
        if self.model and not self.url:
            raise SettingsError(
                "--model chooses among the models of --url; for the embedded server give --gguf instead"
            )
        if self.shards < 1:
            raise SettingsError(f"--shards must be at least 1, found {self.shards}")


def api_key() -> str | None:
    """The endpoint's key, from OPENAI_API_KEY; empty means none. The steps inherit it from this process."""
    return os.environ.get("OPENAI_API_KEY") or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """How a Kubeflow Pipelines API is reached. Secrets come from files and the environment, never from flags.

    Attributes:
        host: Base address, without /apis and without a slash at its end.
        namespace: The person's namespace; "" where none was given.
        token: A bearer token; "" for none.
        token_file: File that holds it, read anew for each request since kubelets rotate it; None for none.
        token_from: Where the token was found, for messages.
        cookie: Session cookie, as `name=value`; "" for none.
        ca_file: Certificates to trust instead of the system's; None for those.
        ui_host: Base address of the pages that people open, where it is another one; "" for none.
    """

    host: str
    namespace: str = ""
    token: str = dataclasses.field(default="", repr=False)
    token_file: Path | None = None
    token_from: str = ""
    cookie: str = dataclasses.field(default="", repr=False)
    ca_file: Path | None = None
    ui_host: str = ""


#: Where Kubeflow's PodDefault `access-ml-pipeline` puts the token of a notebook, and Kubernetes a pod's namespace.
_PROJECTED_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def access(
    host: str = "", *, namespace: str = "", token_file: Path | None = None, ca_file: Path | None = None
) -> Access:
    """Find out how to reach the API: flags first, then the environment, then what a pod in the cluster has.

    The variables are those of Kubeflow's own client where it has some: KF_PIPELINES_ENDPOINT, KF_PIPELINES_UI_ENDPOINT
    and KF_PIPELINES_SA_TOKEN_PATH. KFP_TOKEN and KFP_COOKIE hold a token and a session's cookie.

    Args:
        host: Address of the API; "" reads the environment.
        namespace: The person's; "" finds out.
        token_file: File with a bearer token; None for none.
        ca_file: Certificates to trust instead of the system's; None for those.

    Raises:
        SettingsError: there is no host, or a file that was named does not exist.
    """
    host = (host or os.environ.get("KF_PIPELINES_ENDPOINT", "")).strip().rstrip("/")
    if not host:
        raise SettingsError(
            "--host: which Kubeflow Pipelines API? Give its address, such as --host http://localhost:8080, or set "
            "KF_PIPELINES_ENDPOINT."
        )
    if "://" not in host:
        raise SettingsError(f"--host {host!r} has no scheme. Write http://{host} or https://{host}")
    for flag, path in (("--token-file", token_file), ("--ca-file", ca_file)):
        if path is not None and not path.is_file():
            raise SettingsError(f"{flag} {path}: no such file")
    token, file, origin = _token(token_file)
    return Access(
        host=host.removesuffix("/apis/v2beta1").removesuffix("/apis"),
        namespace=namespace or _own_namespace(),
        token=token,
        token_file=file,
        token_from=origin,
        cookie=os.environ.get("KFP_COOKIE", "").strip(),
        ca_file=ca_file,
        ui_host=os.environ.get("KF_PIPELINES_UI_ENDPOINT", "").strip().rstrip("/"),
    )


def _token(token_file: Path | None) -> tuple[str, Path | None, str]:
    if token_file is not None:
        return "", token_file, f"--token-file {token_file}"
    if value := os.environ.get("KFP_TOKEN", "").strip():
        return value, None, "KFP_TOKEN"
    named = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", "")
    path = Path(named) if named else _PROJECTED_TOKEN
    if named and not path.is_file():
        raise SettingsError(f"KF_PIPELINES_SA_TOKEN_PATH={named}: no such file")
    return ("", path, str(path)) if path.is_file() else ("", None, "")


def _own_namespace() -> str:
    """The namespace of the pod that this runs in; "" outside a cluster."""
    return _OWN_NAMESPACE.read_text(encoding="utf-8").strip() if _OWN_NAMESPACE.is_file() else ""
