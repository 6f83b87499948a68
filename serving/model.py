"""Whether a model can be there at all, asked before minutes are spent on starting an engine for it."""

import http
import importlib.util
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

from etameter.errors import EngineError

_ON_A_HUB = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?::[\w.-]+)?")
_ELSEWHERE = re.compile(r"\w+://.+")
_HUB_TIMEOUT_S = 5.0
_NONE_THERE = {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.NOT_FOUND}
"""A hub says "unauthorized" of a model that does not exist, lest it tell of private ones."""


def check(model: str) -> None:
    """Raises EngineError for what is no directory with a model, has no name that a hub could know, or is unknown to the hub."""
    path = Path(model)
    if path.is_dir():
        if not any((path / name).exists() for name in ("config.json", "params.json")):
            remedy = "name a directory with a config.json, or a model on the hub as owner/name"
            raise EngineError(f"{model} holds no model", remedy)
        return
    if path.exists() or _ELSEWHERE.fullmatch(model):
        return  # a single file, or an object store: vLLM's business
    name = _ON_A_HUB.fullmatch(model)
    if name is None or model.startswith("."):
        raise EngineError(f"no model at {model!r}", "name a directory that exists, or a model on the hub as owner/name")
    if importlib.util.find_spec("huggingface_hub") is not None and "VLLM_USE_MODELSCOPE" not in os.environ:
        _ask_hub(name[1])


def _ask_hub(name: str) -> None:
    """Raises EngineError where the model is neither cached nor on the hub. What is unclear is left to vLLM."""
    import huggingface_hub
    from huggingface_hub import constants

    if Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir():
        return
    absent = f"{name} is neither a directory here nor in the cache of the hub"
    if constants.HF_HUB_OFFLINE:
        raise EngineError(absent, "name a directory, or unset HF_HUB_OFFLINE")
    token = huggingface_hub.get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{name}", headers=headers)  # noqa: S310  # the hub's own address
    try:
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        if error.code in _NONE_THERE:
            raise EngineError(f"the hub knows no model {name}", "check its name, or log in if it is private") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, (socket.gaierror, ConnectionError)):
            remedy = "name a directory that exists, or get this machine on the network"
            raise EngineError(f"{absent}, and the hub can't be reached", remedy) from error
    except TimeoutError:
        pass
