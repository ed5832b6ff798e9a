"""What is sent to a Kubeflow Pipelines API, and what its answers mean for a person, on real sockets."""

import contextlib
import itertools
import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.errors import SettingsError
from pipelines.cron import Cron
from pipelines.remote.api import AccessError, Api, RemoteError
from pipelines.remote.connection import Connection
from pipelines.remote.parameters import Package
from pipelines.remote.recurring import Wanted, put
from pipelines.remote.submit import create_run, run_body, spec_of
from pipelines.remote.uploads import uploaded, version_name
from pipelines.settings import Access, access
from tests.servers.kfp_api import KfpApi, Seen, Store

CLIENT = Package.named("batch_client")
ARGUMENTS: dict[str, Any] = {"prompts": "s3://b/p.jsonl", "endpoint_url": "http://vllm.ml/v1", "shards": 2}


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi() as running:
        yield running


def connect(api: KfpApi, **how: Any) -> Connection:
    return Connection.open(Access(host=api.host, **how))


def refusal(api: KfpApi, **how: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        connect(api, **how)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestAsKubeflowsOwnClient:
    """What the server gets is what Kubeflow's own client would send."""

    @pytest.fixture
    def theirs(self, api: KfpApi) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kfp

            yield kfp.Client(host=api.host)

    def test_a_run(self, api: KfpApi, theirs: Any, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_bytes(CLIENT.data)
        experiment = theirs.create_experiment("Default").experiment_id
        how: dict[str, Any] = {"service_account": "runner", "pipeline_root": "s3://b/root"}
        theirs.run_pipeline(experiment, "one", str(tmp_path / "p.yaml"), ARGUMENTS, **how)
        connection = connect(api)
        body = run_body(
            experiment=connection.experiment("Default"), name="one", arguments=ARGUMENTS, package=CLIENT, **how
        )
        create_run(connection, body)
        their_body, our_body = api.sent("POST", "/apis/v2beta1/runs")
        our_body.pop("description")
        assert our_body == their_body
        assert len(api.sent("POST", "/apis/v2beta1/experiments")) == 1

    def test_a_schedule(self, api: KfpApi, theirs: Any) -> None:
        connection = connect(api)
        version = uploaded(connection, CLIENT)
        experiment = connection.experiment("Default")
        cron = Cron.parse("0 2 * * *")
        wanted = Wanted(
            name="n", cron=cron, timezone="UTC", version=version, arguments=ARGUMENTS, experiment=experiment
        )
        put(connection, wanted)
        theirs.create_recurring_run(
            experiment,
            "n",
            cron_expression="0 0 2 * * *",
            max_concurrency=1,
            no_catchup=True,
            params=ARGUMENTS,
            pipeline_id=version["pipeline_id"],
            version_id=version["pipeline_version_id"],
        )
        ours, theirs_sent = api.sent("POST", "/apis/v2beta1/recurringruns")
        ours.pop("description")
        theirs_sent["max_concurrency"] = int(theirs_sent["max_concurrency"])
        assert ours == theirs_sent


class TestAccess:
    def test_a_plain_port_forward(self, api: KfpApi) -> None:
        connection = connect(api)
        assert (connection.version, connection.namespace) == ("2.16.0", "")
        assert connection.run_url("7") == f"{api.host}/#/runs/details/7"

    def test_a_token_a_file_that_is_renewed_and_a_cookie(self, api: KfpApi, tmp_path: Path) -> None:
        api.token, api.cookie, file = "right", "authservice_session=abc", tmp_path / "token"
        connect(api, token="right")
        connect(api, cookie="authservice_session=abc")
        file.write_text("right\n")
        connection = connect(api, token_file=file)
        api.token = "next"
        file.write_text("next\n")
        connection.experiment("Default")
        file.unlink()
        with pytest.raises(SettingsError, match="cannot read the token in"):
            connection.experiment("Default")

    def test_a_gateway_that_wants_a_login(self, api: KfpApi, tmp_path: Path) -> None:
        api.token = "right"
        for login in (302, 200):
            api.login = login
            assert "this host asks for a login: give a token (--token-file FILE, or KFP_TOKEN" in refusal(api)
        api.login = 401
        assert "does not accept the login (HTTP 401)" in refusal(api)
        assert "The token of KFP_TOKEN is expired or not for this host" in refusal(
            api, token="wrong", token_from="KFP_TOKEN"
        )
        assert "The session in KFP_COOKIE has ended" in refusal(api, cookie="a=b")
        assert "right" not in refusal(api, token="wrong")

    def test_several_users(self) -> None:
        with KfpApi(store=Store(multi_user=True), prefix="/pipeline") as api:
            assert "whose namespace? Give it with --namespace" in refusal(api)
            connection = connect(api, namespace="ml")
            base = api.host.removesuffix("/pipeline")
            assert connection.run_url("7") == f"{base}/_/pipeline/?ns=ml#/runs/details/7"
            assert connection.experiment("Default") == connection.experiment("Default")
            with pytest.raises(RemoteError) as caught:
                connect(api, namespace="finance").experiment("Default")
            assert "in namespace finance (HTTP 403)" in str(caught.value)
            assert caught.value.exit_code == 2
            without = KfpApi(port=api.port)
            assert f"--host {without.host}/pipeline" in refusal(without)

    def test_a_server_that_is_too_old_or_another_one(self, api: KfpApi) -> None:
        for version in ("2.5.0", "v1.8.22", "2.13.1"):
            api.version = version
            assert f"is Kubeflow Pipelines {version}; these pipelines need 2.14 or later" in refusal(api)
        for version in ("2.14.0", "2.17.3", "3.0.0", "unknown", "master-abc"):
            api.version = version
            connect(api)
        api.prefix = "/elsewhere"
        other = KfpApi(port=api.port)
        assert "answers with a web page, not with the API" in refusal(other)

    def test_nobody_there(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(RemoteError) as caught:
            Api(Access(host=f"http://localhost:{port}")).get("/", patient=False)
        assert f"kubectl port-forward -n kubeflow svc/ml-pipeline-ui {port}:80" in str(caught.value)
        assert caught.value.transient

    def test_a_certificate_of_ones_own(self, tmp_path: Path) -> None:
        key, certificate = tmp_path / "key.pem", tmp_path / "ca.crt"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with KfpApi(tls=tls) as api:
            connect(api, ca_file=certificate)
            assert "is not trusted" in refusal(api)
            assert "--ca-file ca.crt" in refusal(api)
        with pytest.raises(SettingsError, match="certificates in PEM form"):
            Api(Access(host="https://localhost", ca_file=key))

    def test_https_where_only_http_is_spoken(self, api: KfpApi) -> None:
        with pytest.raises(AccessError) as caught:
            Api(Access(host=f"https://localhost:{api.port}")).get("/", patient=False)
        assert f"speaks no TLS. Write --host http://localhost:{api.port}" in str(caught.value)

    def test_an_address_that_moved_to_https(self, api: KfpApi) -> None:
        api.token, api.login = "right", 301
        assert f"sends everybody to https. Give --host https://localhost:{api.port}" in refusal(api)

    @pytest.mark.parametrize(
        ("environment", "how", "message"),
        [
            ({}, {}, "Give its address, such as --host http://localhost:8080, or set KF_PIPELINES_ENDPOINT"),
            ({}, {"host": "kubeflow.example.com"}, "Write http://kubeflow.example.com or https://"),
            ({}, {"host": "http://x", "token_file": Path("none")}, "--token-file none: no such file"),
            ({}, {"host": "http://x", "ca_file": Path("none")}, "--ca-file none: no such file"),
            ({"KF_PIPELINES_SA_TOKEN_PATH": "none"}, {"host": "http://x"}, "KF_PIPELINES_SA_TOKEN_PATH=none"),
        ],
    )
    def test_settings_that_cannot_be_used(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], how: dict[str, Any], message: str
    ) -> None:
        clean(monkeypatch, environment)
        with pytest.raises(SettingsError) as caught:
            access(**how)
        assert message in str(caught.value)

    def test_where_settings_come_from(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("x")
        clean(monkeypatch, {"KF_PIPELINES_ENDPOINT": "http://kfp/", "KF_PIPELINES_SA_TOKEN_PATH": str(token)})
        found = access()
        assert (found.host, found.token_file) == ("http://kfp", token)
        monkeypatch.setenv("KFP_TOKEN", "secret")
        monkeypatch.setenv("KFP_COOKIE", "session=secret")
        found = access("http://other/apis/v2beta1/")
        assert (found.host, found.token, found.token_file, found.token_from) == (
            "http://other",
            "secret",
            None,
            "KFP_TOKEN",
        )
        assert "secret" not in repr(found)
        assert access(token_file=token).token == ""


def clean(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KFP_TOKEN", "KFP_COOKIE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


class TestFaults:
    @pytest.mark.parametrize("fault", [429, 500, 503, "reset"])
    def test_passing_faults_are_survived(self, api: KfpApi, fault: int | str) -> None:
        turns = itertools.count()
        api.faults = lambda _: fault if next(turns) < 1 else None
        connect(api).experiment("Default")
        assert len(api.store.experiments) == 1

    @pytest.mark.parametrize("fault", ["lost", "reset", 503])
    def test_a_run_is_created_once_though_the_answer_was_lost(self, api: KfpApi, fault: int | str) -> None:
        connection, turns = connect(api), itertools.count()
        body = run_body(experiment=connection.experiment("Default"), name="one", arguments=ARGUMENTS, package=CLIENT)

        def once(seen: Seen) -> int | str | None:
            return fault if seen.method == "POST" and next(turns) == 0 else None

        api.faults = once
        run = create_run(connection, body)
        assert list(api.store.runs) == [run]

    def test_what_the_server_refuses_is_said_in_its_words(self, api: KfpApi) -> None:
        connection = connect(api)
        body = run_body(experiment=connection.experiment("D"), name="one", arguments={}, package=CLIENT)
        with pytest.raises(RemoteError, match=r"\(HTTP 400\): Invalid input error: parameter endpoint_url is not opti"):
            create_run(connection, body)
        assert len(api.sent("POST", "/apis/v2beta1/runs")) == 1


class TestUploads:
    def test_the_same_content_is_uploaded_once_and_another_is_another_version(self, api: KfpApi) -> None:
        connection = connect(api)
        first = uploaded(connection, CLIENT)
        assert uploaded(connection, CLIENT) == first
        other = Package("batch_client", CLIENT.data + b"\n")
        second = uploaded(connection, other)
        assert second["pipeline_id"] == first["pipeline_id"]
        assert {each["name"] for each in api.store.versions.values()} == {version_name(CLIENT), version_name(other)}
        (pipeline,) = api.store.pipelines.values()
        assert pipeline["display_name"] == "kubeflow-llm-inference batch_client"
        uploaded(connection, Package.named("batch_inference"))
        assert len(api.store.pipelines) == 2

    def test_an_upload_whose_answer_was_lost_is_found(self, api: KfpApi) -> None:
        connection = connect(api)
        lost = {"/apis/v2beta1/pipelines", "/apis/v2beta1/pipelines/upload_version"}

        def once(seen: Seen) -> str | None:
            if seen.method == "POST" and seen.path in lost:
                lost.discard(seen.path)
                return "lost"
            return None

        api.faults = once
        uploaded(connection, CLIENT)
        assert (len(api.store.pipelines), len(api.store.versions), lost) == (1, 1, set())

    def test_long_lists_are_read_to_their_end(self, api: KfpApi) -> None:
        for number in range(230):
            api.store.create_experiment({"display_name": f"e{number}"})
        connection = connect(api)
        assert len(connection.listed("/apis/v2beta1/experiments", "experiments")) == 230
        connection.experiment("e229")
        assert len(api.store.experiments) == 230

    def test_the_spec_of_a_run_by_reference_is_that_of_its_version(self, api: KfpApi) -> None:
        connection = connect(api)
        reference = uploaded(connection, CLIENT)
        assert spec_of(connection, {"pipeline_version_reference": reference}) == CLIENT.spec
        assert spec_of(connection, {}) == {}


def wanted(connection: Connection, **how: Any) -> Wanted:
    given: dict[str, Any] = {"cron": Cron.parse("0 2 * * *"), "arguments": ARGUMENTS, "timezone": "UTC"} | how
    version = uploaded(connection, CLIENT)
    return Wanted(name="nightly", version=version, experiment=connection.experiment("Default"), **given)


class TestSchedules:
    def test_the_same_again_changes_nothing(self, api: KfpApi) -> None:
        connection = connect(api)
        assert put(connection, wanted(connection))[1] == "created"
        before = dict(api.store.recurring)
        assert put(connection, wanted(connection))[1] == "unchanged"
        assert api.store.recurring == before
        (made,) = before.values()
        assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
        assert made["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}

    @pytest.mark.parametrize("stops_at", range(1, 10))
    @pytest.mark.parametrize("how", ["reset", "lost", 400])
    def test_an_update_may_stop_anywhere(self, api: KfpApi, stops_at: int, how: int | str) -> None:
        """Whatever request is the last one that gets through: one schedule at least, one enabled at most."""
        connection = connect(api)
        put(connection, wanted(connection))
        target = wanted(connection, cron=Cron.parse("30 4 * * *"))
        turns = itertools.count(1)

        def stop(_: Seen) -> int | str | None:
            assert api.store.recurring
            assert len(api.store.enabled) <= 1
            turn = next(turns)
            if how == "lost":
                return "lost" if turn == stops_at else ("reset" if turn > stops_at else None)
            return how if turn >= stops_at else None

        api.faults = stop
        impatient = Connection(_Impatient(connection.api.access), version="", namespace="")
        with contextlib.suppress(RemoteError):
            put(impatient, target)
        assert api.store.recurring
        assert len(api.store.enabled) <= 1
        api.faults = None
        found, _ = put(connection, target)
        assert api.store.enabled == list(api.store.recurring) == [found.id]
        assert found.cron == target.cron

    def test_what_is_paused_stays_paused_when_it_is_changed(self, api: KfpApi) -> None:
        connection = connect(api)
        put(connection, wanted(connection), paused=True)
        assert api.store.enabled == []
        found, done = put(connection, wanted(connection, cron=Cron.parse("@daily")))
        assert (done, found.enabled, api.store.enabled) == ("updated", False, [])

    def test_a_change_that_cannot_be_enabled_leaves_the_old_one_firing(self, api: KfpApi) -> None:
        connection = connect(api)
        old, _ = put(connection, wanted(connection))
        target = wanted(connection, cron=Cron.parse("@daily"))
        refused = list[str]()

        def refuse(seen: Seen) -> int | None:
            if seen.path.endswith(":enable") and old.id not in seen.path:
                refused.append(seen.path)
                return 400
            return None

        api.faults = refuse
        with pytest.raises(RemoteError, match="is as it was; create it again"):
            put(connection, target)
        assert refused
        assert api.store.enabled == [old.id]

    def test_a_recurring_run_of_somebody_else_is_left_alone(self, api: KfpApi) -> None:
        connection = connect(api)
        target = wanted(connection)
        body = {"display_name": "nightly", "experiment_id": target.experiment, "max_concurrency": 1, "mode": "ENABLE"}
        trigger = {"cron_schedule": {"cron": "0 0 2 * * *"}}
        config = {"runtime_config": {"parameters": ARGUMENTS}}
        api.store.create_recurring(
            {**body, **config, "trigger": trigger, "pipeline_version_reference": dict(target.version)}
        )
        with pytest.raises(SettingsError, match="this command did not make"):
            put(connection, target)
        assert len(api.store.recurring) == 1


class _Impatient(Api):
    """Does not wait between two tries, so that many ways to fail can be tried."""

    def _repeated(self, method: str, path: str, query: Any, body: Any, pauses: Any) -> dict[str, Any]:
        return super()._repeated(method, path, query, body, ())
