"""What travels comes out as it went in, and what is no message is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.errors import ConfigError
from etameter.nodes.address import address_of, check_token
from etameter.nodes.wire import RemoteCounter, counter_of, is_proof, line, message_of, object_of, proof
from etameter.records import Conditions, Edge, Finding, ReadFailure, Reboot, Standstill

pytestmark = pytest.mark.unit

INSTANTS_NS = st.integers(0, 2**63)
FOUND = st.one_of(
    st.builds(
        Edge,
        st.just("GPU-0"),
        INSTANTS_NS,
        INSTANTS_NS,
        INSTANTS_NS,
        st.none() | st.floats(0, 1000),
        st.none() | INSTANTS_NS,
        st.none() | INSTANTS_NS,
    ),
    st.builds(ReadFailure, st.just("GPU-0"), INSTANTS_NS, st.sampled_from(["gpu_lost", "no_permission"])),
    st.builds(Standstill, st.just("GPU-0"), INSTANTS_NS),
    st.builds(Reboot, st.just("GPU-0"), INSTANTS_NS),
    st.builds(
        Conditions, st.just("GPU-0"), INSTANTS_NS, st.tuples(INSTANTS_NS, st.none()), st.none() | st.floats(1, 1000)
    ),
)


@given(FOUND)
def test_findings_come_out_as_they_went_in(found: Finding | Conditions) -> None:
    assert message_of(line(found)) == found


@pytest.mark.parametrize(
    "text", [b"", b"{", b"3", b"[]", b'["edge","GPU-0"]', b'["nonsense",1]', b"\xff", b"[" * 100_000]
)
def test_what_is_no_message_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # whatever it says
        message_of(text)


def test_a_finding_is_no_greeting() -> None:
    with pytest.raises(ValueError, match="not what is awaited here"):
        object_of(line(Standstill("GPU-0", 1)))


def test_a_counter_is_described_whole() -> None:
    told = {"gpu_uuid": "GPU-0", "parts": ["MIG-1"], "board_name": "H100", "scope": "gpu", "kind": "nvml"}
    counter = counter_of({**told, "source": "shared", "limit_w": 700.0})
    assert counter == RemoteCounter("GPU-0", ("MIG-1",), "H100", "gpu", "nvml", "shared", 700.0)
    assert counter.power_limit_w() == 700.0
    for wrong in (told, {**told, "source": "shared", "limit_w": None, "more": 1}, {}):
        with pytest.raises(ValueError, match="describes no counter"):
            counter_of(wrong)


def test_a_proof_is_of_one_token_one_role_and_both_challenges() -> None:
    challenges = "theirs", "ours"
    told = proof("token", "meter", challenges)
    assert is_proof(told, "token", "meter", challenges)
    assert not is_proof(told, "token", "sampler", challenges), "nor can it be thrown back"
    assert not is_proof(told, "another", "meter", challenges)
    assert not is_proof(told, "token", "meter", ("theirs", "others"))
    assert not is_proof(None, "token", "meter", challenges)
    assert not is_proof("\ud800", "token", "meter", ("\ud800", "ours")), "halves of characters are texts in JSON"


def test_an_address_is_a_host_and_a_port() -> None:
    assert address_of("10.0.0.2:9431") == ("10.0.0.2", 9431)
    for wrong in ("10.0.0.2", ":9431", "host:", "host:port", "host:65536"):
        with pytest.raises(ConfigError, match="is no address"):
            address_of(wrong)
    for wrong in ("10.0.0..2:9431", ".local:9431", f"{'a' * 64}.local:9431"):
        with pytest.raises(ConfigError, match="is no name of a machine"):
            address_of(wrong)


def test_only_the_loopback_address_needs_no_token() -> None:
    check_token("127.0.0.1", "")
    check_token("0.0.0.0", "token")  # nobody listens
    with pytest.raises(ConfigError, match="is reached by others than this machine"):
        check_token("0.0.0.0", "")
