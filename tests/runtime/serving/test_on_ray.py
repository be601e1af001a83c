"""What a cluster does when something dies, and that its images are those of the pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from controlnext.runtime import Pipeline
from support.recipe import drawing
from support.serving import USUAL, Site, image_call, pixels_of

ROUTE = "/v1/images/generations"
JOIN = "import sys, ray; ray.init(address=sys.argv[1], logging_level=50)"
REPLICA = "ServeReplica:controlnext:Replica"


def replicas(site: Site) -> list[psutil.Process]:
    """Return the processes of the replicas, oldest first."""
    processes = psutil.Process(site.pid).children(recursive=True)
    found = [one for one in processes if REPLICA in " ".join(one.cmdline())]
    return sorted(found, key=psutil.Process.create_time)


@pytest.mark.export
def test_no_request_is_lost_with_a_replica(on_ray: Site, alone: Pipeline) -> None:
    """Those that it had are given to the other one: the same arguments make the same image."""

    def ask(seed: int) -> tuple[int, object]:
        answer = on_ray.http.post(ROUTE, json=image_call(seed=seed, num_inference_steps=20))
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, seed) for seed in range(24)]
        asked[0].result()
        replicas(on_ray)[0].kill()
        answers = [one.result() for one in asked]
    assert [status for status, _ in answers] == [200] * 24
    options = {**USUAL, "num_inference_steps": 20, "output_type": "pil"}
    for seed, (_, answer) in enumerate(answers):
        wanted = alone("a red circle", control_image=drawing(1, 24, 16), **{**options, "seed": seed}).images
        given = pixels_of(answer["data"][0]["b64_json"])  # type: ignore[index]
        assert np.array_equal(given, np.asarray(wanted[0]))
    assert on_ray.http.get("/health/ready").status_code == 200


def test_the_metrics_of_all_replicas_add_up(on_ray: Site) -> None:
    def count() -> float:
        lines = on_ray.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("controlnext_steps_total"))

    before = count()
    for seed in range(6):
        assert on_ray.http.post(ROUTE, json=image_call(seed=seed)).status_code == 200
    # other tests may use the server meanwhile
    assert count() >= before + 6 * USUAL["num_inference_steps"]


def test_a_cluster_lets_nobody_in_who_has_not_its_token(on_ray: Site) -> None:
    """Ray listens on all addresses, and who may connect may run any code."""
    processes = psutil.Process(on_ray.pid).children(recursive=True)
    head = next(one for one in processes if one.name() == "gcs_server")
    port = next(one.laddr.port for one in head.net_connections() if one.status == psutil.CONN_LISTEN)
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", JOIN, f"127.0.0.1:{port}"]
    done = subprocess.run(command, env=without, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode
    assert "auth" in done.stderr.lower(), done.stderr
