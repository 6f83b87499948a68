"""Which GPUs of which machines an engine has that names those of its scheduler's alone."""

import re
from dataclasses import replace

import pytest

from etameter.accounts import Accounts
from etameter.devices import Device, gpus_of, in_order
from etameter.errors import EngineError
from etameter.serving.ring import RingHeader

pytestmark = pytest.mark.unit

HERE = [Device(f"GPU-{gpu}", "nvml", "measured", "H100") for gpu in range(3)]
ELSEWHERE = [
    Device(f"GPU-{node}-{gpu}", "nvml", "measured", "H100", node=f"10.0.0.{node}:9431")
    for node in (2, 3)
    for gpu in (0, 1)
]


def header(*gpu_uuids: str, tensor: int = 1, pipeline: int = 1) -> RingHeader:
    details = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return RingHeader("boot", "engine-0", gpu_uuids, "m", "bfloat16", 1, 1, details)


def test_an_engine_has_those_it_names_and_all_of_the_other_machines() -> None:
    spread = header("GPU-0", "GPU-1", tensor=2, pipeline=3)
    assert gpus_of(spread, [*HERE, *ELSEWHERE]) == {"GPU-0", "GPU-1", *(each.gpu_uuid for each in ELSEWHERE)}
    headless = header(tensor=4)
    assert gpus_of(headless, ELSEWHERE) == {each.gpu_uuid for each in ELSEWHERE}
    assert gpus_of(headless, [*HERE, *ELSEWHERE]) == {each.gpu_uuid for each in ELSEWHERE}, "none here is its own"


def test_an_engine_that_names_all_of_its_workers_gpus_has_those_wherever_they_are() -> None:
    named = ["GPU-3-1", "GPU-1", "GPU-2-0"]
    assert gpus_of(header(*named, pipeline=3), [*HERE, *ELSEWHERE]) == set(named), "of four elsewhere its own two"
    assert gpus_of(header("GPU-3-1", "GPU-2-0", tensor=2), [*HERE, *ELSEWHERE]) == {"GPU-3-1", "GPU-2-0"}, "none here"
    split = replace(ELSEWHERE[0], parts=("MIG-part",))
    assert gpus_of(header("GPU-part"), [split]) == {split.gpu_uuid}


def test_one_that_no_machine_has_is_named_with_those_that_they_have() -> None:
    told = (
        "engine engine-0 works on GPU-9-0, GPU-9-1, which nobody reads: this meter reads GPU-0, GPU-1, GPU-2; "
        "the sampler at 10.0.0.2:9431 reads GPU-2-0, GPU-2-1; the sampler at 10.0.0.3:9431 reads GPU-3-0, GPU-3-1"
    )
    with pytest.raises(EngineError, match=re.escape(told)):
        gpus_of(header("GPU-0", "GPU-9-0", "GPU-9-1", "GPU-2-0", tensor=2, pipeline=2), [*HERE, *ELSEWHERE])
    with pytest.raises(EngineError, match=r"name its other machines in \[meter\] nodes"):
        gpus_of(header("GPU-0", "GPU-2-0", tensor=2), HERE)


def test_an_engine_of_one_machine_has_none_of_the_others() -> None:
    assert gpus_of(header("GPU-0", "GPU-1", tensor=2), [*HERE, *ELSEWHERE]) == {"GPU-0", "GPU-1"}


@pytest.mark.parametrize("tensor", [3, 8])
def test_no_guess_is_made_where_there_are_more_or_fewer_than_it_works_on(tensor: int) -> None:
    with pytest.raises(EngineError, match=f"works on {tensor - 1} GPUs of other machines, their samplers read 4"):
        gpus_of(header("GPU-0", tensor=tensor), [*HERE, *ELSEWHERE])


def test_stages_are_those_of_the_workers_that_named_their_gpus() -> None:
    accounts = Accounts([*HERE, *ELSEWHERE], "boot")
    accounts.open_engine(header("GPU-3-0", "GPU-3-1", "GPU-2-0", "GPU-0", tensor=2, pipeline=2))
    assert accounts.rank is not None
    assert accounts.rank.stages == {"GPU-3-0": 0, "GPU-3-1": 0, "GPU-2-0": 1, "GPU-0": 1}


def test_a_board_that_an_engine_sees_a_part_of_has_the_stage_of_that_part() -> None:
    split = replace(ELSEWHERE[0], parts=("MIG-one", "MIG-other"))
    for named, stages in (
        (("GPU-one", "GPU-0"), {split.gpu_uuid: 0, "GPU-0": 1}),
        (("GPU-0", "GPU-one"), {"GPU-0": 0, split.gpu_uuid: 1}),
        (("GPU-one", "GPU-other"), {split.gpu_uuid: 1}),
    ):
        accounts = Accounts([HERE[0], split], "boot")
        accounts.open_engine(header(*named, pipeline=2))
        assert accounts.rank is not None
        assert accounts.rank.stages == stages


def test_stages_follow_each_other_from_machine_to_machine() -> None:
    spread = header("GPU-0", "GPU-1", tensor=2, pipeline=3)
    assert in_order(spread, ELSEWHERE) == ["GPU-0", "GPU-1", "GPU-2-0", "GPU-2-1", "GPU-3-0", "GPU-3-1"]
    accounts = Accounts([*HERE, *ELSEWHERE], "boot")
    accounts.open_engine(spread)
    assert accounts.rank is not None
    assert accounts.rank.stages == {
        "GPU-0": 0,
        "GPU-1": 0,
        "GPU-2-0": 1,
        "GPU-2-1": 1,
        "GPU-3-0": 2,
        "GPU-3-1": 2,
    }
