"""Parts and their markers in a run's state."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch.parts import Part, Parts
from clients.errors import EndpointError, StorageError
from clients.prompts.plan import LATER, MOST_PODS, Shard, pack, shards_of, specs_of, unpack
from clients.prompts.rows import JobDefaults
from clients.prompts.source import Range

SHARD = Shard(
    shard=0,
    of=1,
    prompts="s3://b/p.jsonl",
    part=Range(),
    rows=10,
    base_url="http://model/v1",
    defaults=JobDefaults(model="m"),
    carried={},
    state="",
    plan="plan",
    concurrency=8,
    run="run-1",
    job="job",
)


def shards(count: int, **changes: Any) -> list[Shard]:
    return [
        dataclasses.replace(SHARD, shard=number, of=count, part=Range(start=100 * number), **changes)
        for number in range(count)
    ]


def keep(parts: Parts, folder: Path, shard: Shard, data: bytes = b"rows", **facts: Any) -> Part:
    path = folder / f"{len(list(folder.iterdir()))}.parquet"  # a new file each time, as a pod has
    path.write_bytes(data)
    return parts.keep(shard, path, **{"missing": 0, "failed": 0, "stop_reason": None, **facts})


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(str(tmp_path / "state"), "job")


def test_a_kept_part_is_found_by_its_shard(parts: Parts, tmp_path: Path) -> None:
    assert parts.find(0) is None
    kept = keep(parts, tmp_path, SHARD, failed=2)
    assert parts.find(0) == kept
    assert parts.state.read(kept.name) == b"rows"
    assert (kept.rows, kept.size, kept.failed, kept.run) == (10, 4, 2, "run-1")


def test_the_last_kept_part_counts_and_the_one_before_stays_readable(parts: Parts, tmp_path: Path) -> None:
    old, new = keep(parts, tmp_path, SHARD, b"old"), keep(parts, tmp_path, SHARD, b"new")
    assert parts.find(0) == new
    assert [parts.state.read(part.name) for part in (old, new)] == [b"old", b"new"]


def test_all_parts_come_in_the_order_they_are_asked_for(parts: Parts, tmp_path: Path) -> None:
    for shard in shards(40)[::2]:
        keep(parts, tmp_path, shard)
    assert [part.shard for part in parts.find_all(range(39, -1, -1))] == list(range(38, -1, -2))


def test_what_was_asked_for_differently_has_parts_of_its_own(parts: Parts, tmp_path: Path) -> None:
    keep(parts, tmp_path, SHARD)
    assert Parts(parts.state.location, "other job").find(0) is None


@pytest.mark.parametrize(
    ("missing", "failed", "stop_reason", "own", "others"),
    [
        (0, 0, None, True, True),
        (0, 3, None, True, False),
        (3, 0, None, False, False),
        (3, 0, "time_limit_s", True, False),
        (3, 3, "time_limit_s", True, False),
    ],
)
def test_what_a_run_left_is_settled_for_itself_and_for_others(
    missing: int, failed: int, stop_reason: str | None, *, own: bool, others: bool
) -> None:
    part = Part(shard=0, name="n", rows=9, missing=missing, failed=failed, size=1, run="r", stop_reason=stop_reason)
    assert part.settled("r") == own
    assert part.settled("another") == others


def test_what_a_shard_left_is_told_to_its_own_run_alone(parts: Parts) -> None:
    parts.leave(SHARD, EndpointError("the model is gone"))
    assert parts.left(0, "run-1") == {"run": "run-1", "kind": "EndpointError", "error": "the model is gone"}
    assert parts.left(0, "run-2") is None
    assert parts.left(1, "run-1") is None


def test_removing_parts_leaves_the_ledger(parts: Parts, tmp_path: Path) -> None:
    parts.state.write("ledger/plan/00000/x.parquet", b"x")
    keep(parts, tmp_path, SHARD)
    parts.leave(SHARD, EndpointError("x"))
    for _ in range(2):
        parts.remove()
        assert parts.state.names() == ["ledger/plan/00000/x.parquet"]


def test_a_state_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StorageError, match="Check that it can be written"):
        keep(Parts(str(tmp_path / "state"), "job"), tmp_path, SHARD)


@given(count=st.integers(1, 30), system_prompt=st.text(max_size=50), long=st.booleans())
def test_shards_travel_unchanged_however_they_are_told(
    tmp_path_factory: pytest.TempPathFactory, count: int, system_prompt: str, *, long: bool
) -> None:
    prompt = system_prompt + "x" * (20_000 if long else 0)
    state = str(tmp_path_factory.mktemp("state"))
    plan = shards(count, state=state, defaults=JobDefaults(model="m", system_prompt=prompt, request_defaults={"n": 1}))
    assert unpack(pack(plan)) == plan
    assert unpack(pack(plan), [count - 1]) == plan[-1:]
    specs = specs_of(plan)
    told = [shard for spec in specs for shard in shards_of(spec)]
    assert sorted(told, key=lambda shard: shard.shard) == plan
    assert sum(map(len, specs)) <= max(16_000, 200 * count)
    if long:
        assert not specs[0].startswith("{")


def test_of_many_shards_each_pod_gets_several(tmp_path: Path) -> None:
    plan = shards(5 * MOST_PODS + 3, state=str(tmp_path))
    pods = [shards_of(spec) for spec in specs_of(plan)]
    assert len(pods) == MOST_PODS
    assert {len(pod) for pod in pods} == {5, 6}
    assert sorted((shard for pod in pods for shard in pod), key=lambda shard: shard.shard) == plan


def test_without_a_place_that_lasts_shards_are_left_for_later() -> None:
    assert specs_of(shards(1)) == [LATER]


def test_outside_a_pipeline_every_shard_is_told_in_full() -> None:
    plan = shards(3, run="", defaults=JobDefaults(model="m", system_prompt="x" * 20_000))
    assert [shard for spec in specs_of(plan) for shard in shards_of(spec)] == plan


def test_a_plan_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the plan is gone"):
        shards_of(f"{tmp_path}/.plan/0a1b2c3d#0")
