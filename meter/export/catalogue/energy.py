"""What devices and hosts took, and what of it requests pay."""

from etameter.export.catalogue.declaration import Declaration

GPU_ENERGY = Declaration(
    "etameter_gpu_energy_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "source"),
    "Energy that the device's counter has published, over settled intervals.",
)
ENERGY = Declaration(
    "etameter_energy_joules_total",
    "counter",
    "joules",
    ("model_name", "arm", "phase", "source"),
    "Energy attributed to requests.",
)
UNASSIGNED = Declaration(
    "etameter_unassigned_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "cause", "source"),
    "Energy that no request pays, by cause.",
)
HOST_BUBBLE = Declaration(
    "etameter_host_bubble_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "source"),
    "The part of the attributed energy that was paid for gaps under 50 ms between steps.",
)
BALANCE_RESIDUAL = Declaration(
    "etameter_balance_residual_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "source"),
    "Sum of |measured - attributed - unassigned| over settled intervals: rounding, or a bug.",
)
HOST_ENERGY = Declaration(
    "etameter_host_energy_joules_total",
    "counter",
    "joules",
    ("domain", "paid_by", "source"),
    "Energy of the host's CPU packages and DRAM by RAPL, whatever runs on them: beside the GPUs', never part of it. Absent where it can't be read.",
)
POWER = Declaration(
    "etameter_gpu_power_watts",
    "gauge",
    "watts",
    ("gpu_uuid", "source"),
    "Mean power over the last settled interval. Absent when it isn't known.",
)
COST = Declaration(
    "etameter_cost_total",
    "counter",
    "by currency",
    ("currency", "model_name", "arm", "phase", "source"),
    "Price of the energy attributed to requests, with the building's share where a PUE is configured. Absent unless a price is.",
)
CO2E = Declaration(
    "etameter_co2e_grams_total",
    "counter",
    "grams",
    ("model_name", "arm", "phase", "source"),
    "CO2 equivalent of the energy attributed to requests, with the building's share where a PUE is configured. Absent unless a country or a carbon "
    "intensity is.",
)
FOOTPRINT_FACTOR = Declaration(
    "etameter_footprint_factor",
    "gauge",
    "by factor",
    ("factor", "unit"),
    "What joules are multiplied by. Absent unless configured.",
)
