"""What is served on a cluster, as data and as the options of its deployments."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlnext.errors import InputError
from controlnext.runtime.cluster.deployment import replica_options
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.ray_cluster import ReplicaRange, join_cluster, threads_of_replica
from controlnext.runtime.serving.settings import ServerSettings


def spec(**changes: object) -> ClusterSpec:
    return ClusterSpec(["/bundles/toy"], **changes)  # type: ignore[arg-type]


def test_a_spec_is_data_and_keys_are_not_in_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret")
    given = spec(settings=ServerSettings(max_rows=4, memory=2.5), api_keys=str(keys), threads=3)
    assert "secret" not in str(given.fields())
    assert ClusterSpec.read(given.fields()) == given
    assert given.guarded().api_keys == ("secret",)
    assert given.guarded().max_rows == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bundles": ["a"], "replica": 1}, "there is no argument 'replica'; accepted: bundles"),
        ({"bundles": "a"}, "Expected `array`"),
        ({}, "missing required field `bundles`"),
        ({"bundles": ["a"], "settings": {"max_rows": 0}}, "max_rows is 0"),
    ],
)
def test_arguments_that_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClusterSpec.read(fields)


def test_a_gpu_replica_takes_a_gpu_and_sees_that_one_alone() -> None:
    options = replica_options(spec(device="cuda:3"))["ray_actor_options"]
    assert (options["num_gpus"], options["num_cpus"]) == (1, 1)
    assert spec(device="cuda").load().keywords["device"] == "cuda:0"  # type: ignore[attr-defined]
    assert replica_options(spec(threads=4))["ray_actor_options"]["num_cpus"] == 4


@pytest.mark.parametrize("waiting", [0, 3, 64])
def test_one_replica_admits_as_many_as_the_embedded_server(waiting: int) -> None:
    """As many run and wait before another is refused; Serve's queue holds at least as many as run at once."""
    options = replica_options(spec(settings=ServerSettings(max_rows=8, max_waiting=waiting)))
    admitted = options["max_ongoing_requests"] + options["max_queued_requests"]
    assert admitted == {0: 16, 3: 19, 64: 72}[waiting]


def test_replicas_by_number_and_by_load() -> None:
    fixed = spec(replicas=ReplicaRange.parse("3"))
    assert replica_options(fixed)["num_replicas"] == 3
    scaled = replica_options(spec(replicas=ReplicaRange.parse("1:4"), settings=ServerSettings(max_rows=6)))
    assert scaled["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 6,
    }


@pytest.mark.parametrize("text", ["0", "2:1", "a", "1:2:3", "-1", "", "1:", "1.5"])
def test_ranges_of_replicas_that_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=rf"replicas is '?{text}'?; give N, or MIN:MAX") as caught:
        ReplicaRange.parse(text)
    assert caught.value.argument == "replicas"


def test_threads_are_the_share_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnext.runtime.ray_cluster.usable_cores", lambda: 8)
    assert threads_of_replica(None, ReplicaRange(1, 3), local=True) == 2
    assert threads_of_replica(None, ReplicaRange(9, 9), local=True) == 1
    assert threads_of_replica(5, ReplicaRange(1, 3), local=False) == 5
    with pytest.raises(InputError, match="threads is missing") as caught:
        threads_of_replica(None, ReplicaRange(), local=False)
    assert caught.value.argument == "threads"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there(address: str) -> None:
    with pytest.raises(InputError, match=f"there is no Ray cluster at '{address}'") as caught:
        join_cluster(address)
    assert caught.value.argument == "address"
