"""Object stores as they are, and as they refuse: against an S3 server on loopback."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.errors import PromptsError, StorageError
from clients.storage import Folder, object_stores, open_input, patience
from clients.storage.object_stores import MINIO_ENDPOINT, StoreAccess, use_access
from tests.servers.s3 import ObjectStore, SeenCall, black_hole, free_port

MIB = 1 << 20


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as running:
        running.make_bucket("bucket")
        yield running


@pytest.fixture(autouse=True)
def access(store: ObjectStore) -> Iterator[None]:
    store.quiet()
    store.calls.clear()
    use_access(StoreAccess(minio_endpoint=store.url, minio_key="me", minio_secret="secret"))
    yield
    use_access(StoreAccess())


@pytest.fixture
def folder(store: ObjectStore, request: pytest.FixtureRequest) -> Folder:
    return Folder(f"minio://bucket/{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that stays in trouble is given up soon."""
    monkeypatch.setattr(object_stores, "_TRIES", 2)
    monkeypatch.setattr(object_stores, "_CONNECT_S", 0.5)
    monkeypatch.setattr(patience, "_PATIENCE_S", (0.01,))
    object_stores._minio.cache_clear()
    yield
    object_stores._minio.cache_clear()


def complaint(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(StorageError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_store_is_a_folder_like_any_other(folder: Folder, tmp_path: Path) -> None:
    assert (folder.names(), folder.folders(), folder.ages_s(0.0), folder.read("x")) == ([], [], {}, None)
    folder.write("a b/결과%20.json", b"data")
    folder.write("a b/empty", b"")
    assert folder.names() == ["a b/empty", "a b/결과%20.json"]
    assert folder.folders() == ["a b"]
    assert folder.read("a b/결과%20.json") == b"data"
    assert folder.read("a b/empty") == b""
    assert all(0 <= age_s < 60 for age_s in (folder / "a b").ages_s(time.time()).values())
    folder.fetch("a b/결과%20.json", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"data"
    for _ in range(2):
        folder.remove("a b/empty")
        assert folder.names() == ["a b/결과%20.json"]
    for _ in range(2):
        (folder / "a b").remove_all()
        assert (folder.names(), folder.folders()) == ([], [])


def test_a_small_file_is_one_write(store: ObjectStore, folder: Folder) -> None:
    folder.write("x", b"x" * MIB)
    assert [(call.method, call.status) for call in store.calls] == [("PUT", 200)]


def test_a_large_file_goes_in_pieces_and_is_there_at_the_end_alone(
    store: ObjectStore, folder: Folder, tmp_path: Path
) -> None:
    data = bytes(range(256)) * (25 * MIB // 256)
    (tmp_path / "large").write_bytes(data)
    seen: list[list[str]] = []

    def look(call: SeenCall) -> None:
        if call.write is not None:
            seen.append(store.keys("bucket", folder.location.rpartition("/")[2]))

    store.before = look
    folder.put("large", tmp_path / "large")
    store.quiet()
    assert len(seen) >= 4
    assert not any(seen)
    folder.fetch("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_a_copy_within_a_store_passes_nothing_through_here(store: ObjectStore, folder: Folder, tmp_path: Path) -> None:
    folder.write("x", b"data")
    store.calls.clear()
    (folder / "inner").copy("y", folder, "x")
    assert [call.method for call in store.calls] == ["PUT"]
    Folder(str(tmp_path)).copy("z", folder, "x")
    assert (tmp_path / "z").read_bytes() == b"data"
    (folder / "inner").copy("back", Folder(str(tmp_path)), "z")
    assert folder.names() == ["inner/back", "inner/y", "x"]


def test_a_part_of_a_file_is_all_that_is_read_of_it(store: ObjectStore, folder: Folder) -> None:
    folder.write("x", bytes(8 * MIB))
    store.calls.clear()
    with open_input(f"{folder.location}/x") as stream:
        stream.seek(3 * MIB)
        stream.read(1000)
    assert sum(call.sent for call in store.calls) <= MIB


@pytest.mark.parametrize("trouble", ["slow", "internal", "reset"])
@pytest.mark.parametrize(
    "size", [pytest.param(1, marks=pytest.mark.slow), 50, pytest.param(5000, marks=pytest.mark.slow)]
)
def test_what_passes_is_waited_for_whatever_is_done(
    store: ObjectStore, folder: Folder, trouble: str, size: int
) -> None:
    """A refusal that is longer than what is read is where Arrow alone gives up."""
    folder.write("x", b"x" * size)
    pq.write_table(pa.table({"x": range(100)}), sink := pa.BufferOutputStream())
    folder.write("table", sink.getvalue())
    asked = len(store.calls)
    store.before = lambda call: trouble if (call.number - asked) % 3 == 1 else None
    assert folder.read("x") == b"x" * size
    with open_input(f"{folder.location}/x") as stream:
        stream.seek(-1, 2)
        assert stream.read() == b"x"
    with folder.open("table") as stream, pq.ParquetFile(stream, pre_buffer=True) as file:
        assert file.read()["x"].to_pylist() == list(range(100))
    folder.write("y", b"y")
    assert folder.names() == ["table", "x", "y"]
    folder.remove("x")
    assert any(call.status != 200 for call in store.calls)


@pytest.mark.parametrize(
    ("trouble", "mend"),
    [
        ("expired", "The credentials have expired: renew them in the Secret and run the same command again."),
        ("unknown", "The store does not know these credentials: mend the Secret and run the same command again."),
        ("denied", "The credentials lack the right: allow them to list, read and write there and run the same"),
    ],
)
def test_a_refusal_is_final_and_told_with_the_mend(store: ObjectStore, folder: Folder, trouble: str, mend: str) -> None:
    store.before = lambda _: trouble
    for act in (folder.names, folder.folders, lambda: folder.ages_s(0.0), lambda: folder.write("x", b"")):
        store.calls.clear()
        assert mend in complaint(act)
        assert len(store.calls) == 1
    heads: list[Callable[[], Any]] = [lambda: folder.read("x"), lambda: folder.open("x"), folder.remove_all]
    for look in heads:
        store.calls.clear()
        said = complaint(look)  # of a HEAD request a store cannot say why
        assert "See in the Secret that the credentials are right, have not expired, and may list, read" in said
        assert len(store.calls) == 1


def test_a_bucket_that_is_not_there_is_told() -> None:
    folder = Folder("minio://no-such-bucket/x")
    assert "Make the bucket, or mend its name and run" in complaint(folder.write, "x", b"")
    assert folder.read("x") is None
    with pytest.raises(PromptsError, match="See that it is there, and mend its name, and run the same"):
        open_input("minio://no-such-bucket/x/p.jsonl")


@pytest.mark.parametrize("trouble", ["slow", "internal", "reset"])
@pytest.mark.usefixtures("few_tries")
def test_trouble_that_lasts_is_told(store: ObjectStore, folder: Folder, trouble: str) -> None:
    folder = Folder(folder.location)
    folder.write("x", b"x")
    store.before = lambda _: trouble
    mend = "Check the store's address" if trouble == "reset" else "The store is overloaded or in trouble: wait a little"
    assert mend in complaint(folder.names)
    assert mend in complaint(folder.write, "x", b"")


@pytest.mark.usefixtures("few_tries")
def test_a_store_that_is_not_there_or_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores.connect, "__kwdefaults__", {"answer_s": 1.0})
    with black_hole() as silent:
        for port in (free_port(), silent):
            use_access(StoreAccess(minio_endpoint=f"http://127.0.0.1:{port}", minio_key="me", minio_secret="secret"))
            began = time.monotonic()
            assert "Check the store's address and that it answers" in complaint(Folder("minio://bucket/x").names)
            assert time.monotonic() - began < 20


def test_a_store_that_says_nothing_is_given_up_in_minutes() -> None:
    assert object_stores._TRIES * object_stores._ANSWER_S <= 90
    assert object_stores._TRIES * object_stores._CONNECT_S <= 60


def test_kubeflow_s_own_store_is_asked_with_its_own_keys_and_others_with_theirs(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "amazon")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    use_access(StoreAccess(minio_endpoint=store.url, minio_key="mine", minio_secret="s", aws_endpoint=store.url))
    Folder("minio://bucket/x").names()
    Folder("s3://bucket/x").names()
    use_access(StoreAccess(minio_endpoint=store.url))
    Folder("minio://bucket/x").names()
    assert [call.client for call in store.calls] == ["mine", "amazon", ""]


def test_an_endpoint_may_be_written_without_its_scheme(store: ObjectStore) -> None:
    use_access(StoreAccess(minio_endpoint=store.url.removeprefix("http://") + "/", minio_key="me", minio_secret="s"))
    assert Folder("minio://bucket/none").names() == []


def test_a_secret_is_not_shown() -> None:
    assert "s3cr3t" not in repr(StoreAccess(minio_secret="s3cr3t"))


def test_kubeflow_s_store_is_where_a_stock_kubeflow_has_it() -> None:
    assert MINIO_ENDPOINT == "http://minio-service.kubeflow:9000"


@pytest.mark.parametrize("address", ["minio://bucket//x", "s3://bucket/a//b"])
def test_an_address_with_an_empty_name_is_refused(address: str) -> None:
    assert "a name between two slashes is empty" in complaint(Folder, address)


def test_a_bucket_at_amazon_is_asked_in_its_region() -> None:
    use_access(StoreAccess(aws_region="eu-west-1"))
    assert object_stores.connect("s3://bucket/x")[0].region == "eu-west-1"


def test_a_bucket_with_an_impossible_name_is_refused() -> None:
    object_stores._s3.cache_clear()
    use_access(StoreAccess())
    with pytest.raises(StorageError, match=r"Mend the bucket's name, or set AWS_REGION"):
        object_stores._s3(StoreAccess(), "no/such", 1.0)


def test_a_copy_within_another_kind_of_store_stays_within_it() -> None:
    """`mock://` is Arrow's own store in memory."""
    folder = Folder("mock:///bucket")
    folder._fs.create_dir("bucket")  # which a real store does not need
    folder.write("x", b"data")
    folder.copy("y", folder, "x")
    assert folder.read("y") == b"data"


def test_a_folder_of_this_machine_is_copied_too(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("x", b"data")
    (folder / "inner").copy("y", folder, "x")
    assert folder.read("inner/y") == b"data"
