"""To which arm a request belongs."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from etameter import config
from etameter.errors import ConfigError
from etameter.serving import launch
from etameter.serving.arms import NAMES, RULES, Arms, system_prompt

pytestmark = pytest.mark.unit

BRIEF, KEY = "Be brief.", "sk-1234"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "large", "messages": [{"role": "user", "content": "Hi."}], **more}


@pytest.fixture
def arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arms:
    """As a server has them whose operator wrote this."""
    file = tmp_path / "etameter.toml"
    file.write_text(
        f'[arms.brief]\nsystem_prompt_sha256 = ["{sha256(BRIEF)}"]\n'
        f'[arms.customer]\napi_key_sha256 = ["{sha256(KEY)}"]\n'
        '[arms.tuned]\nmodels = ["tuned-7b"]\n[arms.plain]\n'
    )
    for name, value in launch.middleware_environment(config.load(file)).items():
        monkeypatch.setenv(name, value)
    return Arms.from_environment()


def system(content: Any, role: str = "system") -> dict[str, Any]:
    return asked(messages=[{"role": role, "content": content}, {"role": "user", "content": "Hi."}])


@pytest.mark.parametrize(
    ("headers", "request_body", "arm"),
    [
        pytest.param([(b"x-etameter-arm", b"plain")], system(BRIEF), "plain", id="the header first"),
        pytest.param([(b"x-etameter-arm", b"'; drop table")], system(BRIEF), "other", id="a header that names none"),
        pytest.param([], system(BRIEF), "brief", id="system prompt"),
        pytest.param([], system(BRIEF, "developer"), "brief", id="developer prompt"),
        pytest.param([], system([{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]), "brief", id="parts"),
        pytest.param([(b"authorization", b"Bearer sk-1234")], system(BRIEF), "brief", id="prompt before key"),
        pytest.param([(b"authorization", b"bearer  sk-1234 ")], asked(), "customer", id="bearer"),
        pytest.param([(b"x-api-key", b"sk-1234")], asked(model="tuned-7b"), "customer", id="key before model"),
        pytest.param([(b"x-api-key", b"nobody's"), (b"authorization", b"Bearer sk-1234")], asked(), "customer", id="any of its keys"),
        pytest.param([(b"authorization", b"Bearer sk-1234")], None, "customer", id="a body that was not looked into"),
        pytest.param([], asked(model="tuned-7b"), "tuned", id="model"),
        pytest.param([], {"model": "tuned-7b", "input": "x"}, "tuned", id="an embedding"),
        pytest.param([], asked(), "other", id="none fits"),
        pytest.param([], asked(model=["tuned-7b"]), "other", id="a model that is no name"),
        pytest.param([], [BRIEF], "other", id="no object"),
    ],
)  # fmt: skip
def test_the_first_that_fits(arms: Arms, headers: Any, request_body: Any, arm: str) -> None:
    assert arms.of({"headers": headers}, request_body) == arm


def test_where_arms_are_known_by_name_alone_what_names_none_is_unlabelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES, "a,b")
    monkeypatch.delenv(RULES, raising=False)
    arms = Arms.from_environment()
    assert arms.of({"headers": []}, system(BRIEF)) == "unlabelled"
    assert arms.of({"headers": [(b"x-etameter-arm", b" b ")]}, {}) == "b"


@pytest.mark.parametrize(
    "request_body",
    [{}, {"messages": []}, {"messages": "x"}, {"messages": ["x"]}, asked(), {"messages": [{"role": "system"}]}],
)
def test_what_has_no_system_prompt(request_body: Any) -> None:
    assert not system_prompt(request_body)


def test_a_hash_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etameter.toml").write_text('[arms.a]\napi_key_sha256 = ["sk-1234"]\n')
    with pytest.raises(ConfigError, match="api_key_sha256"):
        config.load(tmp_path / "etameter.toml")


@pytest.mark.parametrize(
    ("borne", "arm"),
    [
        pytest.param([(b"x-etameter-audit", b"sesame")], "audit", id="the key"),
        pytest.param([(b"x-etameter-audit", b"sesamf")], "other", id="another key"),
        pytest.param([], "other", id="none"),
    ],
)
def test_only_who_bears_the_key_is_an_audit(arms: Arms, run_dir: Path, borne: Any, arm: str) -> None:
    headers = [(b"x-etameter-arm", b"audit"), *borne]
    assert arms.of({"headers": headers}, {}) == "other", "there is no key yet"
    (run_dir / "audit.key").write_text("sesame")
    assert arms.of({"headers": headers}, {}) == arm


def test_an_empty_key_is_none(arms: Arms, run_dir: Path) -> None:
    (run_dir / "audit.key").write_text("")
    assert arms.of({"headers": [(b"x-etameter-arm", b"audit"), (b"x-etameter-audit", b"")]}, {}) == "other"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETAMETER_RUN", str(tmp_path))
    return tmp_path
