"""What is told of a receipt: the energy of the requests behind it, and all that is known beside."""

from collections.abc import Callable, Sequence

from etameter.audits import Audits
from etameter.claims import Claims
from etameter.classifier import Classifier, by_time
from etameter.engine import Engine
from etameter.export.public_ids import PublicIds
from etameter.export.receipts import (
    NOT_MEASURED,
    RECEIPT_IDS,
    UNKNOWN_REQUEST,
    energy_object,
    eta_fields,
    footprint_fields,
    is_measured,
    is_receipt_id,
    transfer_fields,
    waste_fields,
)
from etameter.export.socket import Answer
from etameter.footprint import Footprint
from etameter.host import HostMeter
from etameter.ledger import Ledger, RequestRow
from etameter.records import prefill_receipt_id_of, transfer_of
from etameter.writing import Writing


class Figures:
    """Looks receipts up where they are: in the ledger, on their way there, or with an engine that isn't through with them."""

    def __init__(
        self,
        kind: str,
        ledger: Ledger,
        writing: Writing,
        engines: Sequence[Engine],
        catch_up: Callable[[], None],
        *,
        classifier: Classifier,
        audits: Audits,
        claims: Claims,
        public_ids: PublicIds,
        host: HostMeter,
        footprint: Footprint,
    ) -> None:
        """`catch_up` brings the engines up to now; `ledger` is only read."""
        self._kind = kind
        self._ledger = ledger
        self._writing = writing
        self._engines = engines
        self._catch_up = catch_up
        self._classifier = classifier
        self._audits = audits
        self._claims = claims
        self._public_ids = public_ids
        self._host = host
        self._footprint = footprint

    def named(self, name: str) -> Answer:
        """A receipt by its own id, or by the public one of a request that has ended: that tells nobody the receipt's own."""
        if is_receipt_id(name):
            return self.of(name)
        receipt_id = self._public_ids.receipt_of(name)
        figure, reason = (None, UNKNOWN_REQUEST) if receipt_id is None else self.of(receipt_id)
        return None if figure is None else {key: figure[key] for key in figure if key not in RECEIPT_IDS}, reason

    def of(self, receipt_id: str) -> Answer:
        """The energy of a response up to now, settled or not."""
        self._catch_up()
        of = self._rows(receipt_id)
        if not of:
            return None, UNKNOWN_REQUEST
        if not any(map(is_measured, of)):
            return None, NOT_MEASURED
        reading, deep = self._classifier.of(receipt_id), self._audits.of(receipt_id)
        group = of[0].record.model, of[0].record.arm
        eta = eta_fields(
            of, reading if isinstance(reading, str) else by_time(of, reading), self._audits.reliability(*group, "fast")
        )
        if deep is not None:
            eta["eta_deep"] = eta_fields(of, by_time(of, deep), self._audits.reliability(*group, "deep"))["eta"]
        waste = waste_fields(of, self._claims.of(receipt_id) or self._ledger.waste(receipt_id))
        footprint = footprint_fields(of, self._footprint)
        prefill_id = self._prefill_of(of[0].record.request_id)
        transfer = transfer_fields(of, prefill_id, [] if prefill_id is None else self._rows(prefill_id))
        return energy_object(of, self._kind) | transfer | footprint | self._host.of(receipt_id) | eta | waste, None

    def _prefill_of(self, request_id: str) -> str | None:
        """The receipt of the request that prefilled this one's prompt on another engine. A transfer that several say that they prefilled for tells of none."""
        transfer = transfer_of(request_id)
        if transfer is None or transfer[0] == "p":
            return prefill_receipt_id_of(request_id)
        found = self._ledger.prefilled(transfer[1])
        for engine in self._engines:
            found |= engine.accounts.prefilled(transfer[1])
        return found.pop() if len(found) == 1 else None

    def _rows(self, receipt_id: str) -> list[RequestRow]:
        """The requests behind a receipt, the latest that is known of each."""
        found = self._ledger.receipt(receipt_id)
        found += self._writing.rows_of(receipt_id)
        for engine in self._engines:
            found += engine.accounts.rows_of(receipt_id)
        return list({(row.engine, row.engine_started_ns, row.number): row for row in found}.values())
