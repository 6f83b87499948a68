"""A recording gives back every receipt and balance bit for bit, and none of the names that it must not carry."""

import inspect
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from etameter import playback, recording
from etameter.accounts import Accounts, Batch
from etameter.ledger import RequestRow, Resume
from etameter.playback import OF_DEMO, replay
from etameter.recording import Recorder, RecordingError, receipt_name
from etameter.records import (
    Conditions,
    Edge,
    Finding,
    ReadFailure,
    Reboot,
    Standstill,
    prefill_receipt_id_of,
    receipt_id_of,
    transfer_of,
)
from etameter.serving.ring import Dispatch, Done, Introduction, Lost, Record, Row, pair_table, row_table
from tests.meter.test_accounts import MS, Books, Engine, device, feed, header

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "data" / "recording-v1.zip"
GOLDEN_J = 3380.624
RECEIPT = "0123456789abcdef" * 2


def busy(seed: int = 7, requests: int = 150) -> Engine:
    """An engine whose clients choose telling names, one of them with two samples under one receipt."""
    engine = Engine(seed)
    engine.idle(300 * MS)
    engine.run([40 + 13 * (n % 17) for n in range(requests)], [5 + 7 * (n % 11) for n in range(requests)], 6)
    engine.records = [named(record) for record in engine.records]
    return engine


def named(record: Record) -> Record:
    if not isinstance(record, Dispatch):
        return record
    return record._replace(introductions=tuple(each._replace(request_id=name(each)) for each in record.introductions))


def name(each: Introduction) -> str:
    if each.number in {3, 4}:
        return f"{each.number - 3}_chatcmpl-alice@example.org-{RECEIPT}00000000"
    return f"secret-of-bob-{each.number}"


def record_all(file: Path, engine: Engine) -> Books:
    """A meter's life with everything in it: a restart of meter and engine, a lost GPU, a reset, another cap, lost records, drafts."""
    books = Books()
    edges: list[Finding] = [
        replace(edge, energy_mj=edge.energy_mj - 5_000_000 * (edge.t_ns > 4_000 * MS)) for edge in engine.edges("GPU-0")
    ]
    edges.insert(30, ReadFailure("GPU-0", 3_050 * MS, "gpu_lost"))
    edges.insert(50, Standstill("GPU-0", edges[49].t_ns + 2 * MS))
    reset = next(index for index, each in enumerate(edges) if each.t_ns > 4_000 * MS)
    edges.insert(reset, Reboot("GPU-0", edges[reset].t_ns - 1))
    stale = Resume("an earlier boot", 5, {"GPU-0": 6}, (Edge("GPU-0", 6, 1, 7),), {"GPU-0": ([1.0] * 6, [[0.1] * 6])})
    recorder = Recorder(file, [device()], "boot", stale, about={"counter": "nvml"})
    recorder.timelines()["GPU-0"].power_limit_w = 700.0
    recorder.inherit([])
    recorder.announce(RECEIPT, "entrace")
    recorder.open_engine(replace(header(), model="/home/alice/models/m"))
    feed(recorder, books, engine, edges)
    recorder.rows_of(RECEIPT)
    recorder.changed([Conditions("GPU-0", engine.now_ns, (350_000, None, ("a", 1)))])
    last = engine.edges("GPU-0")[-1]
    now_ns = last.t_ns + 20 * MS
    row: Row = (900, 10, 0, 0, 0, 0, 0, 0, 0)
    told = (Introduction(900, "unfinished", 10, now_ns),)
    recorder.steps(
        [Lost(3), Dispatch(9001, now_ns, 0, row_table([row]), told), Done(9001, now_ns + 9 * MS)], now_ns + 9 * MS
    )
    drafts: Row = (900, 0, 1, 0, 0, 3, 0, 10, 0)
    then_ns = now_ns + 10 * MS
    recorder.steps(
        [Dispatch(9002, then_ns, 0, row_table([drafts]), ()), Done(9002, then_ns + 8 * MS, pair_table([(900, 2)]))],
        then_ns + 9 * MS,
    )
    recorder.found([Edge("GPU-0", last.t_ns + 100 * MS, 2 * MS, last.energy_mj - 4_990_000)])
    recorder.steps([], then_ns + 2_500 * MS)
    books.write(recorder.settle())
    recorder.close_engine(then_ns + 2_600 * MS)
    recorder.open_engine(header(then_ns + 2_700 * MS))
    books.write(recorder.settle())
    recorder.close(polls=123)
    return books


def figures(row: RequestRow) -> tuple[object, ...]:
    energy, record = row.energy, row.record
    return (
        row.number,
        *(energy.prompt_j, energy.output_j, energy.marginal_j, energy.recomputed_j, energy.draft_waste_j),
        *(energy.avoided_j, energy.error_j, energy.settled, energy.method, energy.source),
        *(record.arm, record.arrival_ns, record.first_token_ns, record.finished_ns, record.output_tokens),
        *(row.prefill_tokens, row.decode_tokens, record.finish_reason),
    )


def test_every_receipt_and_balance_comes_out_again_bit_for_bit(tmp_path: Path) -> None:
    engine = busy()
    books = record_all(tmp_path / "r.zip", engine)
    again = replay(tmp_path / "r.zip")
    assert again.identical
    assert again.outcomes > 20
    last = {(row.engine_started_ns, row.number): row for batch in books.batches for row in batch.rows}
    assert [figures(row) for row in again.rows] == [figures(row) for row in last.values()]
    assert all(row.energy.settled for row in last.values())
    assert again.balances == [balance for batch in books.batches for balance, _ in batch.balances]
    causes = {cause for cause, joules in again.unassigned_j.items() if joules > 0}
    assert {"readings_missing", "steps_missing", "idle"} <= causes
    assert sum(balance.unattributed_j_by_cause.get("reset") is not None for balance in again.balances) == 1
    assert {row.record.finish_reason for row in again.rows} == {"length", "engine_lost"}
    assert again.measured_j == pytest.approx(again.requests_j + math.fsum(again.unassigned_j.values()), rel=1e-9)
    written = events(tmp_path / "r.zip")
    assert '["limit","GPU-0",700.0]' in written
    assert any(line.endswith('[350000,null,["a",1]],null]') for line in written)
    told = {json.loads(line)[0] for line in written}
    assert told >= {"arm", "conditions", "failure", "figure", "inherit", "open", "reboot"}
    assert (again.health, again.manifest["about"]) == ({"polls": 123}, {"counter": "nvml"})


def events(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as bundle:
        return bundle.read("events.jsonl").decode().splitlines()


def test_names_that_clients_chose_and_receipts_are_replaced(tmp_path: Path) -> None:
    record_all(tmp_path / "r.zip", busy())
    with zipfile.ZipFile(tmp_path / "r.zip") as bundle:
        content = b"".join(bundle.read(each) for each in bundle.namelist()).decode()
    for word in ("alice", "bob", "secret", "example", "unfinished", RECEIPT, "/home"):
        assert word not in content
    again = replay(tmp_path / "r.zip")
    (two_samples,) = [row for row in again.rows if row.record.receipt_id == receipt_name(RECEIPT)]
    assert two_samples.record.arm == "entrace"
    assert {row.record.model for row in again.rows} == {"m"}
    assert len({row.record.request_id for row in again.rows}) == len(again.rows)


def test_a_restarted_meter_is_recorded_from_where_it_goes_on(tmp_path: Path) -> None:
    engine, books = busy(), Books()
    edges = engine.edges("GPU-0")
    middle_ns = 4_020 * MS
    at_home = replace(header(), model="/home/alice/models/m")
    first = Accounts([device()], "boot")
    first.open_engine(at_home)
    first.found([edge for edge in edges if edge.t_ns <= middle_ns])
    first.steps([record for record in engine.records if at(record) <= middle_ns], middle_ns)
    books.write(first.settle())
    recorder = Recorder(tmp_path / "r.zip", [device()], "boot", books.batches[-1].resume)
    recorder.inherit([row for row in books.rows.values() if not row.energy.settled])
    recorder.open_engine(at_home)
    recorder.found([edge for edge in edges if edge.t_ns > middle_ns])
    recorder.steps(engine.records, engine.now_ns + 1_000 * MS)
    batch = recorder.settle()
    recorder.close()
    assert batch is not None
    again = replay(tmp_path / "r.zip")
    assert again.identical
    (fit,) = again.manifest["resume"]["coefficients"]
    assert fit.startswith("GPU-0|m|bfloat16"), "the fit that it starts with, without the model's directories"
    assert [figures(row) for row in again.rows] == [figures(row) for row in batch.rows]


def at(record: Record) -> int:
    assert not isinstance(record, Lost)
    return record.t_ns


def test_figures_that_come_out_otherwise_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_all(tmp_path / "r.zip", busy())
    settle = Accounts.settle

    def dearer(factor: float) -> Callable[[Accounts], Batch | None]:
        def settled(accounts: Accounts) -> Batch | None:
            batch = settle(accounts)
            if batch is None:
                return None
            output_j = 17  # of a row's values
            dear = [(*each[:output_j], each[output_j] * factor, *each[output_j + 1 :]) for each in batch.requests]
            return replace(batch, requests=dear)

        return settled

    monkeypatch.setattr(Accounts, "settle", dearer(1 + 1e-12))
    rounded = replay(tmp_path / "r.zip")
    assert not rounded.identical
    assert 0 < rounded.worst < playback.SAME
    monkeypatch.setattr(Accounts, "settle", dearer(1.01))
    assert replay(tmp_path / "r.zip").worst == pytest.approx(0.01, rel=0.02)


def test_everything_that_goes_into_accounts_is_recorded() -> None:
    """A new input of `Accounts` must be recorded too, or replays differ: add it to `Recorder` and to this list."""
    inputs = {"inherit", "open_engine", "close_engine", "announce", "found", "changed", "steps", "settle", "rows_of"}
    reads = {"devices", "source", "costs", "timelines", "settled_until_ns", "open_rows", "running", "open_requests"}
    reads |= {"prefilled"}
    begins = {
        "know",
        "limited",
    }  # limits are recorded with what changes; what a meter comes to know later is in no recording
    assert {name for name in vars(Accounts) if not name.startswith("_")} == inputs | reads | begins
    assert inputs <= set(vars(Recorder))
    assert list(inspect.signature(Accounts).parameters) == ["devices", "boot_id", "resume"]


def test_a_recording_of_version_1_loads() -> None:
    """Written by an early etameter: what the figures are may have changed since, but all that was spent must be there."""
    again = replay(GOLDEN)
    assert again.manifest["version"] == 1
    assert len(again.rows) == 150
    assert again.manifest["resume"]["boot_id"] == "an earlier boot"
    assert again.measured_j == pytest.approx(GOLDEN_J, rel=1e-12)
    assert again.requests_j + math.fsum(again.unassigned_j.values()) == pytest.approx(GOLDEN_J, rel=1e-9)
    assert again.headers[0].engine == "engine-0"


def test_the_shipped_recording_is_of_the_demo_and_says_that_it_is_simulated() -> None:
    again = replay(OF_DEMO)
    assert len(again.rows) == 17
    assert {row.energy.source for row in again.rows} == {"simulated"}
    assert again.requests_j + math.fsum(again.unassigned_j.values()) == pytest.approx(again.measured_j, rel=1e-9)
    assert "simulated" in playback.report(again, None)


def rewritten(source: Path, target: Path, manifest: dict[str, object] | None = None, events: str | None = None) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        told = json.loads(old.read("manifest.json")) | (manifest or {})
        new.writestr("manifest.json", json.dumps(told))
        new.writestr("events.jsonl", old.read("events.jsonl") if events is None else events)
    return target


def test_other_files_and_later_versions_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "r.zip"
    recorder = Recorder(good, [device()], "boot")
    recorder.close()
    bad = {
        "later": rewritten(good, tmp_path / "a.zip", {"version": 99}),
        "no recording": rewritten(good, tmp_path / "b.zip", {"format": "holiday photographs"}),
        "can't be understood": rewritten(good, tmp_path / "c.zip", events='["edge"]\n'),
        "unknown event": rewritten(good, tmp_path / "d.zip", events='["dance", 1]\n'),
        "not JSON": rewritten(good, tmp_path / "e.zip", events="{"),
    }
    (tmp_path / "f.zip").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "g.zip").write_bytes(good.read_bytes()[:-40])
    for file in (*bad.values(), tmp_path / "f.zip", tmp_path / "g.zip", tmp_path / "none.zip", tmp_path):
        with pytest.raises(RecordingError):
            replay(file)
    with pytest.raises(RecordingError, match="version 99: replay it with a later etameter"):
        replay(bad["later"])


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "r.zip").write_text("mine")
    with pytest.raises(RecordingError, match="exists already"):
        Recorder(tmp_path / "r.zip", [device()], "boot")
    assert [each.name for each in tmp_path.iterdir()] == ["r.zip"]
    with pytest.raises(RecordingError, match="can't be written"):
        Recorder(tmp_path / "nowhere" / "r.zip", [device()], "boot")


def test_a_step_of_many_requests_takes_few_bytes(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.zip", [device()], "boot")
    recorder.open_engine(header())
    told = tuple(Introduction(number, f"r{number}", 100, 0) for number in range(256))
    steps = 200
    for step in range(steps):
        rows: tuple[Row, ...] = tuple(
            (n, 0, 1, 0, 0, 0, 0, 99 + step + n, 0) if step else (n, 100 + n, 0, 0, 0, 0, 0, 0, 0) for n in range(256)
        )
        start_ns = step * 40 * MS
        done = Done(step, start_ns + 39 * MS)
        recorder.steps([Dispatch(step, start_ns, 256, row_table(rows), () if step else told), done], start_ns + 40 * MS)
    recorder.close()
    assert (tmp_path / "r.zip").stat().st_size / steps < 120


REPLAY_WITHOUT = """
import sys
for absent in ("fcntl", "pynvml", "vllm", "aiohttp", "resource"):
    sys.modules[absent] = None
from etameter.cli import main
main(["replay", sys.argv[1], "--json"])
"""


def test_a_replay_needs_neither_nvml_nor_vllm_nor_linux(tmp_path: Path) -> None:
    record_all(tmp_path / "r.zip", busy())
    command = [sys.executable, "-c", REPLAY_WITHOUT, str(tmp_path / "r.zip")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["identical"] is True
    assert len(told["receipts"]) == len(replay(tmp_path / "r.zip").rows)


def test_the_receipt_of_a_prefill_elsewhere_is_replaced_too() -> None:
    own, other = "a1" * 16, "b2" * 16
    hidden = recording._Names(b"key").engine_id(f"2_chatcmpl-alice-{own}{other}01234567")
    assert (receipt_id_of(hidden), prefill_receipt_id_of(hidden)) == (receipt_name(own), receipt_name(other))
    assert hidden.startswith("2_")
    assert hidden.endswith("01234567")
    assert not any(word in hidden for word in ("alice", own, other))


def test_the_name_of_a_transfer_is_replaced_by_one_that_both_parts_share() -> None:
    names, transfer = recording._Names(b"key"), "b2" * 16
    hidden = {part: names.engine_id(f"chatcmpl-alice-{'a1' * 16}{part}{transfer}01234567") for part in "pd"}
    assert {part: transfer_of(engine_id) for part, engine_id in hidden.items()} == {
        part: (part, receipt_name(transfer)) for part in "pd"
    }
    assert not any(word in engine_id for engine_id in hidden.values() for word in ("alice", "a1" * 16, transfer))


def test_other_machines_have_numbers(tmp_path: Path) -> None:
    nodes = ["", "10.0.0.2:9431", "10.0.0.3:9431", "10.0.0.2:9431"]
    devices = [replace(device(f"GPU-{gpu}"), node=node) for gpu, node in enumerate(nodes)]
    Recorder(tmp_path / "r.zip", devices, "boot").close()
    with zipfile.ZipFile(tmp_path / "r.zip") as bundle:
        told = json.loads(bundle.read("manifest.json"))["devices"]
    assert [each["node"] for each in told] == ["", "node-1", "node-2", "node-1"]
