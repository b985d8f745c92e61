"""Another scheduler for a run, by name, with the pipeline's own put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from diffusers import LCMScheduler, TCDScheduler

from t2iedit.errors import InvalidRequest, said

SHORT = {
    "ddim": ("DDIM", {}),
    "ddpm": ("DDPM", {}),
    "deis": ("DEISMultistep", {}),
    "dpmpp_2m": ("DPMSolverMultistep", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": ("DPMSolverSinglestep", {}),
    "euler": ("EulerDiscrete", {}),
    "euler_a": ("EulerAncestralDiscrete", {}),
    "euler_karras": ("EulerDiscrete", {"use_karras_sigmas": True}),
    "heun": ("HeunDiscrete", {}),
    "lcm": ("LCM", {}),
    "lms": ("LMSDiscrete", {}),
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "tcd": ("TCD", {}),
    "unipc": ("UniPCMultistep", {}),
}
"""Names that people use, for diffusers' classes (without "Scheduler") and their settings."""


@contextmanager
def using(pipeline: Any, name: str | None) -> Iterator[None]:
    """While this holds, the pipeline denoises by the scheduler of this name. Raises `InvalidRequest`."""
    if name is None:
        yield
        return
    own = pipeline.scheduler
    pipeline.scheduler = build(own, name)
    try:
        yield
    finally:
        pipeline.scheduler = own


def build(own: Any, name: str) -> Any:
    """The scheduler of this name with the noise levels that the model was trained on. Raises `InvalidRequest`."""
    short, settings = SHORT.get(
        name.lower().replace("-", "_"), (name.removesuffix("Scheduler"), {})
    )
    classes = [*own.compatibles, type(own)]
    if "beta_start" in own.config:
        # Made for distilled models, these run on any noise schedule of the old kind though none lists them.
        classes += [LCMScheduler, TCDScheduler]
    known = {cls.__name__.removesuffix("Scheduler"): cls for cls in classes}
    if short not in known:
        offered = sorted(key for key, (cls, _) in SHORT.items() if cls in known)
        close = get_close_matches(name, [*offered, *known], n=1)
        hint = f'did you mean "{close[0]}"? ' if close else ""
        names = ", ".join(offered or sorted(known))
        raise InvalidRequest(
            f'this model cannot be run with the scheduler "{name}"; {hint}give {names}, or a class of diffusers'
        )
    # A model's own karras setting would otherwise pass from one class to the next.
    kept = {key: value for key, value in own.config.items() if key != "use_karras_sigmas"}
    try:
        return known[short].from_config(kept, **settings)
    except ImportError as error:
        raise InvalidRequest(
            f'the scheduler "{name}" needs another library ({said(error)})'
        ) from error
