/* A libamd_smi.so whose GPUs follow an analytic P(t), loaded by the real package amdsmi. Every symbol that the package
 * asks for and that is not here is a weak stub (see fakes.build_amdsmi). Driven by the text file $FAKE_AMDSMI:
 *
 *   t0 SECONDS                     monotonic time at which t = 0
 *   gpu SERIAL NAME                a GPU; the lines below describe the last one
 *   const W | square LOW HIGH PERIOD
 *   resolution UJ                  of a count of the accumulator (15.259)
 *   start COUNTS                   the accumulator at t = 0: near 2^64 it wraps
 *   reset A                        the accumulator starts again from 0 at t = A
 *   scale X                        the accumulator counts X times the truth
 *   partitions N                   one accumulator, N devices
 *   nocounter | nopower | average  not supported; the power is average_socket_power
 *   lost A                         an error from t = A on
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned u32;
typedef unsigned long long u64;
enum { OK = 0, INVAL = 1, NOT_SUPPORTED = 2, NOT_FOUND = 31 };

typedef struct {
    char serial[32], name[64];
    double low, high, period, resolution, reset, lost, scale;
    u64 start;
    int partitions, nocounter, nopower, average;
} Gpu;
static Gpu gpus[8];
static int n_gpus;
static double t0;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec - t0;
}

static void load(void) {
    FILE *f = fopen(getenv("FAKE_AMDSMI") ? getenv("FAKE_AMDSMI") : "/nonexistent", "r");
    char line[256];
    Gpu *g = NULL;
    n_gpus = 0;
    if (!f) return;
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "t0 %lf", &t0);
        if (!strncmp(line, "gpu ", 4) && n_gpus < 8) {
            g = &gpus[n_gpus++];
            memset(g, 0, sizeof *g);
            g->resolution = 15.259, g->reset = g->lost = 1e18, g->partitions = 1, g->period = 1, g->scale = 1;
            sscanf(line, "gpu %31s %63s", g->serial, g->name);
        }
        if (!g) continue;
        if (sscanf(line, "const %lf", &g->low) == 1) g->high = g->low;
        sscanf(line, "square %lf %lf %lf", &g->low, &g->high, &g->period);
        sscanf(line, "resolution %lf", &g->resolution);
        sscanf(line, "start %llu", &g->start);
        sscanf(line, "reset %lf", &g->reset);
        sscanf(line, "scale %lf", &g->scale);
        sscanf(line, "lost %lf", &g->lost);
        sscanf(line, "partitions %d", &g->partitions);
        if (!strncmp(line, "nocounter", 9)) g->nocounter = 1;
        if (!strncmp(line, "nopower", 7)) g->nopower = 1;
        if (!strncmp(line, "average", 7)) g->average = 1;
    }
    fclose(f);
}

static double power(Gpu *g, double t) { return fmod(t, g->period) < g->period / 2 ? g->low : g->high; }
static double energy(Gpu *g, double t) {
    double whole = floor(t / g->period), rest = t - whole * g->period, half = g->period / 2;
    return whole * (g->low + g->high) * half + (rest < half ? g->low * rest : g->low * half + g->high * (rest - half));
}

/* A socket is 1 + index; a processor 100 * (1 + index) + partition. */
static Gpu *of(void *h) {
    load();
    long n = (long)h / 100 - 1;
    return n >= 0 && n < n_gpus ? &gpus[n] : NULL;
}
static int part(void *h) { return (long)h % 100; }

int amdsmi_init(u64 flags) { load(); return n_gpus ? OK : 4; }
int amdsmi_shut_down(void) { return OK; }
int amdsmi_status_code_to_string(int code, const char **text) { *text = code == 2 ? "Not supported" : "Error"; return OK; }
int amdsmi_get_socket_handles(u32 *n, void **into) {
    load();
    if (into) for (int i = 0; i < n_gpus; i++) into[i] = (void *)(long)(1 + i);
    *n = n_gpus;
    return OK;
}
int amdsmi_get_processor_handles(void *socket, u32 *n, void **into) {
    long index = (long)socket - 1;
    load();
    if (index < 0 || index >= n_gpus) return INVAL;
    if (into) for (int i = 0; i < gpus[index].partitions; i++) into[i] = (void *)(100 * (1 + index) + i);
    *n = gpus[index].partitions;
    return OK;
}
int amdsmi_get_gpu_device_bdf(void *h, u64 *bdf) {
    Gpu *g = of(h);
    if (!g) return INVAL;
    *bdf = part(h) | (u64)(16 + (g - gpus)) << 8; /* function, device 0, bus, domain 0 */
    return OK;
}
typedef struct { u32 render, card, hsa, hip; char uuid[256]; } Enumeration;
int amdsmi_get_gpu_enumeration_info(void *h, Enumeration *into) {
    Gpu *g = of(h);
    if (!g) return INVAL;
    into->hip = part(h);
    for (Gpu *before = gpus; before < g; before++) into->hip += before->partitions;
    snprintf(into->uuid, 256, part(h) ? "GPU-%s%d" : "GPU-%s", g->serial, part(h));
    return OK;
}
typedef struct {
    char name[256]; u32 vendor; char vendor_name[256]; u32 sub; u64 device; u32 rev; char serial[256]; u32 oam, units;
    u32 pad; u64 target; u32 subsystem; u32 reserved[21];
} __attribute__((packed)) Asic;
int amdsmi_get_gpu_asic_info(void *h, Asic *into) {
    Gpu *g = of(h);
    if (!g) return INVAL;
    strcpy(into->name, g->name), strcpy(into->serial, g->serial), strcpy(into->vendor_name, "AMD");
    return OK;
}
int amdsmi_get_energy_count(void *h, u64 *count, float *resolution, u64 *stamp) {
    Gpu *g = of(h);
    double t = now();
    if (!g || t >= g->lost) return NOT_FOUND;
    if (g->nocounter || part(h)) return NOT_SUPPORTED;
    double joules = t >= g->reset ? energy(g, t) - energy(g, g->reset) : energy(g, t);
    *count = (t >= g->reset ? 0 : g->start) + (u64)(joules * g->scale / (1e-6 * (float)g->resolution));
    *resolution = g->resolution, *stamp = (u64)(1e9 * t);
    return OK;
}
typedef struct { u64 socket; u32 current, average; u64 volts[3]; u32 limit, pad; u64 reserved[18]; } Power;
int amdsmi_get_power_info(void *h, Power *into) {
    Gpu *g = of(h);
    double t = now();
    if (!g || t >= g->lost) return NOT_FOUND;
    if (g->nopower) return NOT_SUPPORTED;
    u32 watts = (u32)(0.5 + (g->average ? energy(g, t) - energy(g, t - 1) : power(g, t)));
    into->socket = watts, into->current = g->average ? 0xFFFF : watts, into->average = g->average ? watts : 0xFFFF;
    return OK;
}
typedef struct { u64 cap, rest[7]; } Cap;
int amdsmi_get_power_cap_info(void *h, u32 sensor, Cap *into) {
    if (!of(h)) return INVAL;
    into->cap = 750000000; /* µW */
    return OK;
}
int amdsmi_get_temp_metric(void *h, int sensor, int metric, long long *c) {
    if (!of(h)) return INVAL;
    *c = metric ? 105 : 61;
    return OK;
}
int amdsmi_get_clock_info(void *h, int kind, u32 *into) { if (!of(h)) return INVAL; into[0] = 2100; return OK; }
int amdsmi_get_gpu_activity(void *h, u32 *into) { if (!of(h)) return INVAL; into[0] = 97; return OK; }
int amdsmi_get_gpu_memory_usage(void *h, int kind, u64 *into) { *into = 5ull << 30; return OK; }
int amdsmi_get_gpu_memory_total(void *h, int kind, u64 *into) { *into = 192ull << 30; return OK; }
