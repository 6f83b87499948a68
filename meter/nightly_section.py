"""What a nightly job measures: the section `[nightly]` of the configuration. Everything else of a night follows from it and from a seed."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Tool = Literal["vllm", "guidellm", "aiperf"]

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_AtOnce = Annotated[int, Field(ge=1, le=4096)]
_Rate = Annotated[float, Field(gt=0.0, le=10_000.0, allow_inf_nan=False)]
_Watts = Annotated[float, Field(ge=10.0, le=5000.0, allow_inf_nan=False)]
_Address = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+\S*$")]
_Clock = Annotated[int, Field(ge=100, le=10_000)]


class NightlySection(BaseModel):
    """Keys that decide what is measured go into the configuration's hash; those of `HOUSEKEEPING` don't."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name = Field(
        default="nightly", description="Of the job. Nights of another name are another history, and are never compared."
    )
    runs: Path | None = Field(
        default=None, description="Folder of the runs, one folder a night. By default `runs` in the state directory."
    )
    url: str | None = Field(
        default=None,
        description="Ask this server, on this machine and used by nobody else. Without it one is started and stopped.",
    )
    model: str | None = Field(
        default=None, min_length=1, description="What to serve, or to ask for. By default the bundled small model."
    )
    engine: _Name | None = Field(
        default=None, description="With `url`: name of the server's engine. By default that of `[serve]`."
    )
    profile: Literal["h100", "a100"] = Field(
        default="h100", description="Board to simulate where the machine has no counter."
    )
    options: tuple[str, ...] = Field(default=(), description="More options for the vLLM that is started.")
    suite: str = Field(
        default="core", min_length=1, description="Tasks of the fixed stages: a suite's name, or a file's."
    )
    seed: int = Field(default=0, ge=0, description="Of the order of tasks, and of sampling: the same every night.")
    max_tokens: int = Field(default=256, ge=1, le=100_000, description="Of each answer.")
    prefix_cache: Literal["off", "as-served"] = Field(
        default="off",
        description="`off`: a salt of its own keeps each prompt out of what the cache has. `as-served`: none is sent, for servers that refuse it.",
    )
    batches: tuple[_AtOnce, ...] = Field(
        default=(1, 8, 32), description="A stage each, at so many conversations at once."
    )
    saturation: int = Field(
        default=256,
        ge=0,
        le=4096,
        description="One more stage at so many conversations at once, more than the server runs together; 0: none.",
    )
    rates_per_s: tuple[_Rate, ...] = Field(
        default=(2.0,), description="A stage each, at so many arrivals a second, evenly spaced."
    )
    arrivals: Path | None = Field(
        default=None,
        description="A stage with recorded arrivals: CSV with the columns `arrival_s`, `prompt_tokens`, `output_tokens`. It begins anew where it is shorter than the stage.",
    )
    arms: tuple[str, ...] = Field(
        default=("unconstrained", "entrace", "concise"),
        description="Arms of the comparison, the first is the control; none: no comparison.",
    )
    audit_tasks: int = Field(
        default=42,
        ge=0,
        le=10_000,
        description="Tasks of the comparison's second time, made anew from a fresh seed every night; 0: only the suite.",
    )
    windows: int = Field(
        default=5, ge=3, le=200, description="Of each stage under load. Intervals are from how they differ."
    )
    window_s: float = Field(
        default=30.0, ge=0.1, le=3600.0, allow_inf_nan=False, description="Length of a window, in seconds."
    )
    idle_s: float = Field(
        default=30.0, ge=0.1, le=3600.0, allow_inf_nan=False, description="Of the idle stages, in seconds."
    )
    warm_up_s: float = Field(
        default=300.0,
        ge=0.1,
        le=7200.0,
        allow_inf_nan=False,
        description="So long at most is warmed up until power, temperature and clocks are level.",
    )
    ttft_slo_s: float = Field(
        default=1.0, gt=0.0, le=600.0, allow_inf_nan=False, description="Goodput: time to the first token, at most."
    )
    itl_slo_s: float = Field(
        default=0.1, gt=0.0, le=60.0, allow_inf_nan=False, description="Goodput: mean time between tokens, at most."
    )
    external: tuple[Tool, ...] = Field(
        default=(),
        description="Stages whose load another tool makes, where it is installed: `vllm` (`vllm bench serve`), `guidellm`, `aiperf`.",
    )
    external_requests: int = Field(default=64, ge=1, le=1_000_000, description="That each such tool sends.")
    sweep_max_num_seqs: tuple[_AtOnce, ...] = Field(
        default=(8, 32, 128), description="`--sweep`: the server is started anew with each."
    )
    sweep_power_w: tuple[_Watts, ...] = Field(
        default=(), description="`--sweep`: power limits of each board, where NVML lets this user set them."
    )
    sweep_clock_mhz: tuple[_Clock, ...] = Field(
        default=(), description="`--sweep`: clocks that boards are locked to, where NVML lets this user set them."
    )
    budget_s: float = Field(
        default=14_400.0, gt=0.0, le=604_800.0, allow_inf_nan=False, description="The run ends cleanly after so long."
    )
    budget_j: float | None = Field(
        default=None, gt=0.0, allow_inf_nan=False, description="The run ends cleanly after so many joules."
    )

    textfile: Path | None = Field(
        default=None, description="Folder of node_exporter's textfile collector, for the last night's figures."
    )
    pushgateway: _Address | None = Field(default=None, description="Pushgateway that gets the same.")
    webhook: _Address | None = Field(
        default=None,
        description="Address that the verdict is posted to as JSON. It may hold a secret, and is not told.",
    )


HOUSEKEEPING = frozenset({"runs", "budget_s", "budget_j", "textfile", "pushgateway", "webhook"})
"""Keys that two nights need not have in common."""
