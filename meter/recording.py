"""Recordings: everything that went into the books of a meter, in the order in which it did, and what came of it.

A recording is one zip file: ``manifest.json`` says what was recorded where and by which versions, ``events.jsonl`` holds a line for each
call of `Accounts`. Those read no clock and draw no lots, so a replay gives every receipt and balance again, bit for bit, on any machine whose
linear algebra rounds alike. See docs/recordings.md for the format and for what a recording tells of its machine.

No text of a prompt or an answer ever reaches the meter. What clients may have chosen or may use, request ids and receipt ids, is replaced: a request
id by a keyed hash whose key is thrown away, a receipt id by a hash that its owner can make again with `receipt_name`.
"""

import hashlib
import json
import platform
import re
import secrets
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from etameter.accounts import Accounts, Batch
from etameter.devices import Device
from etameter.errors import EtameterError
from etameter.ledger import RequestRow, Resume, resume_text
from etameter.recorded_rows import RecordedRows
from etameter.records import SENSED_AS, Conditions, Finding, prefill_receipt_id_of, receipt_id_of, transfer_of
from etameter.serving.ring import (
    Dispatch,
    Done,
    Finish,
    Lost,
    Record,
    RingHeader,
)

FORMAT = "etameter-recording"
VERSION = 1

MANIFEST, EVENTS = "manifest.json", "events.jsonl"
_SIBLING = re.compile(r"^\d+_")
_OWN_DIGITS = 8
"""An engine's id ends in them, after a dash, the receipt's id, and what names its other half on another engine, if any does."""


def receipt_name(receipt_id: str) -> str:
    """Under which name a receipt stands in recordings: a hash, because the id itself is a key to the figures of a living meter."""
    return hashlib.sha256(receipt_id.encode()).hexdigest()[:32]


class RecordingError(EtameterError):
    """A recording can't be written or read."""


class Recorder(Accounts):
    """Accounts that also write down what they are told, and what they answer, to `file` until `close`.

    `about` goes into the manifest: the configuration, and whatever else helps to understand the figures.

    Raises:
        RecordingError: the file exists already, or can't be written.
    """

    def __init__(
        self,
        file: Path,
        devices: Sequence[Device],
        boot_id: str,
        resume: Resume | None = None,
        *,
        about: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(devices, boot_id, resume)
        self.file = file
        self._building = file.with_name(f"{file.name}.part")
        self._names = _Names(secrets.token_bytes(16))
        self._coded = RecordedRows()
        self._limits_w: dict[str, float | None] = {}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "versions": _versions(),
            "boot_id": boot_id,
            "devices": [asdict(device) for device in _numbered(devices)],
            "resume": None if resume is None else _without_paths(json.loads(resume_text(resume))),
            "about": dict(about or {}),
        }
        try:
            if file.exists():
                raise RecordingError(f"{file} exists already", "name another file: a recording is never written over")
            self._zip = zipfile.ZipFile(self._building, "w", zipfile.ZIP_DEFLATED)
            self._zip.writestr(MANIFEST, json.dumps(manifest, indent=1))
            self._events = TextIOWrapper(self._zip.open(EVENTS, "w", force_zip64=True), encoding="utf-8")
        except OSError as error:
            raise RecordingError(f"{file} can't be written ({error.strerror})", "name another file") from error

    def close(self, **health: object) -> None:
        """Write what is still open, and `health` of what was read, and put the finished file in its place."""
        self._write("open", [self._names.row(row) for row in self.open_rows()])
        self._write("end", health)
        self._events.close()
        self._zip.close()
        self._building.rename(self.file)

    def inherit(self, rows: Iterable[RequestRow]) -> None:
        rows = list(rows)
        self._write("inherit", [self._names.row(row) for row in rows])
        super().inherit(rows)

    def open_engine(self, header: RingHeader) -> None:
        details = {name: value for name, value in header.details.items() if name != "tokenizer"}  # it may be a path
        self._write("engine", {**asdict(header), "model": model_name(header.model), "pid": 0, "details": details})
        super().open_engine(header)

    def close_engine(self, now_ns: int) -> None:
        self._write("engine_lost", now_ns)
        super().close_engine(now_ns)

    def announce(self, receipt_id: str, arm: str, budgets: tuple[str, ...] | None = ()) -> None:
        self._write("arm", receipt_name(receipt_id), arm)
        super().announce(receipt_id, arm, budgets)

    def found(self, items: Iterable[Finding]) -> None:
        items = list(items)
        self._note_limits()
        for item in items:
            self._write(SENSED_AS[type(item)], *astuple(item))
        super().found(items)

    def changed(self, changes: Iterable[Conditions]) -> None:
        changes = list(changes)
        for change in changes:
            self._write("conditions", *astuple(change))
        super().changed(changes)

    def steps(self, records: Iterable[Record], read_ns: int) -> None:
        records = list(records)
        self._write("steps", read_ns, [self._record(record) for record in records])
        super().steps(records, read_ns)

    def rows_of(self, receipt_id: str) -> list[RequestRow]:
        self._write("figure", receipt_name(receipt_id))  # to ask is to open the request's account
        return super().rows_of(receipt_id)

    def settle(self) -> Batch | None:
        batch = super().settle()
        self._write("settle", None if batch is None else outcome(batch, self._names.row))
        return batch

    def _note_limits(self) -> None:
        for uuid, timeline in self.timelines().items():
            if self._limits_w.get(uuid) != timeline.power_limit_w:
                self._limits_w[uuid] = timeline.power_limit_w
                self._write("limit", uuid, timeline.power_limit_w)

    def _record(self, record: Record) -> list[object]:
        match record:
            case Dispatch():
                introductions = [
                    (each.number, self._names.engine_id(each.request_id), each.prompt_tokens, each.arrival_ns)
                    for each in record.introductions
                ]
                rows = self._coded.encode(record.rows)
                return ["dispatch", record.step_id, record.t_ns, record.padded_tokens, rows, introductions]
            case Finish():
                self._coded.forget(record.number)
                return ["finish", *record]
            case Done():
                return ["done", record.step_id, record.t_ns, record.accepted.tolist()]
            case Lost():
                return ["lost", *record]

    def _write(self, *event: object) -> None:
        json.dump(event, self._events, separators=(",", ":"))
        self._events.write("\n")


class _Names:
    """What stands for the names that a recording must not carry."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def engine_id(self, engine_request_id: str) -> str:
        """A name for an engine's request id that leaves its sample number and the receipt's place where they were."""
        sample = _SIBLING.match(engine_request_id)
        head = sample.group() if sample else ""
        return head + self.request_id(engine_request_id.removeprefix(head))

    def request_id(self, request_id: str) -> str:
        receipt_id = receipt_id_of(request_id)
        if receipt_id is None:
            return self._hash(request_id)
        prefill_id, transfer = prefill_receipt_id_of(request_id), transfer_of(request_id)
        part, other = transfer or ("", prefill_id)
        named = receipt_name(receipt_id) + ("" if other is None else part + receipt_name(other))
        head = request_id[: -(1 + len(named) + _OWN_DIGITS)]
        return f"{self._hash(head)}-{named}{request_id[-_OWN_DIGITS:]}"

    def row(self, row: RequestRow) -> list[object]:
        record = row.record
        named_by_number = record.request_id == f"{row.engine}#{row.number}"
        request_id = record.request_id if named_by_number else self.request_id(record.request_id)
        receipt_id = None if record.receipt_id is None else receipt_name(record.receipt_id)
        hidden = replace(record, request_id=request_id, receipt_id=receipt_id, model=model_name(record.model))
        return bare_row(replace(row, record=hidden, energy=replace(row.energy, request_id=request_id)))

    def _hash(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=8).hexdigest()


def model_name(model: str) -> str:
    """The model without the directories of the machine that it was loaded from."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".", "~")) else model


def _numbered(devices: Sequence[Device]) -> list[Device]:
    """Other machines by numbers: their addresses are nobody else's business."""
    names = {"": ""}
    for device in devices:
        names.setdefault(device.node, f"node-{len(names)}")
    return [replace(device, node=names[device.node]) for device in devices]


def _without_paths(resume: dict[str, Any]) -> dict[str, Any]:
    """Its fits under keys that name the models as the recording does (see `devices.fit_key`)."""
    fits = {}
    for key, fit in resume["coefficients"].items():
        gpu_uuid, *others = key.split("|")
        fits["|".join([gpu_uuid, *map(model_name, others)])] = fit
    return {**resume, "coefficients": fits}


def outcome(batch: Batch, written: Callable[[RequestRow], list[object]]) -> list[object]:
    """Balances and final receipts of a batch."""
    balances = [[*astuple(balance), source] for balance, source in batch.balances]
    return [balances, [written(row) for row in batch.rows if row.energy.settled]]


def bare_row(row: RequestRow) -> list[object]:
    return list(astuple(replace(row, curve=None)))[:-1]


def _versions() -> dict[str, str]:
    return {
        "etameter": version("etameter"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
    }
