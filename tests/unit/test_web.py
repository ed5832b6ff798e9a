"""Files behind web addresses, from a real server that cuts, refuses and forgets ranges."""

import time
from collections.abc import Callable, Iterator

import pytest

from clients.errors import PromptsError
from clients.prompts.check import check_prompts
from clients.prompts.lines import read_lines
from clients.prompts.rows import JobDefaults
from clients.storage import open_input, web
from clients.storage.inputs import at_hand
from tests.servers.files import FileServer, SeenGet

MIB = 1 << 20

#: Some 24 MiB, more than any buffer on the way holds.
LINE = b'{"prompt": "' + b"x" * 1000 + b'"}\n'
BIG = LINE * 24_000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(files={"/p.jsonl": LINE * 3_000, "/empty": b"", "/big.jsonl": BIG}).running() as running:
        yield running


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PATIENCE_S", (0.01, 0.02, 0.04))


def read(address: str) -> bytes:
    with at_hand(address) as location, open_input(location) as stream:
        return stream.read()


def complaint(address: str) -> str:
    with pytest.raises(PromptsError) as caught:
        read(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shard_reads_its_own_part_alone(server: FileServer) -> None:
    checked = check_prompts(f"{server.url}/big.jsonl", JobDefaults())
    assert server.sent() == len(BIG)
    for part, rows in checked.cut(6):
        server.requests.clear()
        assert sum(1 for _ in read_lines(f"{server.url}/big.jsonl", part)) == rows
        most = len(BIG) / 6 + 4 * MIB  # what tells the format, and what was on its way when the last row had come
        assert server.sent() < min(most, len(BIG) / 2)


def test_any_place_is_read_from(server: FileServer) -> None:
    data = server.files["/p.jsonl"]
    with open_input(f"{server.url}/p.jsonl") as stream:
        for at in (5, 2_900_000, 10, 2_000_000, 2_000_100, 2_100_000, len(data) - 3):
            stream.seek(at)
            assert stream.read(50) == data[at : at + 50]
        assert stream.seek(-5, 2) == len(data) - 5
        assert stream.read() == data[-5:]


def test_a_server_without_ranges_is_asked_once(server: FileServer) -> None:
    server.has_ranges = False
    assert read(f"{server.url}/p.jsonl") == server.files["/p.jsonl"]
    assert [request.status for request in server.requests] == [200]


def test_an_empty_file_is_empty(server: FileServer) -> None:
    for server.has_ranges in (True, False):
        assert read(f"{server.url}/empty") == b""


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("fault", ["cut 70000", "short 70000", "reset", "503", "429", "500"])
def test_what_passes_is_waited_for(server: FileServer, fault: str, has_ranges: bool) -> None:
    server.faults, server.has_ranges = lambda seen: fault if seen.turn <= 2 else None, has_ranges
    assert read(f"{server.url}/p.jsonl") == server.files["/p.jsonl"]
    assert len(server.requests) == 3
    if has_ranges and " " in fault:
        starts = [request.start or 0 for request in server.requests]
        assert starts[0] == 0 < starts[1] < starts[2] <= 140_000


def test_a_wish_to_wait_is_granted(server: FileServer) -> None:
    server.faults, server.retry_after = (lambda seen: "503" if seen.turn == 1 else None), "1"
    began = time.monotonic()
    read(f"{server.url}/p.jsonl")
    assert time.monotonic() - began >= 1


def test_a_wish_to_wait_may_be_a_date_and_is_bounded() -> None:
    in_an_hour = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))
    wishes = {"": 0, "7": 7, "3600": 60, "Thu, 01 Jan 2026 00:00:00 GMT": 0, "soon": 0, in_an_hour: 60}
    assert {wish: web._wished_s({"Retry-After": wish}) for wish in wishes} == wishes


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda _: "404", "the server says 404. Check the address."),
        (lambda _: "403", "the server says 403. It needs a signed address that has not expired"),
        (lambda _: "503", "the server says 503. Check the address."),
        (lambda _: "reset", "Check the address and run the same command again."),
        (lambda _: "cut 0", "Check the address and run the same command again."),
    ],
)
def test_what_lasts_is_told_with_the_mend_and_without_the_signature(
    server: FileServer, fault: Callable[[SeenGet], str], message: str
) -> None:
    server.faults = fault
    said = complaint(f"{server.url}/p.jsonl?X-Amz-Signature=s3cr3t")
    assert said.startswith(f"cannot read {server.url}/p.jsonl: ")
    assert message in said
    assert "s3cr3t" not in said
    refused = fault(SeenGet(path="", turn=1, start=None)) in ("404", "403")
    assert (len(server.requests) == 1) == refused, "a refusal is final"


def test_what_lasts_is_told_of_a_server_without_ranges_too(server: FileServer) -> None:
    server.has_ranges = False
    server.faults = lambda _: "short 1000"
    assert "IncompleteRead" in complaint(f"{server.url}/p.jsonl")
    assert len(server.requests) == 4


def test_what_is_just_ahead_is_read_past_instead_of_asked_anew(server: FileServer) -> None:
    file = web._WebFile(f"{server.url}/p.jsonl")
    file.read(1000)
    file.seek(50_000)
    assert file.read(10) == server.files["/p.jsonl"][50_000:50_010]
    file.close()
    assert len(server.requests) == 1


def test_nobody_there_is_told(server: FileServer) -> None:
    address = f"http://127.0.0.1:{_closed_port()}/p.jsonl"
    assert f"cannot read {address}: [Errno 111] Connection refused" in complaint(address)


def test_the_signature_is_sent_and_never_shown(server: FileServer) -> None:
    with at_hand(f"{server.url}/p.jsonl?sig=a%2Fb&x=1") as location:
        assert location == f"{server.url}/p.jsonl"
        with open_input(location) as stream:
            stream.read(10)
    assert server.requests[0].path == "/p.jsonl?sig=a%2Fb&x=1"


def test_an_address_may_hold_what_people_write(server: FileServer) -> None:
    server.files["/my%20prompts%20%EA%B0%80.jsonl"] = b"x"
    assert read(f"{server.url}/my prompts 가.jsonl") == b"x"


def test_a_file_that_changes_under_way_is_not_read_on(server: FileServer) -> None:
    with open_input(f"{server.url}/p.jsonl") as stream:
        stream.read(10)
        server.files["/p.jsonl"] += LINE
        stream.seek(2_900_000)
        with pytest.raises(PromptsError, match="is served otherwise than before"):
            stream.read(10)
        server.has_ranges = False
        with pytest.raises(PromptsError, match="is served otherwise than before"):
            stream.read(10)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://example.com/p.jsonl", "would be read without TLS. Write https://"),
        ("http://8.8.8.8/p.jsonl", "would be read without TLS"),
        ("https:///p.jsonl", "names no host"),
        ("https://me:pass@host/p.jsonl", "carries credentials: take out what stands before '@'"),
    ],
)
def test_an_address_that_is_not_safe_is_refused(address: str, message: str) -> None:
    said = complaint(address)
    assert message in said
    assert "pass" not in said


@pytest.mark.parametrize("address", ["http://files/p", "http://files.ml.svc/p", "http://10.0.0.1/p", "https://a.com/p"])
def test_hosts_of_a_cluster_may_be_asked_without_tls(address: str) -> None:
    web._refuse_open_network(address)


def _closed_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
