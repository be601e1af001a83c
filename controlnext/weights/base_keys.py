"""The treatment of the keys of a base's scheduler configuration and ``model_index.json``, as data."""

from __future__ import annotations

from collections.abc import Mapping

from controlnext.weights.config_rules import Rules, harmless, keys, only

_SOLVER = harmless("a setting of one solver; the sampler chooses the solver")
SCHEDULER: Rules = {
    **keys(
        _SOLVER,
        "skip_prk_steps",
        "set_alpha_to_one",
        "solver_order",
        "solver_type",
        "solver_p",
        "predict_x0",
        "disable_corrector",
        "lower_order_final",
        "euler_at_final",
        "algorithm_type",
        "lambda_min_clipped",
        "interpolation_type",
        "stochastic_sampling",
    ),
    **keys(
        harmless("limits the predicted sample in DDIM's and DDPM's steps; latents have no such limits"),
        "clip_sample",
        "clip_sample_range",
    ),
    **keys(
        harmless("limits the predicted sample, if thresholding is on"),
        "dynamic_thresholding_ratio",
        "sample_max_value",
    ),
    **keys(
        harmless("of schedules that shift by the image's size or of flow matching, which are not supported"),
        "flow_shift",
        "time_shift_type",
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
    ),
    **keys(
        harmless("the range of Karras and exponential schedules, which this sampler does not have"),
        "sigma_min",
        "sigma_max",
    ),
    "final_sigmas_type": harmless("the end of a list of noise levels, which this sampler does not have"),
    "clip_denoised": harmless("written by old releases, read by no release"),
    "timestep_type": only("discrete", None, why="a denoiser that takes the logarithm of the noise level"),
    "variance_type": only(
        None,
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
        why="a denoiser that predicts variances too",
    ),
    "thresholding": only(False, None, why="dynamic thresholding of the predicted sample"),
    "predict_epsilon": only(True, None, why="a denoiser that does not predict noise"),
    **keys(
        only(None, why="EDM's noise levels, which no sampler supports"),
        "sigma_data",
        "sigma_schedule",
        "rho",
    ),
    **keys(
        harmless("of the samplers lcm and tcd, which read it"),
        "original_inference_steps",
        "timestep_scaling",
        "eta",
    ),
    "shift": only(1, 1.0, None, why="a shifted schedule"),
    "shift_terminal": only(None, why="a schedule that ends at a share of noise"),
    "invert_sigmas": only(False, None, why="a schedule that runs upwards"),
    **keys(
        only(False, None, why="another schedule of noise levels"),
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_flow_sigmas",
        "use_lu_lambdas",
        "use_dynamic_shifting",
        "rescale_betas_zero_snr",
    ),
}
"""Rules for keys that the family's default sampler does not read; other samplers may read them."""

MODEL_INDEX: Rules = {
    "requires_aesthetics_score": only(
        False, None, why="a refiner, whose aesthetic score is not an input of the graph"
    ),
    "requires_safety_checker": harmless("warns if there is no safety checker"),
    "add_watermarker": harmless("a watermark that the stock pipeline adds if a package is installed"),
    "is_distilled": only(False, None, why="a distilled denoiser"),
}
"""Rules for pipeline options that are not checkpoint options of the registry."""

COMPONENTS: Mapping[str, str] = {
    "safety_checker": "blackens images after they are made; the runtime filters nothing",
    "feature_extractor": "prepares images for the safety checker, or, of SVD, as its own file says",
    "image_encoder": "part of IP-Adapters, not of a base",
    "controlnet": "another kind of control; ControlNeXt's takes its place",
    "adapter": "another kind of control; ControlNeXt's takes its place",
    "watermark": "marks images after they are made",
}
"""Components of a base that are left out, each with the reason."""
