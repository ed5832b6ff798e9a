import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import StorageError
from clients.storage import Folder, is_uri, refusals

#: Names of folders that a careless reader takes for something else.
NAMES = ["plain", "a b%20c", "100%", "결과", "a'b\"c", "#x?y=1", "..x", "a:b", "~"]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_the_one_that_was_named(tmp_path: Path, name: str) -> None:
    folder = Folder(str(tmp_path / name))
    folder.write("in/a b%20c.bin", b"data")
    assert (tmp_path / name / "in" / "a b%20c.bin").read_bytes() == b"data"
    assert folder.names() == ["in/a b%20c.bin"]
    assert folder.open("in/a b%20c.bin").readall() == b"data"
    assert folder.local_path == tmp_path / name


@pytest.mark.parametrize("location", ["r", "./r", "r/", "r//", "a/../r", "", "."])
def test_a_relative_folder_is_found_from_where_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    folder = Folder(location)
    folder.write("x/y", b"data")
    assert folder.names() == ["x/y"]
    assert (folder / "x").names() == ["y"]
    assert folder.open("x/y").readall() == b"data"


def test_the_root_of_the_disk_stays_the_root() -> None:
    assert str(Folder("/").local_path) == "/"


def test_a_file_uri_is_a_folder_of_this_machine(tmp_path: Path) -> None:
    location = tmp_path / "a b%20c"
    folder = Folder(location.as_uri() + "/")
    (folder / "in").write("x", b"data")
    assert folder.local_path == location
    assert folder.names() == ["in/x"]
    assert is_uri(location.as_uri())
    assert not is_uri(str(location))


@given(st.lists(st.tuples(st.sampled_from(["a", "b/c", "b/d"]), st.binary(max_size=9)), max_size=8))
def test_the_last_write_under_a_name_counts(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, bytes]]
) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("folder")))
    for name, data in writes:
        folder.write(name, data)
    assert {name: folder.open(name).readall() for name in folder.names()} == dict(writes)


def test_unfinished_writes_are_not_files(tmp_path: Path) -> None:
    (tmp_path / ".x.parquet.0a1b").write_bytes(b"half")
    (tmp_path / ".lock").touch()
    (tmp_path / "x").touch()
    assert Folder(str(tmp_path)).names() == ["x"]


def test_a_folder_that_is_not_there_holds_no_files(tmp_path: Path) -> None:
    assert Folder(str(tmp_path / "nowhere")).names() == []


@pytest.mark.parametrize("data", [b"", b'{"run": "a"', b"[]", b"\x00" * 40])
def test_a_note_that_is_damaged_is_named_with_what_is_done_about_it(tmp_path: Path, data: bytes) -> None:
    folder = Folder(str(tmp_path))
    assert folder.read_note("in/note.json") is None
    folder.write("in/note.json", data)
    with pytest.raises(StorageError) as raised:
        folder.read_note("in/note.json")
    told = str(raised.value)
    assert told.startswith(f"{tmp_path}/in/note.json is damaged: {len(data)} bytes that are no JSON object. ")
    assert "Restore it, or remove it and run again" in told


def test_a_finished_file_is_put_in_place_of_an_older_one(tmp_path: Path) -> None:
    source, folder = tmp_path / "new", Folder(str(tmp_path / "out"))
    folder.write("in/x", b"old")
    source.write_bytes(b"new")
    for _ in range(2):
        folder.put("in/x", source)
        assert (tmp_path / "out/in/x").read_bytes() == b"new"
    assert names_in(tmp_path / "out/in") == ["x"]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second disk")
def test_a_finished_file_is_copied_from_another_disk(tmp_path: Path) -> None:
    source = Path("/dev/shm") / f"kllm-test-{os.getpid()}"
    source.write_bytes(b"data")
    try:
        Folder(str(tmp_path)).put("x", source)
    finally:
        source.unlink()
    assert names_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"data"


def complaint(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(StorageError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    folder = Folder(str(tmp_path / "x"))
    assert f"cannot list {tmp_path}/x: " in complaint(folder.names)
    assert f"cannot write {tmp_path}/x/y: " in complaint(folder.write, "y", b"")
    assert f"cannot write {tmp_path}/x/y: " in complaint(folder.put, "y", tmp_path / "x")
    assert "Check that it can be written and run the same command again." in complaint(folder.write, "y", b"")


def test_a_folder_in_the_place_of_a_file_is_named_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    folder = Folder(str(tmp_path))
    assert f"cannot write {tmp_path}/x: Is a directory" in complaint(folder.write, "x", b"data")
    assert names_in(tmp_path) == ["x"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = complaint(Folder(str(tmp_path)).open, "x")
    assert text.startswith(f"cannot read {tmp_path}/x: ")
    assert text.endswith("Check that it can be read and run the same command again.")


@pytest.mark.parametrize("location", ["nosuch://bucket", "hf://a/b", "file:///a b", "s3://", "://"])
def test_an_address_that_cannot_be_used_is_named(location: str) -> None:
    assert "Give a path, or an address such as s3://bucket/key." in complaint(Folder, location)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_with_the_mend() -> None:
    def fill() -> None:
        with refusals("write", "here"), Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")

    assert complaint(fill) == (
        "cannot write here: No space left on device. Free some space and run the same command again."
    )


def test_a_write_that_fails_leaves_the_older_file_and_nothing_beside_it(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("x", b"old")
    script = (
        "import resource, signal, sys\n"
        "from clients.storage import Folder\n"
        "from clients.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    Folder(sys.argv[1]).write('x', b'n' * 8192)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout == (
        f"cannot write {tmp_path}/x: File too large. Check that it can be written and run the same command again.\n"
    )
    assert names_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_an_object_store_is_used_by_its_address(tmp_path: Path) -> None:
    """`mock://` is Arrow's own store in memory; it lives as long as the folder that was opened."""
    folder = Folder("mock:///bucket/run/")
    inner = folder / "ledger"
    inner._fs.create_dir("bucket/run/ledger/00")  # which a real store does not need
    assert folder.local_path is None
    assert folder.names() == []
    inner.write("00/x", b"data")
    source = tmp_path / "source"
    source.write_bytes(b"results")
    folder.put("results", source)
    assert folder.names() == ["ledger/00/x", "results"]
    assert inner.names() == ["00/x"]
    assert inner.open("00/x").readall() == b"data"
    assert folder.open("results").readall() == b"results"
    assert "cannot read mock:///bucket/run/nowhere: " in complaint(folder.open, "nowhere")
    assert "cannot write mock:///bucket/run/none: No such file" in complaint(folder.put, "none", tmp_path / "none")
    assert folder.names() == ["ledger/00/x", "results"]
    inner.remove("00/x")
    assert folder.names() == ["results"]


def test_a_file_that_is_gone_already_may_be_removed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("in/x", b"data")
    for _ in range(2):
        folder.remove("in/x")
    assert folder.names() == []
    (tmp_path / "y").mkdir()
    assert f"cannot write {tmp_path}/y: " in complaint(folder.remove, "y")


def test_a_folder_behind_a_link_is_read(tmp_path: Path) -> None:
    Folder(str(tmp_path / "there")).write("in/x", b"data")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "there")
    assert Folder(str(tmp_path / "here")).names() == ["link/in/x"]


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may do everything, so a test that runs as root becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with without_privileges():
        assert f"cannot write {tmp_path}/x: Permission denied" in complaint(Folder(str(tmp_path)).write, "x", b"")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    folder, done = Folder(str(tmp_path)), threading.Event()
    folder.write("x", b"0" * 100_000)
    seen: set[int] = set()

    def read() -> None:
        while not done.is_set():
            data = folder.open("x").readall()
            seen.add(len(data) * 10 + len(set(data)))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        folder.write("x", str(number % 10).encode() * 100_000)
    done.set()
    reader.join(10)
    assert seen == {1_000_001}


def test_a_folder_that_can_be_written_proves_it_and_is_as_it_was(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "made"))
    folder.prove()
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("where", ["ftp://host/x", "{file}/x"])
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Folder(where.format(file=tmp_path / "file")).prove()
