"""The configuration: what wins, and what a user is told who got it wrong."""

from pathlib import Path

import pytest

from etameter import config
from etameter.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(text: str) -> None:
    Path("etameter.toml").write_text(text)


def _complaint() -> str:
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_need_no_file() -> None:
    loaded = config.load()
    assert (loaded.meter.host, loaded.meter.port, loaded.meter.poll_ms) == ("127.0.0.1", 9430, 5.0)
    assert loaded.serve.engine == "engine-0"
    assert loaded.meter.simulate_gpu is None
    assert list(loaded.arms) == list(config.ARMS)


def test_command_line_wins_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    _write('[meter]\nport = 1001\npoll_ms = 7.0\nhost = "10.0.0.1"\n')
    monkeypatch.setenv("ETAMETER_METER__PORT", "1002")
    monkeypatch.setenv("ETAMETER_METER__POLL_MS", "8")
    loaded = config.load(overrides={"meter": {"port": 1003, "poll_ms": None}})
    assert (loaded.meter.port, loaded.meter.poll_ms, loaded.meter.host) == (1003, 8.0, "10.0.0.1")


def test_configured_arms_replace_the_default_ones_but_that_of_audits() -> None:
    _write('[arms.terse]\ndescription = "two sentences"\n')
    told = {name: arm.description for name, arm in config.load().arms.items()}
    assert told == {"terse": "two sentences", "audit": config.ARMS["audit"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[meter]\nprot = 1\n", "unknown key meter.prot (etameter.toml): did you mean port?"),
        ("[metre]\nport = 1\n", "unknown section metre (etameter.toml): did you mean meter?"),
        (
            "[arms.terse]\ndescripton = ''\n",
            "unknown key arms.terse.descripton (etameter.toml): did you mean description?",
        ),
        (
            "[serve]\nzzz = 1\n",
            "unknown key serve.zzz (etameter.toml): valid are engine, meter, restart_backoff_s, settle_responses",
        ),
    ],
)
def test_unknown_keys_are_refused(text: str, said: str) -> None:
    _write(text)
    assert _complaint() == said


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("[meter]\nport = 70000\n", "meter.port = 70000 (etameter.toml) can't be used: it should be less than"),
        ("[meter]\npoll_ms = 0\n", "meter.poll_ms = 0 (etameter.toml) can't be used: it should be greater than"),
        (
            "[meter]\nsimulate_gpu = 'b200'\n",
            "meter.simulate_gpu = 'b200' (etameter.toml) can't be used: it should be 'h100'",
        ),
        (
            "[footprint]\npue = 0.9\n",
            "footprint.pue = 0.9 (etameter.toml) can't be used: it should be greater than or equal to 1",
        ),
        (
            "[footprint]\nprice_per_kwh = -0.1\ncurrency = 'EUR'\n",
            "footprint.price_per_kwh = -0.1 (etameter.toml) can't be used: it should be greater than or equal to 0",
        ),
        (
            "[footprint]\ngrams_per_kwh = -1\n",
            "footprint.grams_per_kwh = -1 (etameter.toml) can't be used: it should be greater than or equal to 0",
        ),
        ("[serve]\nengine = '../x'\n", "serve.engine = '../x' (etameter.toml) can't be used: it should match pattern"),
        ("[arms.'a b']\n", "arms.a b = 'a b' (etameter.toml) can't be used: it should match pattern"),
        ("meter = 3\n", "meter = 3 (etameter.toml) can't be used: it should be a valid dictionary"),
        ("[meter\n", "config file etameter.toml is not TOML: "),
    ],
)
def test_bad_values_name_key_value_and_place(text: str, beginning: str) -> None:
    _write(text)
    assert _complaint().startswith(beginning)


@pytest.mark.parametrize(
    ("variable", "value", "beginning"),
    [
        (
            "ETAMETER_METER__PORT",
            "many",
            "meter.port = 'many' (environment) can't be used: it should be a valid integer",
        ),
        ("ETAMETER_METER__PROT", "1", "unknown key meter.prot (environment): did you mean port?"),
        (
            "ETAMETER_METRE__PORT",
            "1",
            "unknown section in environment variable ETAMETER_METRE__PORT: did you mean meter?",
        ),
        ("ETAMETER_METER", "{", "error parsing"),
    ],
)
def test_bad_environment(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, beginning: str) -> None:
    monkeypatch.setenv(variable, value)
    assert _complaint().startswith(beginning)


def test_variables_that_an_orchestrator_sets_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETAMETER_PORT", "tcp://10.0.0.1:9430")
    assert config.load().meter.port == 9430


def test_a_named_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"no config file absent\.toml"):
        config.load(Path("absent.toml"))


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ETAMETER_RUN", "ETAMETER_STATE", "ETAMETER_RING_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert config.socket_path() == Path("/run/etameter/meter.sock")
    assert config.ledger_path() == Path("/home/ada/.local/state/etameter/ledger.db")
    assert config.ring_path("engine-0") == Path("/dev/shm/etameter-engine-0.ring")
    assert config.board_path("engine-0") == Path("/dev/shm/etameter-engine-0.board")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert config.lock_path() == Path("/run/user/1/etameter/meter.lock")
    assert config.load().ledger == Path("/state/etameter/ledger.db")
    monkeypatch.setenv("ETAMETER_RUN", "/a")
    monkeypatch.setenv("ETAMETER_STATE", "/b")
    monkeypatch.setenv("ETAMETER_RING_DIR", "/c")
    assert (config.socket_path(), config.ledger_path()) == (Path("/a/meter.sock"), Path("/b/ledger.db"))
    assert config.ring_path("e") == Path("/c/etameter-e.ring")


def test_budgets_say_who_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    _write('[arms.terse]\n[budgets.team]\narms = ["terse", "other"]\nwh = 2.5\nwindow = "month"\n')
    monkeypatch.setenv("ETAMETER_BUDGETS__TEAM__WINDOW", "hour")
    team = config.load().budgets["team"]
    assert (team.limit_j, team.window, sorted(team.arms)) == (9000.0, "hour", ["other", "terse"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wh = 1.0", "it should name arms or api_key_sha256"),
        ('arms = ["entrace"]', "it should have joules or wh, and not both"),
        ('arms = ["entrace"]\nwh = 1.0\njoules = 1.0', "it should have joules or wh, and not both"),
        ('arms = ["entrace"]\nwh = 0.0', "it should be greater than 0"),
        ('arms = ["entrace"]\nwh = inf', "it should be a finite number"),
        ('arms = ["entrace"]\nwh = 1.0\nwindow = "year"', "it should be 'hour', 'day', 'week' or 'month'"),
        (
            'arms = ["x", "y"]\nwh = 1.0',
            "it should name no arms that there aren't: x, y of team; there are audit, concise,",
        ),
        ('api_key_sha256 = ["sk-1234"]\nwh = 1.0', "it should match pattern"),
        ('arms = ["entrace"]\nkwh = 1.0', "did you mean wh?"),
    ],
)
def test_budgets_that_say_neither_are_refused(text: str, said: str) -> None:
    _write(f"[budgets.team]\n{text}\n")
    assert said in _complaint()
