/* A stand-in for libnvidia-ml.so.1: the calls that a power meter makes, answered from a board in shared memory.
 *
 * The file named by SIMNVML_BOARD (see board.h, written by board.py) holds each GPU's power as a piecewise constant
 * function of CLOCK_MONOTONIC, so that the true energy between two instants is exact. A sensor shows that truth as
 * badly as it was told to. Every reading is a pure function of the board and the clock: any process that reads at the
 * same instant sees the same. All other functions that nvidia-ml-py looks up are generated as weak symbols that answer
 * NVML_ERROR_NOT_SUPPORTED; those defined here override them. */
#include "board.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef const gpu_t *nvmlDevice_t;

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, LIB_RM_VERSION_MISMATCH = 18,
};

/* What a part-time counter has added up to so far. */
typedef struct {
    uint64_t update;
    double pj;
} part_time_sum_t;

static const board_t *board;
static part_time_sum_t part_time_sums[MAX_GPUS];
static size_t board_size;
static int users;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- time ---- */

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_ns(uint64_t ns) {
    struct timespec rest = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (ns > 0 && nanosleep(&rest, &rest) != 0) {}
}

/* ---- truth ---- */

/* Enough for a kilowatt over longer than the five hours after which 64 bits of picojoules overflow. */
__extension__ typedef unsigned __int128 uint128_t;

/* Exact energy of a GPU from its first segment to `t`, in picojoules. */
static uint128_t spent_pj(const gpu_t *gpu, uint64_t t) {
    uint64_t low = 0, high = __atomic_load_n(&gpu->segment_count, __ATOMIC_ACQUIRE);
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (gpu->segments[middle].start_ns <= t) low = middle + 1; else high = middle;
    }
    if (low == 0) return 0;
    const segment_t *segment = &gpu->segments[low - 1];
    uint128_t before = (uint128_t)segment->spent_pj[1] << 64 | segment->spent_pj[0];
    return before + (uint128_t)(t - segment->start_ns) * segment->power_mw;
}

/* Mean power in mW over the `window` that ends at `t`; at the instant itself where the window is 0. */
static double mean_mw(const gpu_t *gpu, uint64_t t, uint64_t window) {
    uint64_t width = window > 0 ? window : 1;
    return (double)(spent_pj(gpu, t) - spent_pj(gpu, t - width)) / (double)width;
}

/* ---- sensors ---- */

/* Uniform in [-1, 1], the same for the same update of the same sensor. */
static double draw(const sensor_t *sensor, uint64_t update, uint64_t salt) {
    uint64_t z = (update * 2 + salt) * 0x9e3779b97f4a7c15ull + sensor->seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) / (double)(1ull << 52) - 1.0;
}

static uint64_t published_ns(const sensor_t *sensor, uint64_t update) {
    double jitter = (double)sensor->jitter_ns * draw(sensor, update, 0);
    return sensor->phase_ns + update * sensor->period_ns + (uint64_t)(int64_t)jitter;
}

/* The update that is visible at `t`. Jitter is less than half a period, so updates stay in order. */
static uint64_t update_at(const sensor_t *sensor, uint64_t t) {
    uint64_t update = (t - sensor->phase_ns) / sensor->period_ns + 1;
    while (published_ns(sensor, update) > t) update--;
    return update;
}

static uint64_t quantised(const sensor_t *sensor, double value) {
    uint64_t quantum = sensor->quantum > 0 ? sensor->quantum : 1;
    return value <= 0 ? 0 : (uint64_t)value / quantum * quantum;
}

/* What the energy sensor makes of the time from the first segment to the update's instant, in picojoules. A part-time
 * sensor adds period after period, so its sum is kept from call to call. */
static double seen_pj(const gpu_t *gpu, uint64_t update) {
    const sensor_t *sensor = &gpu->energy;
    uint64_t until = published_ns(sensor, update) - sensor->delay_ns;
    if (!sensor->part_time) return (double)spent_pj(gpu, until);
    part_time_sum_t *sum = &part_time_sums[gpu - board->gpus];
    if (sum->update > update || sum->update == 0) {
        sum->update = update_at(sensor, gpu->segments[0].start_ns + sensor->delay_ns);
        sum->pj = 0;
    }
    for (; sum->update < update; sum->update++) {
        uint64_t begins = published_ns(sensor, sum->update), ends = published_ns(sensor, sum->update + 1);
        sum->pj += mean_mw(gpu, ends - sensor->delay_ns, sensor->window_ns) * (double)(ends - begins);
    }
    return sum->pj;
}

/* ---- faults ---- */

typedef struct {
    nvmlReturn_t code;
    uint64_t stall_ns;
} trouble_t;

static int concerns(const fault_t *fault, uint32_t call, const gpu_t *gpu) {
    return (fault->calls & call) && (fault->gpu < 0 || (gpu != NULL && gpu == &board->gpus[fault->gpu]));
}

static trouble_t trouble(uint32_t call, const gpu_t *gpu, uint64_t t) {
    trouble_t found = {SUCCESS, 0};
    uint32_t count = __atomic_load_n(&board->fault_count, __ATOMIC_ACQUIRE);
    for (const fault_t *fault = board->faults; fault < board->faults + count; fault++) {
        if (!concerns(fault, call, gpu) || t < fault->from_ns || t >= fault->until_ns) continue;
        if (fault->kind == FAULT_ERROR) found.code = (nvmlReturn_t)fault->code;
        if (fault->kind == FAULT_STALL) found.stall_ns = fault->stall_ns;
    }
    return found;
}

/* A frozen sensor shows at `t` what it showed when it froze. */
static uint64_t thawed_ns(uint32_t call, const gpu_t *gpu, uint64_t t) {
    uint32_t count = __atomic_load_n(&board->fault_count, __ATOMIC_ACQUIRE);
    for (const fault_t *fault = board->faults; fault < board->faults + count; fault++)
        if (fault->kind == FAULT_FREEZE && concerns(fault, call, gpu) && t >= fault->from_ns && t < fault->until_ns)
            t = fault->from_ns;
    return t;
}

/* The last reset before the update, 0 where there was none. The counter then goes on from zero at its next update. */
static uint64_t reset_ns(const gpu_t *gpu, uint64_t published) {
    uint64_t last = 0;
    uint32_t count = __atomic_load_n(&board->fault_count, __ATOMIC_ACQUIRE);
    for (const fault_t *fault = board->faults; fault < board->faults + count; fault++)
        if (fault->kind == FAULT_RESET && concerns(fault, CALL_ENERGY, gpu) && fault->from_ns <= published)
            last = fault->from_ns > last ? fault->from_ns : last;
    return last;
}

/* ---- readings ---- */

static uint64_t energy_mj(const gpu_t *gpu, uint64_t t) {
    const sensor_t *sensor = &gpu->energy;
    uint64_t update = update_at(sensor, thawed_ns(CALL_ENERGY, gpu, t));
    uint64_t reset = reset_ns(gpu, published_ns(sensor, update));
    double forgotten_pj = reset > 0 ? seen_pj(gpu, update_at(sensor, reset)) : 0.0;
    double pj = seen_pj(gpu, update) - forgotten_pj;
    double mj = pj / 1e9 * sensor->gain + (double)sensor->noise * draw(sensor, update, 1);
    return quantised(sensor, (reset > 0 ? 0.0 : (double)gpu->base_mj) + mj);
}

static uint64_t power_mw(const gpu_t *gpu, const sensor_t *sensor, uint32_t call, uint64_t t) {
    uint64_t update = update_at(sensor, thawed_ns(call, gpu, t));
    double mw = mean_mw(gpu, published_ns(sensor, update) - sensor->delay_ns, sensor->window_ns);
    return quantised(sensor, mw * sensor->gain + (double)sensor->noise * draw(sensor, update, 1));
}

/* Every call passes here first: uninitialised library, faults, stalls. A stalled call is answered when it is over. */
static nvmlReturn_t enter(uint32_t call, nvmlDevice_t gpu) {
    if (board == NULL) return UNINITIALIZED;
    trouble_t found = trouble(call, gpu, now_ns());
    sleep_ns(found.stall_ns);
    return found.code;
}

#define ENTER(call, gpu)                          \
    do {                                          \
        nvmlReturn_t entered = enter(call, gpu);  \
        if (entered != SUCCESS) return entered;   \
    } while (0)

/* Takes the reading half way through the sensor's latency. */
static nvmlReturn_t read_sensor(nvmlDevice_t gpu, uint32_t call, uint64_t *value) {
    const sensor_t *sensor = call == CALL_ENERGY ? &gpu->energy : call == CALL_POWER ? &gpu->power : &gpu->instant;
    ENTER(call, gpu);
    sleep_ns(sensor->latency_ns / 2);
    pthread_mutex_lock(&lock);
    *value = call == CALL_ENERGY ? energy_mj(gpu, now_ns()) : power_mw(gpu, sensor, call, now_ns());
    pthread_mutex_unlock(&lock);
    sleep_ns(sensor->latency_ns / 2);
    return SUCCESS;
}

/* ---- library and system ---- */

static nvmlReturn_t map_board(void) {
    const char *path = getenv("SIMNVML_BOARD");
    int file = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return DRIVER_NOT_LOADED;
    struct stat info;
    void *memory = MAP_FAILED;
    if (fstat(file, &info) == 0 && (size_t)info.st_size >= sizeof(board_t))
        memory = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return DRIVER_NOT_LOADED;
    const board_t *found = memory;
    if (found->magic != BOARD_MAGIC || found->board_bytes != sizeof(board_t) || found->gpu_bytes != sizeof(gpu_t)) {
        munmap(memory, (size_t)info.st_size);
        return LIB_RM_VERSION_MISMATCH;
    }
    memset(part_time_sums, 0, sizeof part_time_sums);
    board = found;
    board_size = (size_t)info.st_size;
    return SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = board == NULL ? map_board() : SUCCESS;
    if (result == SUCCESS) {
        result = enter(CALL_INIT, NULL);
        if (result == SUCCESS) users++;
        else if (users == 0) { munmap((void *)board, board_size); board = NULL; }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = users > 0 ? SUCCESS : UNINITIALIZED;
    if (users > 0 && --users == 0) { munmap((void *)board, board_size); board = NULL; }
    pthread_mutex_unlock(&lock);
    return result;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    static char text[32];
    snprintf(text, sizeof text, "simulated error %d", result);
    return text;
}

static nvmlReturn_t copy_text(const char *from, char *to, unsigned size) {
    if (strlen(from) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned size) {
    ENTER(CALL_SYSTEM, NULL);
    return copy_text(board->driver, version, size);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(CALL_SYSTEM, NULL);
    *count = board->gpu_count;
    return SUCCESS;
}

/* ---- devices ---- */

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *gpu) {
    if (board != NULL && index >= board->gpu_count) return INVALID_ARGUMENT;
    ENTER(CALL_HANDLE, board == NULL ? NULL : &board->gpus[index]);
    *gpu = &board->gpus[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *gpu) {
    for (unsigned index = 0; board != NULL && index < board->gpu_count; index++)
        if (strcmp(board->gpus[index].uuid, uuid) == 0) return nvmlDeviceGetHandleByIndex_v2(index, gpu);
    ENTER(CALL_HANDLE, NULL);
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t gpu, unsigned *index) {
    ENTER(CALL_HANDLE, gpu);
    *index = (unsigned)(gpu - board->gpus);
    return SUCCESS;
}

/* A part of a GPU is known by where its UUID stands in the GPU. */
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t gpu, char *uuid, unsigned size) {
    ENTER(CALL_HANDLE, gpu);
    return copy_text((const char *)gpu, uuid, size);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t gpu, unsigned *count) {
    ENTER(CALL_MODES, gpu);
    *count = MAX_PARTS;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t gpu, unsigned index, nvmlDevice_t *part) {
    ENTER(CALL_HANDLE, gpu);
    if (index >= gpu->part_count) return NOT_FOUND;
    *part = (nvmlDevice_t)gpu->parts[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t gpu, char *name, unsigned size) {
    ENTER(CALL_HANDLE, gpu);
    return copy_text(gpu->name, name, size);
}

/* ---- sensors ---- */

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t gpu, unsigned long long *millijoules) {
    uint64_t value;
    nvmlReturn_t result = read_sensor(gpu, CALL_ENERGY, &value);
    if (result == SUCCESS) *millijoules = value;
    return result;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t gpu, unsigned *milliwatts) {
    uint64_t value;
    nvmlReturn_t result = read_sensor(gpu, CALL_POWER, &value);
    if (result == SUCCESS) *milliwatts = (unsigned)value;
    return result;
}

enum { FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

typedef struct {
    uint32_t field, scope;
    int64_t timestamp_us, latency_us;
    uint32_t type;
    nvmlReturn_t result;
    union { uint32_t as_uint; uint64_t as_ullong; } value;
} field_value_t;

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t gpu, int count, field_value_t *values) {
    if (board == NULL) return UNINITIALIZED;
    for (field_value_t *value = values; value < values + count; value++) {
        uint64_t begins = now_ns(), reading = 0;
        uint32_t call = value->field == FIELD_ENERGY ? CALL_ENERGY
                        : value->field == FIELD_POWER_AVERAGE ? CALL_POWER
                        : value->field == FIELD_POWER_INSTANT ? CALL_INSTANT : 0;
        int known = call == CALL_ENERGY || value->scope == SCOPE_GPU || (value->scope == SCOPE_MODULE && gpu->c2c);
        value->result = call == 0 || !known ? NOT_SUPPORTED : read_sensor(gpu, call, &reading);
        if (call != CALL_ENERGY && value->scope == SCOPE_GPU && gpu->c2c)
            reading = reading > gpu->cpu_mw ? reading - gpu->cpu_mw : 0;
        value->type = call == CALL_ENERGY ? TYPE_UNSIGNED_LONG_LONG : TYPE_UNSIGNED_INT;
        value->value.as_ullong = reading;
        value->timestamp_us = (int64_t)(now_ns() / 1000);
        value->latency_us = (int64_t)((now_ns() - begins) / 1000);
    }
    return SUCCESS;
}

/* ---- the rest of what a meter asks ---- */

#define FIGURE(function, call, type, value)                        \
    nvmlReturn_t function(nvmlDevice_t gpu, type *result) {        \
        ENTER(call, gpu);                                          \
        *result = (value);                                         \
        return SUCCESS;                                            \
    }

FIGURE(nvmlDeviceGetPowerManagementLimit, CALL_LIMITS, unsigned, gpu->power_limit_mw)
FIGURE(nvmlDeviceGetEnforcedPowerLimit, CALL_LIMITS, unsigned, gpu->enforced_limit_mw)
FIGURE(nvmlDeviceGetCurrentClocksThrottleReasons, CALL_CLOCKS, unsigned long long, gpu->throttle_reasons)
FIGURE(nvmlDeviceGetCurrentClocksEventReasons, CALL_CLOCKS, unsigned long long, gpu->throttle_reasons)
FIGURE(nvmlDeviceGetArchitecture, CALL_MODES, unsigned, gpu->architecture)
FIGURE(nvmlDeviceGetC2cModeInfoV, CALL_MODES, unsigned, gpu->c2c)
FIGURE(nvmlDeviceGetPersistenceMode, CALL_MODES, unsigned, gpu->persistence)

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t gpu, unsigned *least, unsigned *most) {
    ENTER(CALL_LIMITS, gpu);
    *least = gpu->least_limit_mw;
    *most = gpu->most_limit_mw;
    return SUCCESS;
}

/* What is set is on the board itself, for every process to see. It changes no power: that is the test's to lay out. */
nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t gpu, unsigned limit) {
    ENTER(CALL_SET, gpu);
    if (limit < gpu->least_limit_mw || limit > gpu->most_limit_mw) return INVALID_ARGUMENT;
    gpu_t *board_gpu = (gpu_t *)gpu;
    board_gpu->power_limit_mw = board_gpu->enforced_limit_mw = limit;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t gpu, unsigned least, unsigned most) {
    ENTER(CALL_SET, gpu);
    if (least > most) return INVALID_ARGUMENT;
    ((gpu_t *)gpu)->locked_mhz = most;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t gpu) {
    ENTER(CALL_SET, gpu);
    ((gpu_t *)gpu)->locked_mhz = 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t gpu, unsigned clock, unsigned *mhz) {
    ENTER(CALL_CLOCKS, gpu);
    if (clock > 3) return INVALID_ARGUMENT;
    *mhz = clock < 2 && gpu->locked_mhz > 0 ? gpu->locked_mhz : gpu->clocks_mhz[clock];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t gpu, unsigned clock, unsigned *mhz) {
    ENTER(CALL_CLOCKS, gpu);
    if (clock > 3) return INVALID_ARGUMENT;
    *mhz = gpu->max_clocks_mhz[clock];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t gpu, unsigned sensor, unsigned *celsius) {
    ENTER(CALL_TEMPERATURE, gpu);
    if (sensor != 0) return INVALID_ARGUMENT;
    *celsius = gpu->temperature_c;
    return SUCCESS;
}

typedef struct { unsigned version, sensor; int celsius; } temperature_t;

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t gpu, temperature_t *temperature) {
    return nvmlDeviceGetTemperature(gpu, temperature->sensor, (unsigned *)&temperature->celsius);
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t gpu, unsigned *current, unsigned *pending) {
    ENTER(CALL_MODES, gpu);
    *current = gpu->mig_current;
    *pending = gpu->mig_pending;
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } memory_t;

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t gpu, memory_t *memory) {
    ENTER(CALL_MEMORY, gpu);
    *memory = (memory_t){gpu->memory_total, gpu->memory_total - gpu->memory_used, gpu->memory_used};
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process_t;

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t gpu, unsigned *count, process_t *processes) {
    ENTER(CALL_PROCESSES, gpu);
    unsigned room = *count;
    *count = gpu->process_count;
    if (gpu->process_count > room) return INSUFFICIENT_SIZE;
    for (unsigned index = 0; index < gpu->process_count; index++)
        processes[index] = (process_t){gpu->process_pid[index], gpu->process_bytes[index], ~0u, ~0u};
    return SUCCESS;
}
