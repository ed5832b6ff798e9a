"""What there is at an address: the API's version, whose namespace is used, and where people look at it."""

import re
import shlex
from typing import Any, Self

from pipelines.remote.api import AccessError, Api, RemoteError
from pipelines.settings import Access

#: The oldest server that our compiled pipelines were checked with.
_OLDEST = (2, 14)


class Connection:
    """A Kubeflow Pipelines API that was found to be one, and may be used.

    Attributes:
        api: For requests.
        version: The server's version, or "" when it does not tell.
        namespace: Namespace of runs and pipelines; "" on a Kubeflow Pipelines of its own, which has one for all.
    """

    def __init__(self, api: Api, *, version: str, namespace: str) -> None:
        self.api, self.version, self.namespace = api, version, namespace

    @classmethod
    def open(cls, access: Access) -> Self:
        """Ask the server who it is.

        Raises:
            AccessError: it asks for a login, wants a namespace, is too old, or is no such API.
            RemoteError: it does not answer.
        """
        api = Api(access)
        try:
            found = api.get("/apis/v2beta1/healthz")
        except RemoteError as error:
            if error.status != 404:
                raise
            raise AccessError(
                f"there is no Kubeflow Pipelines API of version 2 at {access.host} (HTTP 404). On a whole Kubeflow the "
                f"address ends with /pipeline; a port-forward leads to svc/ml-pipeline-ui or svc/ml-pipeline.",
                status=404,
            ) from error
        version = str(found.get("tag_name") or "")
        _check_version(version, access.host)
        return cls(api, version=version, namespace=_namespace(access, several_users=bool(found.get("multi_user"))))

    def run_url(self, run: str) -> str:
        """Address of a run's page; below /pipeline, Kubeflow shows it within its dashboard."""
        return self._page(f"/#/runs/details/{run}")

    def schedule_url(self, schedule: str) -> str:
        """Address of a recurring run's page."""
        return self._page(f"/#/recurringrun/details/{schedule}")

    def has_pages(self) -> bool:
        """Tell whether pages can be opened there; a forwarded port of the bare API has none."""
        return bool(self.api.access.ui_host) or self.api.is_page("/")

    def flags(self) -> str:
        """The flags that lead here again, to be typed in a shell."""
        access = self.api.access
        words = ["--host", access.host]
        if self.namespace:
            words += ["--namespace", self.namespace]
        if access.token_file is not None and access.token_from.startswith("--token-file"):
            words += ["--token-file", str(access.token_file)]
        if access.ca_file is not None:
            words += ["--ca-file", str(access.ca_file)]
        return shlex.join(words)

    def listed(self, path: str, key: str, **query: Any) -> list[dict[str, Any]]:
        """Every object of a list, page after page.

        Args:
            path: Such as /apis/v2beta1/recurringruns.
            key: Name of the list in the answer.
            query: Further parameters; the namespace is not added by itself.
        """
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self.api.get(path, {**query, "page_size": 100, "page_token": token})
            found += page.get(key) or []
            token = page.get("next_page_token") or ""
            if not token:
                return found

    def experiment(self, name: str) -> str:
        """The id of an experiment by name; made when there is none.

        Raises:
            RemoteError: the server refused.
        """
        path = "/apis/v2beta1/experiments"
        for found in self.listed(path, "experiments", namespace=self.namespace):
            if found.get("display_name") == name and found.get("storage_state") != "ARCHIVED":
                return str(found["experiment_id"])
        body = {"display_name": name} | ({"namespace": self.namespace} if self.namespace else {})
        try:
            return str(self.api.post(path, body)["experiment_id"])
        except RemoteError as error:
            if error.status != 409 and not error.transient:
                raise
        for found in self.listed(path, "experiments", namespace=self.namespace):  # somebody, or this very request
            if found.get("display_name") == name:
                return str(found["experiment_id"])
        return str(self.api.post(path, body)["experiment_id"])

    def _page(self, fragment: str) -> str:
        access = self.api.access
        base = access.ui_host or access.host
        if base.endswith("/pipeline") and not base.endswith("/_/pipeline"):
            base = f"{base.removesuffix('/pipeline')}/_/pipeline"
        if base.endswith("/_/pipeline") and self.namespace:
            return f"{base}/?ns={self.namespace}{fragment[1:]}"
        return f"{base}{fragment}"


def _check_version(version: str, host: str) -> None:
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise AccessError(
            f"{host} is Kubeflow Pipelines {version}; these pipelines need 2.14 or later. Update it in the cluster."
        )


def _namespace(access: Access, *, several_users: bool) -> str:
    if not several_users:
        return ""  # the server would refuse one
    if not access.namespace:
        raise AccessError(f"{access.host} serves several users: whose namespace? Give it with --namespace")
    return access.namespace
