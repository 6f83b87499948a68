import gc
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.errors import EngineError
from etameter.serving.ring import (
    HEADER_BYTES,
    KEYFRAME_STEPS,
    Dispatch,
    Done,
    Finish,
    Introduction,
    Lost,
    RingReader,
    RingWriter,
    Row,
)
from tests.meter.test_daemon import until

pytestmark = pytest.mark.unit


def row(number: int, prefill: int = 0, decode: int = 1, context: int = 0) -> Row:
    return (number, prefill, decode, 0, 0, 0, 0, context, 0)


def writer(path: Path, capacity_bytes: int = 1 << 16) -> RingWriter:
    return RingWriter(
        path, engine="engine-0", model="m", dtype="bfloat16", gpu_uuids=["GPU-a"], capacity_bytes=capacity_bytes
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    reader = RingReader(tmp_path / "ring")
    number = ring.open_request("chatcmpl-é", prompt_tokens=7, arrival_ns=3)
    ring.dispatch(1, 10, [row(number, prefill=7, decode=0)], padded_tokens=8)
    ring.done(1, 20, [(number, 2)])
    ring.finish(number, 21, output_tokens=1, reason="length")
    dispatch, done, finish = reader.poll()
    assert isinstance(dispatch, Dispatch)
    assert isinstance(done, Done)
    assert (dispatch.step_id, dispatch.t_ns, dispatch.padded_tokens) == (1, 10, 8)
    assert dispatch.introductions == (Introduction(number, "chatcmpl-é", 7, 3),)
    assert dispatch.rows.tolist() == [list(row(number, 7, 0))]
    assert (done.step_id, done.t_ns, done.accepted.tolist()) == (1, 20, [[number, 2]])
    assert finish == Finish(number, 21, 1, "length")
    assert reader.poll() == []
    assert (reader.header.engine, reader.header.gpu_uuids) == ("engine-0", ("GPU-a",))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(1, 9))
def test_a_reader_that_keeps_up_loses_nothing_over_any_number_of_wraps(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], every: int
) -> None:
    path = tmp_path_factory.mktemp("ring") / "ring"
    ring, seen = writer(path, capacity_bytes=32768), []
    reader = RingReader(path)
    for step, batch in enumerate(batches):
        ring.dispatch(step, step, [row(number) for number in range(0)] if batch == 0 else [row(0)] * batch)
        if step % every == 0:
            seen += [record.step_id for record in reader.poll() if isinstance(record, Dispatch)]
    seen += [record.step_id for record in reader.poll() if isinstance(record, Dispatch)]
    assert seen == list(range(len(batches)))
    assert (reader.lost_records, reader.torn_records) == (0, 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_requests_that_end_together_are_told_one_by_one_over_any_number_of_wraps(
    tmp_path_factory: pytest.TempPathFactory, together: list[int]
) -> None:
    path = tmp_path_factory.mktemp("ring") / "ring"
    ring, seen, expected = writer(path, capacity_bytes=8192), [], []
    reader = RingReader(path)
    for t_ns, count in enumerate(together):
        ends = [(number, number + 7, "a" * (number % 20)) for number in range(count)]
        ring.finish_all(t_ns, ends)
        ring.done(t_ns, t_ns)
        expected += [*(Finish(number, t_ns, tokens, reason) for number, tokens, reason in ends), Done(t_ns, t_ns)]
        seen += reader.poll()
    assert seen == expected
    ring.finish_all(0, [(ring.open_request("never ran", 1, 1), 0, "abort")])
    assert reader.poll() == []


def test_an_overrun_is_counted_and_reading_goes_on(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring", capacity_bytes=4096)
    reader = RingReader(tmp_path / "ring")
    for step in range(1000):
        ring.done(step, step)
    assert reader.poll() == []
    ring.done(1000, 1000)
    assert reader.poll() == [Lost(1000), Done(1000, 1000)]
    assert reader.lost_records == 1000


def steps(ring: RingWriter, numbers: range, first: int = 0) -> None:
    """Steady decode of all requests, as the hook writes it."""
    for step in numbers:
        if ring.keyframe_due:
            ring.dispatch(step, step, [row(number, context=step) for number in range(first, first + 3)])
        else:
            ring.advance(step, step)


def test_a_step_is_told_by_what_changes(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    a, b, c = (ring.open_request(name, 5, 1) for name in "abc")
    ring.dispatch(1, 1, [row(a, context=9), (b, 5, 0, 3, 2, 0, 7, 0, 4)], padded_tokens=8)
    ring.advance(2, 2, padded_tokens=2)
    ring.advance(3, 3, [row(c, prefill=5, decode=0)], [a])
    ring.advance(4, 4, [row(b, prefill=20, decode=0)])
    ring.advance(5, 5)
    told = [record for record in RingReader(tmp_path / "ring").poll() if isinstance(record, Dispatch)]
    assert [(each.step_id, each.t_ns, each.padded_tokens) for each in told] == [
        (1, 1, 8),
        (2, 2, 2),
        (3, 3, 0),
        (4, 4, 0),
        (5, 5, 0),
    ]
    after = [[tuple(line) for line in each.rows.tolist()] for each in told[1:]]
    assert after == [
        [(a, 0, 1, 0, 0, 0, 0, 10, 0), (b, 0, 1, 0, 0, 0, 0, 5, 4)],
        [(b, 0, 1, 0, 0, 0, 0, 6, 4), row(c, prefill=5, decode=0)],
        [row(c, context=5), row(b, prefill=20, decode=0)],
        [row(c, context=6), row(b, context=20)],
    ]  # fmt: skip
    assert [len(each.introductions) for each in told] == [3, 0, 0, 0, 0]


def test_the_first_step_is_told_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call dispatch"):
        writer(tmp_path / "ring").advance(1, 1)


@given(st.data())
def test_what_is_told_by_changes_is_what_was_told_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("ring") / "ring"
    ring = writer(path)
    now: dict[int, Row] = {}
    expected = []
    for step in range(data.draw(st.integers(1, 30))):
        gone = data.draw(st.sets(st.sampled_from(sorted(now)))) if now else set()
        changed = data.draw(st.dictionaries(st.integers(0, 9), st.integers(1, 50), max_size=3))
        rows = [row(number, prefill=tokens, decode=0, context=step) for number, tokens in changed.items()]
        going_on = {
            number: row(number, context=old[7] + old[1] + old[2]) for number, old in now.items() if number not in gone
        }
        now = going_on | {each[0]: each for each in rows}
        if step == 0 or data.draw(st.booleans()):
            ring.dispatch(step, step, list(now.values()))
        else:
            ring.advance(step, step, rows, sorted(gone))
        expected.append(sorted(now.values()))
    told = [record for record in RingReader(path).poll() if isinstance(record, Dispatch)]
    assert [sorted(map(tuple, each.rows.tolist())) for each in told] == expected


def test_a_late_reader_starts_with_the_oldest_of_the_last_whole_steps(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    steps(ring, range(20 * KEYFRAME_STEPS))
    late = [record for record in RingReader(tmp_path / "ring").poll() if isinstance(record, Dispatch)]
    assert [record.step_id for record in late] == list(range(late[0].step_id, 20 * KEYFRAME_STEPS))
    assert late[0].step_id % KEYFRAME_STEPS == 0
    assert 2 * KEYFRAME_STEPS <= len(late) <= 16 * KEYFRAME_STEPS
    assert all(record.rows[:, 7].tolist() == [record.step_id] * 3 for record in late)


def test_a_reader_that_was_overrun_goes_on_with_the_oldest_whole_step_there_is(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring", capacity_bytes=1 << 15)
    reader = RingReader(tmp_path / "ring")
    steps(ring, range(3000))
    lost, first, *rest = reader.poll()
    assert isinstance(lost, Lost)
    assert isinstance(first, Dispatch)
    assert lost.records == reader.lost_records == first.step_id == 3000 - 1 - len(rest)
    assert first.step_id % KEYFRAME_STEPS == 0
    assert all(each.rows[:, 7].tolist() == [each.step_id] * 3 for each in rest if isinstance(each, Dispatch))


def test_a_reader_that_keeps_up_loses_nothing_where_the_area_holds_one_whole_step_at_most(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring", capacity_bytes=1 << 15)
    reader = RingReader(tmp_path / "ring")
    told: list[int] = []
    for step in range(18 * KEYFRAME_STEPS):  # all positions are in use, and all but the last overwritten
        ring.dispatch(step, step, [row(number, context=step) for number in range(3)])
        if step % 10 == 9:
            told += [record.step_id for record in reader.poll() if isinstance(record, Dispatch)]
    assert reader.lost_records == 0
    assert told == list(range(18 * KEYFRAME_STEPS - 8))


def test_steps_told_by_one_that_is_torn_are_lost_up_to_the_next_whole_one(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    steps(ring, range(2))
    with (tmp_path / "ring").open("r+b") as file:
        file.seek(HEADER_BYTES + 16)
        file.write(struct.pack("<Q", 999))
    steps(ring, range(2, KEYFRAME_STEPS + 2))
    reader = RingReader(tmp_path / "ring")
    told = reader.poll()
    assert told[:-2] == [Lost(1)] * KEYFRAME_STEPS
    assert [each.step_id for each in told[-2:] if isinstance(each, Dispatch)] == [KEYFRAME_STEPS, KEYFRAME_STEPS + 1]
    assert (reader.torn_records, reader.lost_records) == (1, KEYFRAME_STEPS - 1)


def test_a_ring_of_version_1_is_read(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    steps(ring, range(1))
    ring.done(0, 5)
    with (tmp_path / "ring").open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 1))
        file.seek(40)
        file.write(struct.pack("<Q", 1))  # the first record in the first eighth
        file.seek(8 * 496)
        file.write(bytes(8 * 16))
    first, done = RingReader(tmp_path / "ring").poll()
    assert isinstance(first, Dispatch)
    assert (first.step_id, done) == (0, Done(0, 5))


def test_a_torn_record_is_counted_and_the_next_one_is_read(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    ring.done(1, 11)
    ring.done(2, 22)
    with (tmp_path / "ring").open("r+b") as file:
        file.seek(HEADER_BYTES + 16)
        file.write(struct.pack("<Q", 999))
    reader = RingReader(tmp_path / "ring")
    assert reader.poll() == [Lost(1), Done(2, 22)]
    assert reader.torn_records == 1


def test_a_late_reader_learns_the_ids_at_the_next_keyframe(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    number = ring.open_request("a", 1, 1)
    ring.dispatch(0, 0, [row(number)])
    late = RingReader(tmp_path / "ring", cursor=RingReader(tmp_path / "ring").cursor)
    late.poll()
    for step in range(1, KEYFRAME_STEPS + 1):
        ring.dispatch(step, step, [row(number)])
    introductions = [record.introductions for record in late.poll() if isinstance(record, Dispatch)]
    assert introductions[:-1] == [()] * (KEYFRAME_STEPS - 1)
    assert introductions[-1] == (Introduction(number, "a", 1, 1),)


def test_a_second_engine_replaces_the_ring_and_the_old_one_can_be_drained(tmp_path: Path) -> None:
    first = writer(tmp_path / "ring")
    reader = RingReader(tmp_path / "ring")
    first.done(1, 1)
    assert not reader.replaced()
    writer(tmp_path / "ring")
    assert reader.replaced()
    assert reader.poll() == [Done(1, 1)]


def test_a_killed_writer_leaves_all_it_had_committed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from etameter.serving.ring import RingWriter\n"
        "ring = RingWriter(Path(sys.argv[1]), engine='e', model='m', dtype='d')\n"
        "for step in range(5): ring.done(step, step)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "ring")], check=False)
    assert RingReader(tmp_path / "ring").poll() == [Done(step, step) for step in range(5)]


def test_a_writer_is_known_to_live_by_its_lock_until_it_closes_or_is_replaced_and_closes(tmp_path: Path) -> None:
    first = writer(tmp_path / "ring")
    reader, another = RingReader(tmp_path / "ring"), RingReader(tmp_path / "ring")
    assert not reader.abandoned()
    assert not another.abandoned(), "who looks holds nothing"
    second = writer(tmp_path / "ring")
    assert not reader.abandoned(), "the replaced one still has its own"
    first.close()
    assert reader.abandoned()
    assert reader.abandoned(), "who looks changes nothing"
    assert another.abandoned()
    assert not RingReader(tmp_path / "ring").abandoned()
    second.close()


@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="only root may make PID namespaces")
def test_a_writer_is_known_to_live_from_another_pid_namespace_until_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from etameter.serving.ring import RingWriter\n"
        "ring = RingWriter(Path(sys.argv[1]), engine='e', model='m', dtype='d')\n"
        "print(flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code, str(tmp_path / "ring")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("no PID namespace can be made here")
        reader = RingReader(tmp_path / "ring")
        assert reader.header.pid == 1, "by which nobody out here knows it"
        assert not reader.abandoned()
        process.kill()
    until(reader.abandoned)


def test_a_reader_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    (tmp_path / "other").write_bytes(b"x" * 8192)
    before = len(list(Path("/proc/self/fd").iterdir()))
    RingReader(ring.path).close()
    with pytest.raises(EngineError):
        RingReader(tmp_path / "other")
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_finish_of_a_request_that_never_ran_is_not_written(tmp_path: Path) -> None:
    ring = writer(tmp_path / "ring")
    ring.finish(ring.open_request("a", 1, 1), 5, 0, "abort")
    assert RingReader(tmp_path / "ring").poll() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is no ring"), (b"x" * HEADER_BYTES, "is no ring"), (b"ETARING\0\x09" + b"\0" * HEADER_BYTES, "version 9")],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ring").write_bytes(content)
    with pytest.raises(EngineError, match=message):
        RingReader(tmp_path / "ring")


@pytest.mark.parametrize("character", ["x", "é", "漢", "\ud800"])
def test_a_long_id_keeps_its_end_whatever_is_cut(tmp_path: Path, character: str) -> None:
    ring = writer(tmp_path / "ring")
    end = "-" + "0123456789abcdef" * 2 + "deadbeef"
    number = ring.open_request(character * 5000 + end, 1, 1)
    ring.dispatch(0, 0, [row(number)])
    ring.finish(number, 1, 1, character * 63)
    reader = RingReader(tmp_path / "ring")
    dispatch, finish = reader.poll()
    assert isinstance(dispatch, Dispatch)
    assert isinstance(finish, Finish)
    assert dispatch.introductions[0].request_id.endswith(end)
    assert finish.reason.startswith(character.encode(errors="replace").decode())
    assert reader.torn_records == 0


def _header_of(path: Path, **changes: object) -> None:
    """Writes a ring whose header is another than a writer's."""
    writer(path).close()
    with path.open("r+b") as file:
        file.seek(128)
        (length,) = struct.unpack("<I", file.read(4))
        about = json.loads(file.read(length)) | changes
        text = json.dumps({name: value for name, value in about.items() if value is not None}).encode()
        file.seek(128)
        file.write(struct.pack("<I", len(text)) + text)


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "7"},
        {"created_ns": 1.5},
        {"model": 7},
        {"gpu_uuids": 7},
        {"gpu_uuids": [7]},
        {"details": []},
        {"engine": None},
        {"more": 1},
    ],
)
def test_a_header_that_no_writer_writes_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    _header_of(tmp_path / "ring", **changes)
    with pytest.raises(EngineError, match="is no ring of steps: name the file"):
        RingReader(tmp_path / "ring")


def test_a_header_that_is_no_json_and_a_ring_of_another_size_are_refused(tmp_path: Path) -> None:
    for name, at, nonsense in (
        ("a", 132, b"{,"),
        ("b", 16, struct.pack("<Q", 0)),
        ("c", 16, struct.pack("<Q", 1 << 20)),
    ):
        writer(tmp_path / name).close()
        with (tmp_path / name).open("r+b") as file:
            file.seek(at)
            file.write(nonsense)
        with pytest.raises(EngineError, match="is no ring of steps: name the file"):
            RingReader(tmp_path / name)


def test_what_can_not_be_read_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"can't be read \(Is a directory\): name the file"):
        RingReader(tmp_path)
    with pytest.raises(FileNotFoundError):
        RingReader(tmp_path / "ring")
    writer(tmp_path / "ring").close()
    code = (
        "import os, sys; from pathlib import Path; from etameter.errors import EngineError; "
        "from etameter.serving.ring import RingReader\n"
        "os.chmod(sys.argv[1], 0)\n"
        "if os.geteuid() == 0: [os.chmod(folder, 0o755) for folder in Path(sys.argv[1]).parents[:3]]; os.setuid(65534)\n"
        "try: RingReader(Path(sys.argv[1]))\n"
        "except EngineError as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ring")], capture_output=True, text=True, check=True
    )
    assert "can't be read (Permission denied)" in told.stdout


def test_bad_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="capacity_bytes is 100"):
        writer(tmp_path / "ring", capacity_bytes=100)
    with pytest.raises(ValueError, match="does not fit"):
        writer(tmp_path / "ring", capacity_bytes=4096).dispatch(1, 1, [row(0)] * 100)
    with pytest.raises(ValueError, match="shorten `details`"):
        RingWriter(tmp_path / "ring", engine="e" * 5000, model="m", dtype="d")
