"""A model that can't be there is refused before an engine is started for it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from etameter.errors import EngineError
from etameter.serving import model as model_source

pytestmark = pytest.mark.unit

STATUS = {"/api/models/owner/there": 200, "/api/models/owner/private": 401, "/api/models/owner/busy": 503}


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(STATUS.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    constants = pytest.importorskip("huggingface_hub.constants", reason="it comes with vLLM")
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield address
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("model", ["./none", "/none/at/all", "~/none", "a/b/c", "two words", "", "."])
def test_what_can_be_no_model_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match=r"no model"):
        model_source.check(model)


def test_a_directory_with_a_config_or_an_address_is_taken_without_asking_anyone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (str(tmp_path), "s3://bucket/model"):
        model_source.check(model)


@pytest.mark.parametrize("model", ["owner/there", "owner/there:Q4_K_M", "owner/busy"])
def test_what_the_hub_knows_or_does_not_say_is_left_to_vllm(hub: str, model: str) -> None:
    model_source.check(model)


@pytest.mark.parametrize("model", ["owner/absent", "owner/private", "absent"])
def test_what_the_hub_does_not_know_is_refused(hub: str, model: str) -> None:
    with pytest.raises(EngineError, match=f"the hub knows no model {model}"):
        model_source.check(model)


def test_a_cached_model_needs_no_hub(hub: str, tmp_path: Path) -> None:
    (tmp_path / "cache" / "models--owner--absent").mkdir(parents=True)
    model_source.check("owner/absent")


def test_without_a_hub_a_model_that_is_not_cached_is_refused(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(EngineError, match="the hub can't be reached: name a directory"):
        model_source.check("owner/there")
