"""Imports point down, and what computes does nothing else."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "meter": "etameter",
    "serving": "etameter.serving",
    "prompts": "etameter.prompts",
    "dashboards": "etameter.dashboards",
}

# From the bottom up. A module may import what stands below it, and its neighbours as long as there is no circle.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {"etameter.backlog", "etameter.errors", "etameter.records", "etameter.config", "etameter.nightly_section"}
        | {"etameter.budget_section"}
    ),
    frozenset({"etameter.serving.frames", "etameter.serving.ring"}),  # the format of the stream, which both sides share
    frozenset(
        {
            "etameter.attribution",
            "etameter.costs",
            "etameter.curves",
            "etameter.division",
            "etameter.durations",
            "etameter.evidence",
            "etameter.fit",
            "etameter.least_squares",
            "etameter.gpu",
            "etameter.requests",
            "etameter.roofline",
        }
    )
    | {
        "etameter.slack",
        "etameter.spans",
        "etameter.stages",
        "etameter.steps",
        "etameter.timeline",
        "etameter.counters",
    }
    | {"etameter.budgets", "etameter.pacing", "etameter.work"},
    frozenset({"etameter.footprint", "etameter.units"}),
    frozenset({"etameter.host", "etameter.carbon"}),
    frozenset({"etameter.export", "etameter.ledger", "etameter.locks", "etameter.neighbours", "etameter.sampler"})
    | {"etameter.answers", "etameter.archived", "etameter.claims", "etameter.classifier", "etameter.readings"}
    | {"etameter.texts"}
    | {"etameter.audit_key", "etameter.auditing", "etameter.audits", "etameter.nodes", "etameter.spent"},
    frozenset({"etameter.accounts", "etameter.books", "etameter.devices", "etameter.joules", "etameter.ranks"}),
    frozenset({"etameter.unwritten"}),
    frozenset(
        {"etameter.engine", "etameter.recorded_rows", "etameter.recording", "etameter.playback", "etameter.writing"}
    ),
    frozenset({"etameter.bursts"}),
    frozenset({"etameter.findings"}),
    frozenset({"etameter.checkup", "etameter.display", "etameter.figures", "etameter.pushing"}),
    frozenset({"etameter.daemon", "etameter.doctor", "etameter.inline"}),
    frozenset({"etameter.serving"}),
    frozenset({"etameter.prompts", "etameter.dashboards"}),
    frozenset(
        {
            "etameter.demo",
            "etameter.demo_report",
            "etameter.listener",
            "etameter.verify",
            "etameter.gpu_check",
            "etameter.top",
        }
        | {"etameter.archive", "etameter.arithmetic", "etameter.arithmetic_command"}
        | {"etameter.facts", "etameter.facts_command", "etameter.facts_label"}
        | {"etameter.check_report", "etameter.eta_command", "etameter.own_server", "etameter.audit_command"}
        | {"etameter.branching_command", "etameter.label_command", "etameter.train_command"}
    ),
    frozenset(
        {"etameter.prompts.ab_command", "etameter.prompts.nightly.command", "etameter.prompts.station"}
    ),  # they start a server as the demo does
    frozenset(
        {
            "etameter.cli",
            "etameter.cli_ab",
            "etameter.cli_eta",
            "etameter.cli_archive",
            "etameter.cli_arithmetic",
            "etameter.cli_proxy",
            "etameter.cli_nightly",
            "etameter.cli_history",
            "etameter.cli_facts",
            "etameter.cli_sampler",
        }
    ),
    frozenset({"etameter.__main__", "etameter"}),  # the package's own door opens on `inline`
)
PURE = frozenset(
    {
        "accounts",
        "attribution",
        "books",
        "budgets",
        "costs",
        "curves",
        "devices",
        "division",
        "durations",
        "evidence",
        "fit",
        "footprint",
        "least_squares",
        "gpu",
        "pacing",
        "ranks",
        "records",
        "requests",
        "roofline",
        "spans",
        "stages",
        "steps",
    }
    | {"arithmetic", "arithmetic.constraint", "arithmetic.formulas", "arithmetic.inference", "arithmetic.measured"}
    | {"arithmetic.economics", "arithmetic.page"}
    | {"arithmetic.machine", "arithmetic.photons", "arithmetic.report", "arithmetic.rows", "units"}
    | {"nodes.address", "nodes.clock", "nodes.wire"}
    | {"timeline", "unwritten", "work", "export.figures", "export.live", "export.traces"}
    | {
        "prompts.across",
        "prompts.analysis",
        "prompts.comparison",
        "prompts.decomposition",
        "prompts.pairing",
        "prompts.sample_size",
    }
    | {"prompts.sentences", "prompts.side_by_side", "prompts.stats", "prompts.verdict"}
    | {"prompts.nightly.estimates", "prompts.nightly.figures", "prompts.nightly.steady", "prompts.nightly.windows"}
    | {
        "prompts.nightly.metrics",
        "prompts.nightly.rows",
        "prompts.nightly.noise",
        "prompts.nightly.scatter",
        "prompts.nightly.shift",
        "prompts.nightly.verdict",
    }
)
OUTSIDE = frozenset(
    {"aiohttp", "asyncio", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random", "socket", "sqlite3"}
    | {"subprocess", "sys", "tempfile", "threading", "time"}
)


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


def _imports(module: str, path: Path) -> set[str]:
    """Absolute names of what the module imports, wherever in the file."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            submodules = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            bare = any(f"{base}.{alias.name}" not in MODULES for alias in node.names)
            names |= submodules | ({base} if bare or not submodules else set())
    return names


def _layer(module: str) -> int:
    """The layer that names the longest part of the module's own name."""
    ranked = [
        (len(name), rank) for rank, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")
    ]
    length, rank = max(ranked)
    assert length > len("etameter") or module == "etameter", f"{module} has no layer yet: give it one"
    return rank


OWN = {module: {name for name in _imports(module, path) if name in MODULES} for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    upwards = {name for name in OWN[module] if _layer(name) > _layer(module)}
    assert not upwards


def test_there_is_no_circle() -> None:
    waiting = {module: imported - {module} for module, imported in OWN.items()}
    while free := {module for module, imported in waiting.items() if not imported & waiting.keys()}:
        waiting = {module: imported for module, imported in waiting.items() if module not in free}
    assert not waiting


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("etameter.serving")])
def test_the_meter_never_imports_vllm(module: str) -> None:
    assert not {name for name in _imports(module, MODULES[module]) if name.partition(".")[0] in {"vllm", "torch"}}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("etameter.serving.")])
def test_serving_knows_the_records_and_the_config_only(module: str) -> None:
    known = {"etameter", "etameter.records", "etameter.config", "etameter.errors", "etameter.serving"}
    known |= {"etameter.slack.brake"}  # it decides between two tokens, where no other process can be asked
    assert {name for name in OWN[module] if not name.startswith("etameter.serving.")} <= known


def test_one_module_knows_pynvml() -> None:
    knowing = {module for module, path in MODULES.items() if "pynvml" in _imports(module, path)}
    assert knowing <= {"etameter.counters.nvml", "etameter.counters.nvml_facts", "etameter.counters.nvml_limits"}


def test_nobody_knows_ray_but_who_spreads_over_machines() -> None:
    knowing = {m for m, path in MODULES.items() if any(n.split(".")[0] == "ray" for n in _imports(m, path))}
    assert knowing <= {"etameter.archive.on_ray", "etameter.nodes.on_ray"}


def test_one_module_knows_opentelemetry_and_only_who_pushes_imports_it() -> None:
    knowing = {m for m, path in MODULES.items() if any(n.startswith("opentelemetry") for n in _imports(m, path))}
    assert knowing == {"etameter.export.otlp"}
    assert {module for module, imported in OWN.items() if "etameter.export.otlp" in imported} == {"etameter.pushing"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_computes_does_nothing_else(name: str) -> None:
    module = f"etameter.{name}"
    assert not {imported.partition(".")[0] for imported in _imports(module, MODULES[module])} & OUTSIDE


@pytest.mark.parametrize(
    "module",
    [
        name
        for name in MODULES
        if name not in {"etameter.cli", "etameter.cli_eta", "etameter.demo", "etameter.demo_report"}
    ],
)
def test_nothing_prints_but_the_commands(module: str) -> None:
    calls = [node.func for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
    assert "print" not in {function.id for function in calls if isinstance(function, ast.Name)}
