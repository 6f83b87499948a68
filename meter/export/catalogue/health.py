"""Whether the meter itself keeps up."""

from etameter.export.catalogue.declaration import Declaration

BUILD_INFO = Declaration("etameter_build_info", "gauge", "1", ("version",), "1, for etameter as it runs here.")
SAMPLER_POLLS = Declaration("etameter_sampler_polls_total", "counter", "polls", (), "Reads of counters.")
SAMPLER_MISSED = Declaration(
    "etameter_sampler_missed_polls_total",
    "counter",
    "polls",
    (),
    "Reads that would have had time while one was late or took long.",
)
SAMPLER_LATENESS = Declaration(
    "etameter_sampler_lateness_seconds_total",
    "counter",
    "seconds",
    (),
    "Sum over all reads of start minus planned start.",
)
SAMPLER_CPU = Declaration(
    "etameter_sampler_cpu_seconds_total", "counter", "seconds", (), "Processor time that reading the counters takes."
)
SAMPLER_DROPPED = Declaration(
    "etameter_sampler_dropped_edges_total", "counter", "edges", (), "Edges and failures lost because nobody took them."
)
RING_LOST = Declaration(
    "etameter_ring_lost_records_total",
    "counter",
    "records",
    ("engine",),
    "Records of an engine's steps that were overwritten before they were read.",
)
RING_TORN = Declaration(
    "etameter_ring_torn_records_total", "counter", "records", ("engine",), "Records that were damaged when read."
)
SOCKET_DROPPED = Declaration(
    "etameter_socket_dropped_messages_total",
    "counter",
    "messages",
    (),
    "Messages between the middleware and the meter that were dropped.",
)
LISTENERS_DROPPED = Declaration(
    "etameter_page_listeners_dropped_total",
    "counter",
    "listeners",
    (),
    "Listeners to `/events`, such as the live page, that were too slow and were hung up on.",
)
LEDGER_WAITING = Declaration(
    "etameter_ledger_waiting_batches",
    "gauge",
    "batches",
    (),
    "Settled intervals of engines that wait to be written. From 10,000 on nothing more is metered until the ledger is written again; what ring and sampler have no room for by then is counted as lost records and dropped edges.",
)
LEDGER_DROPPED = Declaration(
    "etameter_ledger_dropped_findings_total",
    "counter",
    "findings",
    (),
    "What was found of answers, that is their slack or their loss, and is in no ledger because too much of it waited while the ledger could not be written.",
)
TEXTS_DROPPED = Declaration(
    "etameter_texts_dropped_total",
    "counter",
    "responses",
    (),
    "Responses whose texts are not kept although `[meter] store_text` is set, because the disk was too slow or failed.",
)
OTLP_EXPORTS = Declaration(
    "etameter_otlp_exports_total",
    "counter",
    "exports",
    ("outcome",),
    "Pushes over OTLP, by what became of them. Those that weren't taken lose no joule, only points in time. Absent unless `[otlp]` is configured.",
)
