/* The shared memory that a test writes and the stand-in reads. board.py mirrors it field by field; nvmlInit compares the
 * sizes. Times are CLOCK_MONOTONIC nanoseconds; power is in milliwatts, so that power × time is in picojoules. */
#include <stdint.h>

enum { MAX_GPUS = 16, MAX_SEGMENTS = 16384, MAX_FAULTS = 64, MAX_PROCESSES = 8, MAX_PARTS = 8, TEXT = 96 };

#define BOARD_MAGIC 0x314c4d564e4d4953ull /* "SIMNVML1" */

/* What faults may be aimed at. */
enum {
    CALL_INIT = 1 << 0, CALL_SYSTEM = 1 << 1, CALL_HANDLE = 1 << 2, CALL_ENERGY = 1 << 3, CALL_POWER = 1 << 4,
    CALL_INSTANT = 1 << 5, CALL_LIMITS = 1 << 6, CALL_CLOCKS = 1 << 7, CALL_TEMPERATURE = 1 << 8,
    CALL_MODES = 1 << 9, CALL_PROCESSES = 1 << 10, CALL_MEMORY = 1 << 11, CALL_SET = 1 << 12,
};

enum { FAULT_ERROR = 1, FAULT_STALL = 2, FAULT_RESET = 3, FAULT_FREEZE = 4 };

typedef struct {
    uint32_t kind;      /* FAULT_… */
    uint32_t calls;     /* a set of CALL_… */
    int32_t gpu;        /* -1: every one */
    uint32_t code;      /* of FAULT_ERROR: the nvmlReturn_t */
    uint64_t from_ns, until_ns;
    uint64_t stall_ns;  /* of FAULT_STALL: how long a call blocks that begins in the window */
} fault_t;

/* Published at phase + k·period ± jitter: what was true `delay` before. */
typedef struct {
    uint64_t period_ns;
    uint64_t window_ns;     /* power: mean over this long, 0 = at the instant; part-time counter: what it sees of a period */
    uint64_t phase_ns, delay_ns, jitter_ns, latency_ns;
    double gain;
    uint64_t noise;         /* ± mJ or mW, uniform, drawn anew for each update */
    uint64_t quantum;       /* mJ or mW */
    uint32_t part_time;     /* energy: each period counts as the mean power of its last `window` */
    uint32_t seed;          /* of jitter and noise */
} sensor_t;

typedef struct {
    uint64_t start_ns;
    uint64_t spent_pj[2];   /* exact energy from the first segment's start to this one's: its low and its high 64 bits */
    uint64_t power_mw;
} segment_t;

typedef struct {
    char uuid[TEXT], name[TEXT];
    uint64_t base_mj;               /* what the counter showed when the first segment started */
    uint64_t memory_total, memory_used;
    uint64_t throttle_reasons;
    uint32_t power_limit_mw, enforced_limit_mw, least_limit_mw, most_limit_mw;
    uint32_t clocks_mhz[4], max_clocks_mhz[4]; /* graphics, SM, memory, video */
    uint32_t temperature_c, persistence, mig_current, mig_pending;
    uint32_t architecture, c2c, cpu_mw; /* nvmlDeviceArchitecture_t; whether a CPU hangs on the chip, and what of the power is its */
    uint32_t part_count;
    char parts[MAX_PARTS][TEXT];    /* UUIDs of the devices that MIG makes of it */
    uint32_t locked_mhz;            /* clocks are locked to; 0: they are free */
    uint32_t process_count, process_pid[MAX_PROCESSES];
    uint64_t process_bytes[MAX_PROCESSES];
    sensor_t energy, power, instant;
    uint64_t segment_count;         /* written last, when the segment stands */
    segment_t segments[MAX_SEGMENTS];
} gpu_t;

typedef struct {
    uint64_t magic;
    uint32_t board_bytes, gpu_bytes; /* sizeof(board_t), sizeof(gpu_t) */
    uint32_t gpu_count, fault_count; /* fault_count is written last, when the fault stands */
    char driver[TEXT];
    fault_t faults[MAX_FAULTS];
    gpu_t gpus[];
} board_t;
