"""Which stages a configuration asks for, and which two nights are of the same work."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter import config
from etameter.errors import ConfigError
from etameter.nightly_section import HOUSEKEEPING, NightlySection
from etameter.prompts.nightly import schedule

pytestmark = pytest.mark.unit


def test_a_night_begins_and_ends_idle_with_every_stage_that_is_asked_for_between() -> None:
    section = NightlySection(
        batches=(1, 8), saturation=64, rates_per_s=(0.5, 2.0), arrivals=Path("a.csv"), external=("vllm",)
    )
    assert [stint.name for stint in schedule.stints(section)] == [
        "idle-before",
        "batch-1",
        "batch-8",
        "saturation",
        "rate-0.5",
        "rate-2",
        "recorded",
        "external-vllm",
        "ab-fixed",
        "ab-audit",
        "idle-after",
    ]


def test_what_is_not_asked_for_is_left_out_and_nothing_is_run_twice() -> None:
    section = NightlySection(batches=(4, 4), saturation=0, rates_per_s=(), arms=())
    assert [stint.name for stint in schedule.stints(section)] == ["idle-before", "batch-4", "idle-after"]
    assert [stint.name for stint in schedule.stints(NightlySection(audit_tasks=0))][-2:] == ["ab-fixed", "idle-after"]


def test_a_sweep_tries_one_thing_at_a_time() -> None:
    section = NightlySection(
        sweep_max_num_seqs=(8, 32), sweep_power_w=(300.0, 450.5), sweep_clock_mhz=(1200,), saturation=16, batches=(1,)
    )
    settings = schedule.settings(section)
    assert [setting.name for setting in settings] == [
        "sweep-seqs-8",
        "sweep-seqs-32",
        "sweep-cap-300",
        "sweep-cap-450.5",
        "sweep-clock-1200",
    ]
    assert [setting.restarts for setting in settings] == [True, True, False, False, False]
    assert schedule.stint_of(settings[2], section).at_once == 32


def test_the_hash_is_of_what_is_measured() -> None:
    plain = schedule.config_hash(NightlySection())
    assert schedule.config_hash(NightlySection(runs=Path("elsewhere"), budget_s=60.0, budget_j=1.0)) == plain
    assert schedule.config_hash(NightlySection(window_s=31.0)) != plain
    assert schedule.config_hash(NightlySection(), [b"another suite"]) != plain
    assert set(NightlySection.model_fields) >= HOUSEKEEPING


@given(st.sampled_from(["windows", "window_s", "idle_s", "warm_up_s", "max_tokens", "budget_s"]))
def test_no_length_is_nothing(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        NightlySection.model_validate({key: 0})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("windows = 2", "nightly.windows = 2 .* greater than or equal to 3"),
        ("batches = [1, 0]", r"nightly.batches.1 = 0 .* greater than or equal to 1"),
        ('external = ["wrk"]', r"nightly.external.0 = 'wrk' .* 'vllm', 'guidellm' or 'aiperf'"),
        ("window_s = inf", "nightly.window_s = inf"),
        ("batch = [1]", "unknown key nightly.batch .*did you mean batches"),
        ('name = "a b"', "nightly.name = 'a b'"),
    ],
)
def test_a_wrong_key_is_told_with_its_value_and_what_would_do(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"[nightly]\n{line}\n")
    with pytest.raises(ConfigError, match=said):
        config.load(path)


def test_the_configuration_is_json() -> None:
    told = schedule.told_of(NightlySection(runs=Path("x"), arrivals=Path("y.csv")))
    assert (told["runs"], told["arrivals"], told["batches"]) == ("x", "y.csv", [1, 8, 32])


@pytest.mark.parametrize(
    "url", ["http://somebody:Zanzibar@127.0.0.1:8000/under", "http://:Zan@zibar@127.0.0.1:8000/under"]
)
def test_a_password_in_the_address_is_not_told(url: str) -> None:
    assert schedule.told_of(NightlySection(url=url))["url"] == "http://127.0.0.1:8000/under"
