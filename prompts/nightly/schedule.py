"""Which stages a night has, in which order, from its configuration alone; and what of the configuration two nights must have in common."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from etameter.nightly_section import HOUSEKEEPING, NightlySection, Tool

from .rows import Stage

IDLE_BEFORE: Final = "idle-before"
IDLE_AFTER: Final = "idle-after"
WARM_UP: Final = "warm-up"
SATURATION: Final = "saturation"
RECORDED: Final = "recorded"
AB_FIXED: Final = "ab-fixed"
AB_AUDIT: Final = "ab-audit"

_SECRET_OPTIONS: Final = frozenset({"--api-key", "--hf-token"})
_HIDDEN: Final = "…"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run the server and its boards, of a sweep. None leaves it as it is."""

    max_num_seqs: int | None = None
    power_w: float | None = None
    clock_mhz: int | None = None

    @property
    def name(self) -> str:
        """Of its stage."""
        told = (("seqs", self.max_num_seqs), ("cap", self.power_w), ("clock", self.clock_mhz))
        return "sweep-" + "-".join(f"{word}-{value:g}" for word, value in told if value is not None)

    @property
    def restarts(self) -> bool:
        """Whether the server has to be started anew for it."""
        return self.max_num_seqs is not None


@dataclass(frozen=True, slots=True)
class Stint:
    """A stage that is to be run."""

    name: str
    kind: Stage
    at_once: int | None = None
    """Conversations that are held all the time."""
    rate_per_s: float | None = None
    tool: Tool | None = None
    setting: Setting | None = None
    """Of a sweep's stage."""


def stints(section: NightlySection) -> tuple[Stint, ...]:
    """In the order in which they are run. The warm-up is not among them: every session has its own, before its first load."""
    load = [Stint(f"batch-{at_once}", "concurrency", at_once=at_once) for at_once in dict.fromkeys(section.batches)]
    if section.saturation:
        load.append(Stint(SATURATION, "saturation", at_once=section.saturation))
    load += [Stint(f"rate-{rate:g}", "rate", rate_per_s=rate) for rate in dict.fromkeys(section.rates_per_s)]
    if section.arrivals is not None:
        load.append(Stint(RECORDED, "recorded"))
    load += [Stint(f"external-{tool}", "external", tool=tool) for tool in dict.fromkeys(section.external)]
    if section.arms:
        load.append(Stint(AB_FIXED, "ab"))
        load += [Stint(AB_AUDIT, "ab")] if section.audit_tasks else []
    return (Stint(IDLE_BEFORE, "idle"), *load, Stint(IDLE_AFTER, "idle"))


def settings(section: NightlySection) -> tuple[Setting, ...]:
    """Of a sweep: one thing at a time, so that n + m settings and not n · m are run."""
    return (
        *(Setting(max_num_seqs=value) for value in dict.fromkeys(section.sweep_max_num_seqs)),
        *(Setting(power_w=value) for value in dict.fromkeys(section.sweep_power_w)),
        *(Setting(clock_mhz=value) for value in dict.fromkeys(section.sweep_clock_mhz)),
    )


def stint_of(setting: Setting, section: NightlySection) -> Stint:
    """Its stage. As many conversations are held as fill the largest setting."""
    at_once = max((section.saturation, *section.batches, *section.sweep_max_num_seqs), default=1)
    return Stint(setting.name, "sweep", at_once=at_once, setting=setting)


def seconds(section: NightlySection, *, sweep: bool) -> float:
    """What the stages take whose length is known beforehand; comparisons and other tools' load come on top."""
    loaded = sum(stint.kind in {"concurrency", "saturation", "rate", "recorded"} for stint in stints(section))
    loaded += len(settings(section)) if sweep else 0
    return loaded * (section.windows + 1) * section.window_s + 2 * section.idle_s


def told_of(section: NightlySection) -> dict[str, Any]:
    """The configuration as JSON has it, without what may be secret."""
    told = section.model_dump(mode="json", exclude={"webhook", "pushgateway"})
    return {**told, "url": _without_user(section.url), "options": list(_without_secrets(section.options))}


def _without_user(url: str | None) -> str | None:
    """As in http://user:password@host."""
    if url is None or "@" not in url:
        return url
    scheme, _, rest = url.partition("://")
    address, slash, path = rest.partition("/")
    return f"{scheme}://{address.rpartition('@')[2]}{slash}{path}"


def _without_secrets(options: Sequence[str]) -> Iterator[str]:
    """As vLLM takes them: `--option value`, `--option=value`, and either with underscores."""
    hidden = False
    for option in options:
        name, _, value = option.partition("=")
        secret = name.replace("_", "-") in _SECRET_OPTIONS
        yield _HIDDEN if hidden and not option.startswith("--") else f"{name}={_HIDDEN}" if secret and value else option
        hidden = secret and not value


def config_hash(section: NightlySection, files: Sequence[bytes] = ()) -> str:
    """Of all that decides what is measured; `files` are what the configuration names."""
    told = {key: value for key, value in told_of(section).items() if key not in HOUSEKEEPING}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode())
    for content in files:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
