"""No client can enlarge the sets that label values come from."""

import pytest

from etameter.export.bounded import MAX_GROUPS, Bounded, Groups

pytestmark = pytest.mark.unit


def test_what_there_is_no_room_for_is_other() -> None:
    names = Bounded(2, ["known"])
    assert [names.admit(name) for name in ("known", "new", "late", "new")] == ["known", "new", "other", "new"]
    assert names.label("late") == "other"


@pytest.mark.parametrize("name", ["", 'm"} 1\n', "two words", "x" * 256, "\ud800", "-m"])
def test_what_is_no_word_is_other(name: str) -> None:
    assert Bounded(8).admit(name) == "other"


@pytest.mark.parametrize("name", ["org/model-7B", "/models/small", "GPU-5e1f6a0c", "m:adapter@2", "x" * 255])
def test_names_of_devices_engines_and_models_are_words(name: str) -> None:
    assert Bounded(8).admit(name) == name


def test_a_model_that_nobody_serves_and_an_arm_that_nobody_configured_are_other() -> None:
    groups = Groups(["m"], ["entrace"])
    assert groups.labels("m", "entrace") == ("m", "entrace")
    assert groups.labels("n", "entrace") == ("other", "entrace")
    assert groups.labels("m", "mine") == ("m", "other")
    assert groups.labels("m", "unlabelled") == ("m", "unlabelled")
    groups.know_model("n")
    assert groups.labels("n", "entrace") == ("n", "entrace")


def test_pairs_that_come_late_are_other_in_both_and_the_early_ones_stay() -> None:
    arms = [f"arm-{number}" for number in range(MAX_GROUPS + 1)]
    groups = Groups(["m"], arms)
    early = [groups.labels("m", arm) for arm in arms[: MAX_GROUPS - 1]]  # one is taken by what is other in both
    assert early == [("m", arm) for arm in arms[: MAX_GROUPS - 1]]
    assert {groups.labels("m", arm) for arm in arms[MAX_GROUPS - 1 :]} == {("other", "other")}
    assert groups.labels("m", "arm-0") == ("m", "arm-0")
