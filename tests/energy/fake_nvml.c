/* A libnvidia-ml.so.1 whose GPUs follow an analytic P(t), with faults. Driven by the text file $FAKE_NVML:
 *
 *   t0 SECONDS                     monotonic time at which t = 0
 *   gpu UUID NAME                  a GPU; the lines below describe the last one
 *   const W | linear W W_PER_S | square LOW HIGH PERIOD
 *   refresh S                      the counter moves every S seconds only
 *   scale X                        the counter counts X times the truth
 *   nocounter | nopower            not supported
 *   deny                           no permission for the handle
 *   lost A                         lost from t = A on
 *   failcounter A B | failpower A B    unknown error while A <= t < B
 *   reset A                        the counter starts again from 0 at t = A
 *   stall A B                      the counter stands still while A <= t < B, then catches up
 *   forget A B                     as stall, but never catches up
 *   stale A B                      power keeps its value of t = A while A <= t < B
 *   slow S                         each reading takes S seconds
 *   pid N                          a process on the device
 *   health C MHZ PERCENT MIB BITS HEAT   temperature (+ HEAT °C a second), SM clock, utilisation, memory, throttle reasons
 *   mig UUID [SMS]                 a MIG device and its multiprocessors
 *   sms N                          multiprocessors of an instance of the whole GPU
 *   averaged                       nvmlDeviceGetPowerUsage is the mean of the last second
 *   fields average | instant | both   field values 185 and 186
 *
 * The file is read again for every call, unless $FAKE_NVML_ONCE is set.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_GPUS 16
#define NEVER 1e18

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, SMALL = 7, LOST = 15, UNKNOWN = 999 };

typedef struct {
    char uuid[96], name[64], migs[8][96];
    int kind, nocounter, nopower, deny, pids[8], n_pids, n_migs, mig_sms[8], sms, averaged, fields;
    double a, b, c, health[6], refresh, scale, lost, slow;
    double fail_counter[2], fail_power[2], reset, stall[2], forget[2], stale[2];
} Gpu;

static Gpu gpus[MAX_GPUS];
static int n_gpus, loaded;
static double t0;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec - t0;
}

static void span(char *line, const char *key, double *into) {
    double a, b;
    char word[32];
    if (sscanf(line, "%31s %lf %lf", word, &a, &b) == 3 && !strcmp(word, key)) into[0] = a, into[1] = b;
}

static void load(void) {
    if (loaded && getenv("FAKE_NVML_ONCE")) return;
    FILE *f = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "/nonexistent", "r");
    char line[256];
    if (!f) { n_gpus = 0; return; }
    n_gpus = 0;
    Gpu *g = NULL;
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "t0 %lf", &t0);
        if (!strncmp(line, "gpu ", 4) && n_gpus < MAX_GPUS) {
            g = &gpus[n_gpus++];
            memset(g, 0, sizeof *g);
            g->scale = 1, g->lost = g->reset = NEVER;
            g->fail_counter[0] = g->fail_power[0] = g->stall[0] = g->forget[0] = g->stale[0] = NEVER;
            sscanf(line, "gpu %95s %63s", g->uuid, g->name);
        }
        if (!g) continue;
        if (sscanf(line, "const %lf", &g->a) == 1) g->kind = 0;
        if (sscanf(line, "linear %lf %lf", &g->a, &g->b) == 2) g->kind = 1;
        if (sscanf(line, "square %lf %lf %lf", &g->a, &g->b, &g->c) == 3) g->kind = 2;
        sscanf(line, "refresh %lf", &g->refresh);
        sscanf(line, "scale %lf", &g->scale);
        sscanf(line, "lost %lf", &g->lost);
        sscanf(line, "reset %lf", &g->reset);
        sscanf(line, "slow %lf", &g->slow);
        if (!strncmp(line, "nocounter", 9)) g->nocounter = 1;
        if (!strncmp(line, "nopower", 7)) g->nopower = 1;
        if (!strncmp(line, "deny", 4)) g->deny = 1;
        if (g->n_pids < 8 && sscanf(line, "pid %d", &g->pids[g->n_pids]) == 1) g->n_pids++;
        if (g->n_migs < 8 && sscanf(line, "mig %95s %d", g->migs[g->n_migs], &g->mig_sms[g->n_migs]) >= 1) g->n_migs++;
        sscanf(line, "sms %d", &g->sms);
        if (!strncmp(line, "averaged", 8)) g->averaged = 1;
        if (!strncmp(line, "fields average", 14)) g->fields = 1;
        if (!strncmp(line, "fields instant", 14)) g->fields = 2;
        if (!strncmp(line, "fields both", 11)) g->fields = 3;
        double *h = g->health;
        sscanf(line, "health %lf %lf %lf %lf %lf %lf", h, h + 1, h + 2, h + 3, h + 4, h + 5);
        span(line, "failcounter", g->fail_counter);
        span(line, "failpower", g->fail_power);
        span(line, "stall", g->stall);
        span(line, "forget", g->forget);
        span(line, "stale", g->stale);
    }
    fclose(f);
    loaded = 1;
}

static double power(Gpu *g, double t) {
    if (g->kind == 0) return g->a;
    if (g->kind == 1) return g->a + g->b * t;
    return fmod(t, g->c) < g->c / 2 ? g->a : g->b;
}

static double energy(Gpu *g, double t) {
    if (g->kind == 0) return g->a * t;
    if (g->kind == 1) return g->a * t + g->b * t * t / 2;
    double whole = floor(t / g->c), rest = t - whole * g->c, half = g->c / 2;
    double part = rest < half ? g->a * rest : g->a * half + g->b * (rest - half);
    return whole * (g->a + g->b) * half + part;
}

static int inside(const double *s, double t) { return t >= s[0] && t < s[1]; }

/* A handle is 1 + index; a MIG handle 100 * (1 + index) + slot. */
static Gpu *find(long handle) {
    load();
    return handle >= 1 && handle <= n_gpus ? &gpus[handle - 1] : NULL;
}

static int text(const char *from, char *to, unsigned n) {
    if (strlen(from) >= n) return SMALL;
    strcpy(to, from);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) { load(); return n_gpus ? OK : 9 /* driver not loaded */; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    return code == LOST ? "GPU is lost" : code == NO_PERMISSION ? "Insufficient Permissions"
         : code == NOT_SUPPORTED ? "Not Supported" : code == 9 ? "Driver Not Loaded" : "Unknown Error";
}
int nvmlSystemGetDriverVersion(char *to, unsigned n) { return text("999.00", to, n); }
int nvmlDeviceGetCount_v2(unsigned *n) { load(); *n = n_gpus; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, long *handle) {
    load();
    if ((int)i >= n_gpus) return INVALID;
    if (gpus[i].deny) return NO_PERMISSION;
    *handle = 1 + i;
    return now() >= gpus[i].lost ? LOST : OK;
}
int nvmlDeviceGetUUID(long h, char *to, unsigned n) {
    if (h >= 100) { load(); return text(gpus[h / 100 - 1].migs[h % 100], to, n); }
    Gpu *g = find(h);
    return g ? text(g->uuid, to, n) : INVALID;
}
int nvmlDeviceGetName(long h, char *to, unsigned n) { Gpu *g = find(h); return g ? text(g->name, to, n) : INVALID; }
int nvmlDeviceGetMigMode(long h, unsigned *current, unsigned *pending) {
    Gpu *g = find(h);
    if (!g) return INVALID;
    *current = *pending = g->n_migs > 0;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(long h, unsigned *n) { *n = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(long h, unsigned slot, long *mig) {
    Gpu *g = find(h);
    if (!g || (int)slot >= g->n_migs) return NOT_FOUND;
    *mig = 100 * h + slot;
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(long h, unsigned *mw) { *mw = 700000; return OK; }

static int fault(Gpu *g, double t, const double *fail) {
    if (!g) return INVALID;
    if (g->slow > 0) usleep((unsigned)(1e6 * g->slow));
    if (t >= g->lost) return LOST;
    return inside(fail, t) ? UNKNOWN : OK;
}
int nvmlDeviceGetTotalEnergyConsumption(long h, unsigned long long *mj) {
    Gpu *g = find(h);
    double t = now();
    if (g && g->nocounter) return NOT_SUPPORTED;
    int code = fault(g, t, g ? g->fail_counter : NULL);
    if (code) return code;
    t = now();
    double missing = 0;
    if (inside(g->stall, t)) t = g->stall[0];
    if (t >= g->forget[0]) {
        double end = t < g->forget[1] ? t : g->forget[1];
        missing = energy(g, end) - energy(g, g->forget[0]);
    }
    if (g->refresh > 0) t = floor(t / g->refresh) * g->refresh;
    double joules = energy(g, t) - missing - (t >= g->reset ? energy(g, g->reset) : 0);
    *mj = (unsigned long long)(1e3 * g->scale * joules);
    return OK;
}
int nvmlDeviceGetPowerUsage(long h, unsigned *mw) {
    Gpu *g = find(h);
    double t = now();
    if (g && g->nopower) return NOT_SUPPORTED;
    int code = fault(g, t, g ? g->fail_power : NULL);
    if (code) return code;
    t = now();
    if (inside(g->stale, t)) t = g->stale[0];
    *mw = (unsigned)(1e3 * (g->averaged ? energy(g, t) - energy(g, t - 1) : power(g, t)) + 0.5);
    return OK;
}

typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type;
    int code;
    union { double d; unsigned u; unsigned long long ull; } value;
} Field;
int nvmlDeviceGetFieldValues(long h, int n, Field *into) {
    Gpu *g = find(h);
    double t = now();
    if (!g) return INVALID;
    for (int i = 0; i < n; i++) {
        int which = into[i].id == 185 ? 1 : into[i].id == 186 ? 2 : 0;
        if (!(g->fields & which)) { into[i].code = NOT_SUPPORTED; continue; }
        into[i].code = fault(g, t, g->fail_power);
        into[i].type = 1;
        into[i].value.u = (unsigned)(1e3 * (which == 1 ? energy(g, t) - energy(g, t - 1) : power(g, t)) + 0.5);
    }
    return OK;
}

/* Attributes of a MIG device, and the profile of an instance of the whole GPU (index 4: seven slices). */
int nvmlDeviceGetAttributes_v2(long h, unsigned *into) {
    load();
    if (h < 100 || !gpus[h / 100 - 1].mig_sms[h % 100]) return NOT_SUPPORTED;
    into[0] = gpus[h / 100 - 1].mig_sms[h % 100];
    return OK;
}
typedef struct { unsigned version, id, p2p, slices, instances, sms; } Profile;
int nvmlDeviceGetGpuInstanceProfileInfoV(long h, unsigned profile, Profile *into) {
    Gpu *g = find(h);
    if (!g || !g->sms || profile > 4) return NOT_SUPPORTED;
    into->sms = profile == 4 ? g->sms : g->sms / 7;
    return OK;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gi, ci; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(long h, unsigned *n, Process *into) {
    Gpu *g = find(h);
    unsigned room = *n;
    if (!g) return INVALID;
    *n = g->n_pids;
    if (room < *n) return SMALL;
    for (int i = 0; i < g->n_pids; i++) into[i] = (Process){g->pids[i], 1 << 20, 0, 0};
    return OK;
}

/* Health: not supported unless the file says it. */
#define TOLD(g) if (!(g) || !(g)->health[1]) return NOT_SUPPORTED
int nvmlDeviceGetTemperature(long h, int sensor, unsigned *c) {
    Gpu *g = find(h);
    TOLD(g);
    *c = (unsigned)(g->health[0] + g->health[5] * now());
    return OK;
}
int nvmlDeviceGetTemperatureThreshold(long h, int which, unsigned *c) { Gpu *g = find(h); TOLD(g); *c = 90; return OK; }
int nvmlDeviceGetClockInfo(long h, int which, unsigned *mhz) { Gpu *g = find(h); TOLD(g); *mhz = g->health[1]; return OK; }
int nvmlDeviceGetUtilizationRates(long h, unsigned *into) {
    Gpu *g = find(h);
    TOLD(g);
    into[0] = g->health[2], into[1] = 0;
    return OK;
}
int nvmlDeviceGetMemoryInfo(long h, unsigned long long *into) {
    Gpu *g = find(h);
    TOLD(g);
    into[0] = 1ull << 37, into[2] = (unsigned long long)g->health[3] << 20, into[1] = into[0] - into[2];
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(long h, unsigned long long *bits) {
    Gpu *g = find(h);
    TOLD(g);
    *bits = g->health[4];
    return OK;
}
