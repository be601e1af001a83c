"""Every key of a scheduler configuration has its rule, and a setting that no sampler supports is refused."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from controlnext.bundle.manifest import Setting
from controlnext.errors import CheckpointError
from controlnext.families import get_family
from controlnext.families.samplers import FLOW_SCHEDULERS, NOISE_SCHEDULERS, SAMPLER_SPECS
from controlnext.weights.base_keys import SCHEDULER
from controlnext.weights.scheduler import Scheduler

# LMS's needs a package that the project does not
READABLE = [name for name in NOISE_SCHEDULERS if "dummy" not in getattr(diffusers, name).__module__]


def test_every_parameter_of_a_scheduler_that_is_read_has_a_rule() -> None:
    read = {key for spec in SAMPLER_SPECS.values() for key in spec.options}
    for name in (*READABLE, *FLOW_SCHEDULERS):
        assert set(inspect.signature(getattr(diffusers, name)).parameters) <= read | set(SCHEDULER), name


SCHEDULER_REFUSED = {
    "sdxl": {
        "timestep_type": "continuous",
        "variance_type": "learned_range",
        "predict_epsilon": False,
        "shift": 3.0,
        "invert_sigmas": True,
        "use_lu_lambdas": True,
        "use_beta_sigmas": True,
        "use_flow_sigmas": True,
        "use_dynamic_shifting": True,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "rho": 7.0,
        "prediction_type": "flow_prediction",
        "shift_terminal": 0.1,
        "solver_p": {},
        "final_sigmas_type": "half",
    },
    "svd": {"thresholding": True, "use_flow_sigmas": True, "use_dynamic_shifting": True},
    "sd3": {"use_dynamic_shifting": True, "rescale_betas_zero_snr": True, "use_beta_sigmas": True},
}


def scheduler(family: str, **config: Any) -> Scheduler:
    return Scheduler.of(get_family(family), config, Setting("base", "base"))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, key, value) for family, keys in SCHEDULER_REFUSED.items() for key, value in keys.items()],
)
def test_what_a_scheduler_asks_for_and_the_default_sampler_does_not_do_is_refused(
    family: str, key: str, value: Any
) -> None:
    with pytest.raises(CheckpointError, match=rf"mybase: .*{key}=.*accepted: "):
        scheduler(family, **{key: value}).check(get_family(family), "mybase")


OTHERS = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "KDPM2DiscreteScheduler"]
OTHERS += ["FlowMatchHeunDiscreteScheduler", "Nobodys"]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "svd", "sd3"])
@pytest.mark.parametrize("name", [*OTHERS, *NOISE_SCHEDULERS, *FLOW_SCHEDULERS])
def test_a_scheduler_class_that_no_sampler_reads_is_refused_and_those_that_are_read_named(
    family: str, name: str
) -> None:
    entry = get_family(family)
    made = scheduler(family, _class_name=name)
    if name in entry.schedulers:
        made.check(entry, "mybase")
        return
    with pytest.raises(CheckpointError, match=f"its scheduler is {name}.*accepted: {entry.schedulers[0]}"):
        made.check(entry, "mybase")


def test_harmless_settings_of_published_schedulers_pass(caplog: pytest.LogCaptureFixture) -> None:
    """Of any class that is read, with all its defaults written out."""
    for name in READABLE:
        config = dict(getattr(diffusers, name)().config)
        scheduler("sdxl", **{k: v for k, v in config.items() if k[0] != "_"}).check(get_family("sdxl"), "b")
    config = dict(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    scheduler("sd3", **{k: v for k, v in config.items() if k[0] != "_"}).check(get_family("sd3"), "b")
    assert not caplog.records
