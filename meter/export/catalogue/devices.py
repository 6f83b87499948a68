"""Each device: its counter, what is fitted to it, and what else goes on there."""

from etameter.export.catalogue.declaration import Declaration

GPU_INFO = Declaration(
    "etameter_gpu_info",
    "gauge",
    "1",
    ("gpu_uuid", "board", "counter", "machine"),
    "1 for each device: join it to say what its figures are of, as in "
    "`… * on (cluster, job, instance, gpu_uuid) group_left (board) etameter_gpu_info`.",
)
COUNTER_EDGES = Declaration(
    "etameter_gpu_energy_edges_total",
    "counter",
    "edges",
    ("gpu_uuid",),
    "Changes of the device's counter that were seen.",
)
MISSED_EDGES = Declaration(
    "etameter_gpu_energy_missed_edges_total",
    "counter",
    "edges",
    ("gpu_uuid",),
    "Updates of the device's counter that came while nobody looked: their time is known less well.",
)
COUNTER_RESETS = Declaration(
    "etameter_gpu_energy_resets_total", "counter", "resets", ("gpu_uuid",), "Decreases of the device's counter."
)
READ_FAILURES = Declaration(
    "etameter_gpu_energy_read_failures_total",
    "counter",
    "reads",
    ("gpu_uuid", "cause"),
    "Reads of the counter that failed.",
)
UPDATE_PERIOD = Declaration(
    "etameter_gpu_energy_update_period_seconds",
    "gauge",
    "seconds",
    ("gpu_uuid",),
    "How often the device publishes its counter, as learned; two to four times that where reads are slow and edges are passed over. Absent until it is known.",
)
LAG = Declaration(
    "etameter_gpu_energy_lag_seconds",
    "gauge",
    "seconds",
    ("gpu_uuid",),
    "How late the device publishes what was spent, as fitted. Absent before the first fit.",
)
LAG_ERROR = Declaration(
    "etameter_gpu_energy_lag_error_seconds",
    "gauge",
    "seconds",
    ("gpu_uuid",),
    "How wrong the lag may be: a steady load doesn't tell it. Absent before the first fit.",
)
COST_COEFFICIENT = Declaration(
    "etameter_cost_coefficient",
    "gauge",
    "by coefficient",
    ("gpu_uuid", "coefficient"),
    "Fitted cost of a step's parts. Absent before the first fit.",
)
COST_STANDARD_ERROR = Declaration(
    "etameter_cost_coefficient_standard_error",
    "gauge",
    "by coefficient",
    ("gpu_uuid", "coefficient"),
    "Standard error of `etameter_cost_coefficient`. Absent before the first fit.",
)
COST_UNIDENTIFIED = Declaration(
    "etameter_cost_coefficient_unidentified",
    "gauge",
    "1",
    ("gpu_uuid", "coefficient"),
    "1 where the load so far can't tell the coefficient: it is mostly the first guess. Absent where it can, and before the first fit.",
)
COST_RESIDUAL = Declaration(
    "etameter_cost_residual_ratio",
    "gauge",
    "ratio",
    ("gpu_uuid",),
    "Sum of |measured - fitted| over the sum of measured energy, of the intervals with work that the fit rests on. Absent before the first fit.",
)
THROTTLED = Declaration(
    "etameter_gpu_throttled",
    "gauge",
    "0 or 1",
    ("gpu_uuid",),
    "1 while the device is held back by heat or a power brake, not merely at its power cap. Absent where it doesn't tell.",
)
NEIGHBOURS = Declaration(
    "etameter_gpu_neighbours",
    "gauge",
    "processes",
    ("gpu_uuid",),
    "Processes on the device that aren't the engine's. Absent where it can't be told, as inside of most containers.",
)
NODE_UP = Declaration(
    "etameter_node_up",
    "gauge",
    "0 or 1",
    ("machine",),
    "1 while the sampler of the other machine is heard; while it isn't, its GPUs' energy is `readings_missing`.",
)
NODE_CLOCK_ERROR = Declaration(
    "etameter_node_clock_error_seconds",
    "gauge",
    "seconds",
    ("machine",),
    "How far an instant by the other machine's clock may be off here: it is in the error of every figure. Absent while nothing is heard of it.",
)
