"""The chart, rendered as `helm install` would; `python -m tests.docker.chart` writes what the tests compare with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "docker" / "helm" / "etameter"
RENDERED = Path(__file__).parent / "rendered"
QUIET = {"dashboards": {"enabled": False}}
"""Compared elsewhere, file by file, and long."""

CASES: Mapping[str, dict[str, Any]] = {
    "default": {"model": "Qwen/Qwen3-8B", **QUIET},
    "side-car": {"model": "Qwen/Qwen3-8B", "meter": {"place": "side-car"}, **QUIET},
    "no-waiting": {
        "model": "Qwen/Qwen3-8B",
        "meter": {"awaitFirstEdge": False},
        "networkPolicy": {"enabled": False},
        **QUIET,
    },
    "all": {
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "args": ["--tensor-parallel-size", "4"],
        "engine": {
            "image": {"repository": "registry.example/vllm", "tag": "v0.32.0", "pullPolicy": "Always"},
            "gpus": 4,
            "port": 8080,
            "resources": {"requests": {"cpu": "16"}, "limits": {"memory": "256Gi"}},
            "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "WARNING"}],
            "token": {"secret": "huggingface"},
            "startupMinutes": 60,
        },
        "meter": {
            "place": "side-car",
            "port": 9500,
            "config": {"arms": {"concise": {"description": "brief"}}, "footprint": {"pue": 1.2}},
            "receiptToken": {"secret": "receipts"},
        },
        "models": {"claim": "models"},
        "ledger": {"claim": "ledger"},
        "service": {"type": "NodePort", "port": 8000},
        "monitoring": {"podMonitor": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {"serving": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]},
        "user": 3000,
        "imagePullSecrets": [{"name": "registry"}],
        "runtimeClassName": "nvidia",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {}},
        "podLabels": {"team": "serving"},
        "podAnnotations": {"example.org/owner": "serving"},
        **QUIET,
    },
}


def tool(name: str) -> str | None:
    """Where a program is: beside this Python, where `make docker-check` puts it, or else on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def helm(*words: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    program = tool("helm")
    assert program is not None
    options = [] if values is None else ["--values", "-"]
    text = None if values is None else json.dumps(values)
    return subprocess.run([program, *words, *options], input=text, capture_output=True, text=True, check=False)


def render(values: Mapping[str, Any]) -> str:
    """The manifests of a release named `demo`."""
    done = helm("template", "demo", CHART, values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(values: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name."""
    found = [each for each in yaml.safe_load_all(render(values)) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


if __name__ == "__main__":
    for case, given in CASES.items():
        (RENDERED / f"{case}.yaml").write_text(render(given))
