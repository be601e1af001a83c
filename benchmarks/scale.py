"""Measure the server on a Ray cluster: replicas, nodes, overhead, and what is lost when something dies.

    controlnext-export --model sdxl ... --output build/shapes-fp32
    python benchmarks/scale.py build/shapes-fp32

Starts clusters of this machine and prints a Markdown table. Several nodes are Ray's own stand-ins for
machines (`ray.cluster_utils`). Two cores cannot show what replicas gain that each want all cores: the
machinery is measured with a denoiser that sleeps 0.1 s a step (rows that say so), real engines have one
thread a replica.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import stand_in
from load import Body, ask, body, send, send_in_turn, served
from ray import cloudpickle
from ray.cluster_utils import Cluster
from serving import Measures, print_measures, seconds_of, wrong_images
from stand_in import sleeping_pipeline

from controlnext.runtime.cluster import service
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.ray_cluster import ReplicaRange
from controlnext.runtime.serving.settings import ServerSettings

NODES, CORES = 4, 2
REPLICAS = (1, 2, 4, 8)
STEPS = 20
READY_S = 60.0
QUEUE = 1000


@contextmanager
def nodes(count: int) -> Iterator[Cluster]:
    """Run a cluster of several nodes on this machine within the block."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES})
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=CORES)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def sleeping(bundle: Path, cluster: Cluster, replicas: int) -> Iterator[str]:
    """Serve stand-ins on a cluster, each for one image at a time; yield the address."""
    cloudpickle.register_pickle_by_value(stand_in)
    settings = ServerSettings(max_rows=1, max_waiting=QUEUE)
    spec = ClusterSpec([str(bundle.resolve())], settings, replicas=ReplicaRange(replicas, replicas))
    with service.served(spec, cluster.address, "127.0.0.1", 0, sleeping_pipeline) as address:
        yield address


def measure_stand_in(bundle: Path, side: int, count: int) -> str:
    """Return the throughput of 1, 2, 4 and 8 replicas on 4 nodes relative to as many times that of one."""
    rates = []
    with nodes(NODES) as cluster:
        for replicas in REPLICAS:
            some = max(2, count // 16) * replicas
            requests = [body(i, side, steps=(STEPS, STEPS), guidance_scale=1.0) for i in range(some)]
            with sleeping(bundle, cluster, replicas) as address:
                asyncio.run(send(address, requests[:replicas], 0))
                rates.append(some / seconds_of(partial(send_all, address, requests)))
    found = [rate / rates[0] / replicas for rate, replicas in zip(rates, REPLICAS, strict=True)]
    return ", ".join(f"{value:.2f} for {replicas}" for value, replicas in zip(found, REPLICAS, strict=True))


def send_all(address: str, requests: Sequence[Body]) -> None:
    """Send requests at once; all are answered."""
    assert all(reply.status == 200 for reply in asyncio.run(send(address, requests, 0)))


def measure_replicas(bundle: Path, side: int, count: int) -> str:
    """Return the throughput of two replicas of one thread relative to that of one.

    Each is held to a core of its own: else a single one decodes on the core that the second has to share.
    """
    requests = [body(i, side, steps=(20, 20)) for i in range(count // 2)]
    rates = []
    for replicas in (1, 2):
        options = ("--ray", "--threads", "1", "--queue", str(QUEUE), "--replicas", str(replicas))
        with served(bundle, *options) as (address, process):
            for core, replica in enumerate(actors(process, "ServeReplica:controlnext:Replica")):
                hold_to(replica, core)
            send_all(address, requests[:8])
            rates.append(1 / min(seconds_of(partial(send_all, address, requests)) for _ in range(3)))
    return f"{rates[1] / rates[0]:.2f}"


def measure_overhead(bundle: Path, side: int, count: int) -> str:
    """Return the milliseconds that a short request takes longer than with the embedded server."""
    requests = [body(i, side, steps=(4, 4), guidance_scale=3.0) for i in range(max(count // 10, 2))]

    def median(address: str) -> float:
        return statistics.median(reply.last for reply in asyncio.run(send_in_turn(address, requests)))

    one = ("--threads", "1")
    with served(bundle, *one) as (embedded, _), served(bundle, "--ray", *one) as (cluster, _):
        median(embedded), median(cluster)
        added = [-(median(embedded) - median(cluster)) for _ in range(7)]
    return f"{1e3 * statistics.median(added):.1f} ms ({1e3 * min(added):.1f} to {1e3 * max(added):.1f})"


def measure_deaths(bundle: Path, side: int, count: int) -> str:
    """Kill a replica, then the proxy, under load; return what became of the requests."""
    found = []
    options = ("--ray", "--replicas", "2", "--threads", "1", "--queue", str(QUEUE))
    with served(bundle, *options) as (address, process):
        for title, name in (("a replica", "ServeReplica:controlnext:Replica"), ("the proxy", "ProxyActor")):
            victim = next(one for one in actors(process, name))
            found.append(f"{title}: {under_load(bundle, address, side, count, victim.kill)}")
    return "; ".join(found)


def measure_lost_node(bundle: Path, side: int, count: int) -> str:
    """Take a node away under load; return what became of the requests."""
    with nodes(NODES) as cluster:
        spec = ClusterSpec(
            [str(bundle.resolve())],
            ServerSettings(max_waiting=QUEUE),
            replicas=ReplicaRange(NODES, NODES),
        )
        with service.served(spec, cluster.address, "127.0.0.1", 0) as address:
            gone = cluster.list_all_nodes()[-1]
            return under_load(bundle, address, side, count, lambda: cluster.remove_node(gone, False))


def hold_to(process: psutil.Process, core: int) -> None:
    """Have all threads of a process run on one core."""
    for thread in process.threads():
        with suppress(psutil.NoSuchProcess):
            psutil.Process(thread.id).cpu_affinity([core])


def actors(process: psutil.Process, name: str) -> list[psutil.Process]:
    """Return the processes of the actors of this name in the cluster that a server started."""
    children = process.children(recursive=True)
    return [one for one in children if name in " ".join(one.cmdline())]


def under_load(bundle: Path, address: str, side: int, count: int, strike: Callable[[], object]) -> str:
    """Strike while requests run; return how they ended, and when the server was ready again."""
    requests = [body(i, side, steps=(20, 20)) for i in range(count // 2)]
    replies, ready = asyncio.run(_struck(address, requests, strike))
    pairs = zip(requests, replies, strict=True)
    answered = [(request, content) for request, (status, content) in pairs if status == 200]
    lost = sorted(str(status) for status, _ in replies if status != 200)
    told = ", ".join(f"{lost.count(one)} x {one}" for one in dict.fromkeys(lost)) or "none"
    wrong = wrong_images(bundle, answered, threads=1)
    return f"{len(answered)} of {len(requests)} answered, {wrong} wrong, lost: {told}, ready in {ready:.1f} s"


async def _struck(
    address: str, requests: Sequence[Body], strike: Callable[[], object]
) -> tuple[list[tuple[int | str, bytes]], float]:
    """Return the status and image of each request, and the seconds from the strike until it is ready."""

    async def one(client: httpx.AsyncClient, request: Body) -> tuple[int | str, bytes]:
        try:
            reply = await ask(client, request)
        except httpx.TransportError as error:
            return type(error).__name__, b""
        return reply.status, reply.image

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        tasks = [asyncio.create_task(one(client, request)) for request in requests]
        await asyncio.sleep(1.0)
        await asyncio.to_thread(strike)
        ready = await _until_ready(address)
        return list(await asyncio.gather(*tasks)), ready


async def _until_ready(address: str) -> float:
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=address, timeout=5) as client:
        while (waited := time.perf_counter() - started) < READY_S:
            with suppress(httpx.TransportError):
                if (await client.get("/health/ready")).is_success:
                    return waited
            await asyncio.sleep(0.1)
    raise SystemExit("the service is not ready again")


MEASURES: Measures = {
    "stand-in": ("stand-ins on 4 nodes, throughput relative to linear", measure_stand_in),
    "replicas": ("two replicas of one thread, one = 1", measure_replicas),
    "overhead": ("a request takes longer than with the embedded server, median", measure_overhead),
    "deaths": ("under load something is killed", measure_deaths),
    "node": ("under load one of 4 nodes is removed", measure_lost_node),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    print_measures(__doc__ or "", MEASURES, arguments)


if __name__ == "__main__":
    main()
