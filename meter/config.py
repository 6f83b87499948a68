"""What a user may set, and where files live.

A setting comes from the command line, else from the environment (``ETAMETER_SECTION__KEY``), else from ``etameter.toml``,
else from its default here. An unknown section or key is an error wherever it stands. Keys carry their unit.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from .budget_section import BudgetSection
from .errors import ConfigError
from .nightly_section import NightlySection

CONFIG_FILE = Path("etameter.toml")
ENV_PREFIX = "ETAMETER_"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
"""Safe as a label value and as a part of a file's name."""

Overrides = Mapping[str, Mapping[str, object]]
"""What the command line says: section → key → value; None means that the option was not given."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeterSection(_Section):
    host: str = Field(default="127.0.0.1", min_length=1, description="Address that the meter's HTTP server listens on.")
    port: int = Field(
        default=9430, ge=0, le=65535, description="Port of the meter's HTTP server; 0 takes any free one."
    )
    poll_ms: float = Field(
        default=5.0,
        ge=0.5,
        le=1000.0,
        description="Milliseconds between two reads of an energy counter; only changes are kept.",
    )
    ledger: Path | None = Field(
        default=None, description="File of the durable ledger (SQLite). By default `ledger.db` in the state directory."
    )
    ledger_days: int = Field(
        default=7,
        ge=1,
        le=36_500,
        description="`etameter archive` moves whole days (UTC) that lie at least so many days back out of the ledger.",
    )
    archive: str | None = Field(
        default=None,
        min_length=1,
        description="Where `etameter archive` moves them: a folder, or an object store's address such as `s3://bucket/etameter/HOST`, one for each ledger. By default `archive` beside the ledger.",
    )
    archive_days: int | None = Field(
        default=None, ge=1, description="Archived days that lie further back are removed; more than `ledger_days`."
    )
    archive_bytes: int | None = Field(
        default=None, ge=0, description="The oldest archived days are removed until the files have no more bytes."
    )
    simulate_gpu: Literal["h100", "a100"] | None = Field(
        default=None, description="Meter a simulated board of this profile. Every figure then says `source=simulated`."
    )
    allow_shared_gpu: bool = Field(
        default=False,
        description="Meter GPUs that are split by MIG: their counter is the whole GPU's, and every figure says `source=shared`.",
    )
    receipt_token: str | None = Field(
        default=None,
        pattern=r"^[!-~]{16,256}$",
        description="Give receipts (`/energy/…`) only to who bears this token, on the meter's port and the server's: `Authorization: Bearer TOKEN`. "
        "What etameter itself asks (`demo`, `ab`, `play`, `verify`) bears it where this is set; metrics, `top` and the live page show no receipts and want none.",
    )
    nodes: tuple[Annotated[str, StringConstraints(pattern=r"^[^\s:/]+:[0-9]{1,5}$")], ...] = Field(
        default=(),
        description="Other machines of the engine, in the order of its workers, each as `HOST:PORT` of the `etameter sampler` that runs there. "
        'In the environment as JSON: `["10.0.0.2:9431"]`.',
    )
    node_token: str | None = Field(
        default=None,
        pattern=r"^[!-~]{16,256}$",
        description="What the meter and the samplers of other machines know each other by; the same on all of them. Needed where they aren't reached by the loopback address.",
    )
    classify: bool = Field(
        default=False,
        description="Find slack in responses. The server then tells the meter what was asked and answered, over the socket that only their user can open; "
        "the texts are dropped once they are classified, and never logged; nor stored, but for `store_text`.",
    )
    store_text: bool = Field(
        default=False,
        description="Keep what `classify` reads, prompts and responses, in a file beside the ledger, which only its user can read, until `etameter archive` moves it: "
        "for `etameter rescore`. It does nothing without `classify`.",
    )


class ServeSection(_Section):
    engine: Name = Field(
        default="engine-0", description="Name of the engine; it names the ring and the simulated board."
    )
    meter: bool = Field(
        default=True,
        description="Start a meter beside the server. Without it the engine is left to a meter that runs by itself (`etameter meter --ring …`).",
    )
    settle_responses: bool = Field(
        default=False,
        description="Let the end of a response wait for its settled figure, up to 300 ms; then it has the one there is, `settled: false`.",
    )
    restart_backoff_s: float = Field(
        default=1.0,
        gt=0.0,
        le=60.0,
        description="Seconds before a meter that died is started again; doubles up to 30 s.",
    )


ARMS: Mapping[str, str] = {
    "unconstrained": "The model's own habits: nothing is said to it beside the task.",
    "entrace": "Constraints first, then the least output that meets them: six rules.",
    "entrace-stack": "The six rules as layers, each with what would prove it wrong.",
    "entrace-task": "The constraints of each task stated for it, and the least output that meets them.",
    "seed": "A reusable set of constraints, the same for every task.",
    "deterministic": "One admissible form for each task, held to by structured output; no sampling.",
    "concise": "A plain request to be brief: what any method has to beat.",
    "placebo": "Neutral text as long as `entrace`: what a system prompt does by merely being there.",
    "audit": "Questions of a judge about other answers: what looking for slack costs.",
}
"""The arms that come with etameter, in `prompts/arms/`, and what they are."""
NO_ARMS = frozenset({"unlabelled", "other"})
"""What requests belong to that belong to none."""


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ArmSection(_Section):
    description: str = Field(default="", description="What the arm is, for people.")
    system_prompt_sha256: frozenset[Sha256] = Field(
        default=frozenset(),
        description='Requests with one of these system prompts: `printf %s "$PROMPT" | sha256sum`. Of several content parts, all text joined.',
    )
    api_key_sha256: frozenset[Sha256] = Field(
        default=frozenset(), description="Requests with one of these API keys (`Authorization: Bearer` or `X-Api-Key`)."
    )
    models: frozenset[str] = Field(default=frozenset(), description="Requests that ask for one of these models.")
    brake: Path | None = Field(
        default=None,
        description="Experimental: end this arm's streams where nothing but slack would follow. The path of the report, by `etameter eta brake`, that bounds the damage "
        "under `[eta] most_damage`; without one nothing is served.",
    )


@dataclass(frozen=True, slots=True)
class Price:
    """What a kWh costs those who use many: taxes and grid fees in it as the source says."""

    per_kwh: float
    currency: str
    source: str
    year: int


_STATES = "EIA, Electric Power Annual 2023, average revenue per kWh, industrial"
PRICES: Mapping[str, Price] = {
    "usa": Price(0.0806, "USD", "EIA, average retail price, industrial, as of March 2024", 2023),
    "usa-california": Price(0.1864, "USD", _STATES, 2023),
    "usa-ohio": Price(0.0703, "USD", _STATES, 2023),
    "usa-oregon": Price(0.0752, "USD", _STATES, 2023),
    "usa-texas": Price(0.0660, "USD", _STATES, 2023),
    "usa-virginia": Price(0.0892, "USD", _STATES, 2023),
    "eu": Price(0.1902, "EUR", "Eurostat, electricity prices of non-household consumers, first half", 2025),
    "finland": Price(0.0939, "EUR", "Eurostat, electricity prices of non-household consumers, first half", 2024),
    "ireland": Price(0.256, "EUR", "Eurostat, electricity prices of non-household consumers, first half", 2024),
}
"""Published averages. One's own contract says more."""


class FootprintSection(_Section):
    country: str | None = Field(
        default=None,
        pattern=r"^[A-Z]{3}$",
        description="Where the power comes from: a country's ISO 3166 code of three letters, such as `USA`. Carbon intensity by codecarbon's tables (extra `carbon`).",
    )
    region: str | None = Field(
        default=None,
        min_length=1,
        description="With `country`: a state of the USA or a province of CHN by its name, a bidding zone of SWE or NOR such as `SE3`.",
    )
    grams_per_kwh: float | None = Field(
        default=None,
        ge=0.0,
        le=5000.0,
        allow_inf_nan=False,
        description="Own carbon intensity, in grams of CO2 equivalent per kWh, instead of a country's.",
    )
    price: str | None = Field(default=None, description="A row of the table of prices below.")
    price_per_kwh: float | None = Field(
        default=None, ge=0.0, allow_inf_nan=False, description="Own price, instead of the table's; needs `currency`."
    )
    currency: str | None = Field(
        default=None, pattern=r"^[A-Z]{3}$", description="Of `price_per_kwh`, by its code of three letters."
    )
    pue: float | None = Field(
        default=None,
        ge=1.0,
        le=5.0,
        allow_inf_nan=False,
        description="Energy of the building per energy of its equipment. Without it money and CO2 are of the board alone.",
    )

    @field_validator("price")
    @classmethod
    def _is_in_the_table(cls, named: str | None) -> str | None:
        if named is not None and named not in PRICES:
            raise PydanticCustomError("price", "Input should be one of {known}", {"known": ", ".join(sorted(PRICES))})
        return named


class EtaSection(_Section):
    deep: str = Field(
        default="served",
        pattern=r"^(off|served|https?://[^\s/]+\S*)$",
        description="Who judges sampled responses where `[meter] classify` is set: `served`, the served model itself while nobody else asks it; the address of another "
        "OpenAI-compatible server, whose first model then judges; or `off`. What is judged is sent there.",
    )
    share: float = Field(
        default=0.01,
        gt=0.0,
        le=1.0,
        description="At most this share of responses is judged, and audits take at most this share of the joules that other requests take.",
    )
    weights: Path | None = Field(
        default=None,
        description="Weights that `etameter eta train` made of labels of your own, in place of those that come with etameter.",
    )
    most_damage: float = Field(
        default=0.02,
        gt=0.0,
        le=0.1,
        description="The most answers, as a share, that an arm's slack brake may spoil by its report's 95 % bounds: of correct ones by a checker, of all by a judge.",
    )


class OtlpSection(_Section):
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+\S*$",
        description="Send energy as OpenTelemetry metrics to the receiver at this address, over HTTP (extra `otlp`); `/v1/metrics` is added to it. "
        "By default that of `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`; without any, nothing is sent.",
    )


MAX_BUDGETS = 32


class Config(BaseSettings):
    """The whole configuration, checked. Made by `load`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    meter: MeterSection = MeterSection()
    serve: ServeSection = ServeSection()
    footprint: FootprintSection = FootprintSection()
    eta: EtaSection = EtaSection()
    nightly: NightlySection = NightlySection()
    otlp: OtlpSection = OtlpSection()
    arms: dict[Name, ArmSection] = Field(
        default_factory=lambda: {name: ArmSection(description=told) for name, told in ARMS.items()},
        description="The arms that requests may name, besides `audit`; any other is counted as `other`.",
    )

    budgets: dict[Name, BudgetSection] = Field(
        default_factory=dict,
        max_length=MAX_BUDGETS,
        description=f"What requests of some arms, or with some API keys, may take in an hour, a day, a week or a month; at most {MAX_BUDGETS} of them.",
    )

    @field_validator("arms")
    @classmethod
    def _with_audit(cls, arms: dict[str, ArmSection]) -> dict[str, ArmSection]:
        """Under another name audits would be traffic: they would be audited, and be in their own way."""
        return {**arms, "audit": arms.get("audit", ArmSection(description=ARMS["audit"]))}

    @field_validator("budgets")
    @classmethod
    def _of_arms_that_there_are(
        cls, budgets: dict[str, BudgetSection], info: ValidationInfo
    ) -> dict[str, BudgetSection]:
        known = {*info.data.get("arms", {}), *NO_ARMS}
        for name, budget in budgets.items():
            if unknown := sorted(budget.arms - known):
                about = {"name": name, "arms": ", ".join(unknown), "known": ", ".join(sorted(known))}
                raise PydanticCustomError(
                    "arms", "Input should name no arms that there aren't: {arms} of {name}; there are {known}", about
                )
        return budgets

    @property
    def ledger(self) -> Path:
        """The ledger's file, whether set or by default."""
        return self.meter.ledger or ledger_path()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the names are pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load` merges the sources, because an error has to say which of them it came from


def load(file: Path | None = None, overrides: Overrides | None = None) -> Config:
    """The configuration of this process.

    `file` None means `etameter.toml` in the working directory, which need not exist; a file that is named must. Raises ConfigError.
    """
    given = {
        section: {key: value for key, value in keys.items() if value is not None}
        for section, keys in (overrides or {}).items()
    }
    try:
        from_environment = EnvSettingsSource(Config)()
    except SettingsError as error:
        raise ConfigError(str(error), "give single keys as ETAMETER_SECTION__KEY") from error
    origins: list[tuple[str, Mapping[str, object]]] = [
        ("command line", given),
        ("environment", from_environment),
        (str(file or CONFIG_FILE), _read(file)),
    ]
    _refuse_unknown_variables(os.environ)
    merged: dict[str, object] = {}
    for _, settings in reversed(origins):
        merged = _merge(merged, settings)
    try:
        return Config(**merged)  # type: ignore[arg-type]  # pydantic checks the types, and says more about them
    except ValidationError as error:
        raise _config_error(error.errors(include_url=False)[0], origins) from None


def run_dir() -> Path:
    """Where the socket and the lock are: ``$ETAMETER_RUN``, else ``$XDG_RUNTIME_DIR/etameter``, else ``/run/etameter``."""
    if own := os.environ.get("ETAMETER_RUN"):
        return Path(own)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "etameter") if runtime else Path("/run/etameter")


def state_dir() -> Path:
    """Where durable data is: ``$ETAMETER_STATE``, else ``$XDG_STATE_HOME/etameter``, else ``~/.local/state/etameter``."""
    if own := os.environ.get("ETAMETER_STATE"):
        return Path(own)
    state = os.environ.get("XDG_STATE_HOME")
    return Path(state, "etameter") if state else Path.home() / ".local" / "state" / "etameter"


def ring_dir() -> Path:
    """Where engines write their rings: ``$ETAMETER_RING_DIR``, else ``/dev/shm``."""
    return Path(os.environ.get("ETAMETER_RING_DIR") or "/dev/shm")  # noqa: S108  # shared memory by design, not a temporary file


def ring_path(engine: str) -> Path:
    """The ring of the engine named `engine`."""
    return ring_dir() / f"etameter-{engine}.ring"


def board_path(engine: str) -> Path:
    """What the simulated board of the engine named `engine` publishes."""
    return ring_dir() / f"etameter-{engine}.board"


def board_of(ring: Path) -> Path:
    """What the simulated board publishes that belongs to the engine of a ring."""
    return ring.with_suffix(".board")


def rank_name(engine: str, rank: int) -> str:
    """What a data-parallel rank of the engine named `engine` is called: the first has the engine's own name."""
    return f"{engine}-{rank}" if rank else engine


def socket_path() -> Path:
    """Where the middleware talks to the meter."""
    return run_dir() / "meter.sock"


def audit_key_path() -> Path:
    """What requests of audits bear."""
    return run_dir() / "audit.key"


def lock_path() -> Path:
    """Held by the one meter of this run directory."""
    return run_dir() / "meter.lock"


def ledger_path() -> Path:
    """The ledger, where the configuration names none."""
    return state_dir() / "ledger.db"


def _read(file: Path | None) -> dict[str, object]:
    path = file or CONFIG_FILE
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        if file is None:
            return {}
        raise ConfigError(f"no config file {path}", "name one that exists, or leave --config out") from None
    except OSError as error:
        raise ConfigError(f"config file {path} can't be read", error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not TOML", str(error)) from error


def _refuse_unknown_variables(variables: Iterable[str]) -> None:
    """Only names with a double underscore are ours to judge: Kubernetes sets ETAMETER_PORT for a service of that name."""
    for variable in variables:
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        section = variable.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if section not in Config.model_fields:
            raise ConfigError(
                f"unknown section in environment variable {variable}", _suggest(section, Config.model_fields)
            )


def _merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = _merge(lower, value) if isinstance(lower, Mapping) and isinstance(value, Mapping) else value
    return merged


def _config_error(details: ErrorDetails, origins: Iterable[tuple[str, Mapping[str, object]]]) -> ConfigError:
    path = [str(part) for part in details["loc"] if part != "[key]"]
    key = ".".join(path)
    origin = next((name for name, settings in origins if _holds(settings, path)), "defaults")
    if details["type"] == "extra_forbidden":
        valid = _keys_of(path[:-1])
        return ConfigError(f"unknown {'key' if path[1:] else 'section'} {key} ({origin})", _suggest(path[-1], valid))
    reason = details["msg"].removeprefix("Input ").removeprefix("String ")
    return ConfigError(f"{key} = {details['input']!r} ({origin}) can't be used", f"it {reason}")


def _holds(settings: object, path: Iterable[str]) -> bool:
    for part in path:
        if isinstance(settings, list) and part.isdigit():
            return True
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True


def _keys_of(path: list[str]) -> Iterable[str]:
    sections: dict[str, type[BaseModel]] = {
        "meter": MeterSection,
        "serve": ServeSection,
        "footprint": FootprintSection,
        "eta": EtaSection,
        "nightly": NightlySection,
        "otlp": OtlpSection,
        "budgets": BudgetSection,
        "arms": ArmSection,
    }
    return sections[path[0]].model_fields if path else Config.model_fields


def _suggest(word: str, valid: Iterable[str]) -> str:
    choices = sorted(valid)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]}?" if close else f"valid are {', '.join(choices)}"
