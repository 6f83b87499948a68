import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etameter.counters import Counter
from etameter.counters.rapl import RaplCounter, discover
from etameter.errors import CounterError

RECORDED = Path(__file__).parents[2] / "data" / "powercap.txt"
RANGE_UJ = 262_143_328_850

pytestmark = pytest.mark.unit


@pytest.fixture
def powercap() -> Iterator[Path]:
    """The recorded tree, in a directory that every user may enter."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        for line in RECORDED.read_text().splitlines():
            if not line.startswith("#"):
                name, value = line.split(maxsplit=1)
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_text(f"{value}\n")
        yield root


@contextmanager
def as_other_user() -> Iterator[None]:
    """Somebody for whom permissions hold, where this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def set_uj(powercap: Path, energy_uj: int) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{energy_uj}\n")


def test_discover_finds_each_package_once(powercap: Path) -> None:
    counters: list[RaplCounter] = discover(powercap)
    as_counters: list[Counter] = list(counters)
    assert [(c.gpu_uuid, c.scope, c.kind, c.source) for c in as_counters] == [
        ("RAPL-package-0", "package", "rapl", "measured"),
        ("RAPL-package-1", "package", "rapl", "measured"),
    ]
    assert [counter.read_mj() for counter in counters] == [240_422_366, 212_341_523]


def test_conditions_are_the_power_limits(powercap: Path) -> None:
    first, second = discover(powercap)
    assert first.conditions() == (165_000_000, 198_000_000)
    assert first.power_limit_w() == 198.0
    assert second.power_limit_w() is None  # a limit of 0 is no limit


def test_reading_goes_on_over_wraps(powercap: Path) -> None:
    counter = discover(powercap)[0]
    for reading_uj, total_mj in [
        (RANGE_UJ - 1_000_000, 262_142_328),
        (2_000_000, 262_145_328),
        (RANGE_UJ - 1_000_000, 524_285_657),
        (2_000_000, 524_288_657),
    ]:
        set_uj(powercap, reading_uj)
        assert counter.read_mj() == total_mj


@pytest.mark.parametrize("wraps_before", [0, 1])
def test_a_reset_is_no_wrap(powercap: Path, wraps_before: int) -> None:
    counter = discover(powercap)[0]
    for _ in range(wraps_before):
        set_uj(powercap, RANGE_UJ - 1)
        counter.read_mj()
        set_uj(powercap, 0)
        counter.read_mj()
    set_uj(powercap, RANGE_UJ // 2)
    before_mj = counter.read_mj()
    set_uj(powercap, 5_000_000)
    assert counter.read_mj() == 5_000 < before_mj


def test_no_package_is_absent(tmp_path: Path) -> None:
    with pytest.raises(CounterError) as raised:
        discover(tmp_path / "powercap")
    assert raised.value.cause == "absent"


def test_an_unreadable_package_is_not_absent(powercap: Path) -> None:
    (powercap / "intel-rapl:0" / "energy_uj").chmod(0)
    with as_other_user(), pytest.raises(CounterError) as raised:
        discover(powercap)
    assert raised.value.cause == "no_permission"
    assert "chmod a+r" in raised.value.remedy
    assert "\n" not in str(raised.value)


def test_a_failing_read_is_told_and_the_next_may_succeed(powercap: Path) -> None:
    counter = discover(powercap)[0]
    energy = powercap / "intel-rapl:0" / "energy_uj"
    energy.rename(energy.with_suffix(".away"))
    with pytest.raises(CounterError) as raised:
        counter.read_mj()
    assert raised.value.cause == "read_failed"
    energy.with_suffix(".away").rename(energy)
    assert counter.read_mj() == 240_422_366
