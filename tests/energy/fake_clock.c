/* LD_PRELOAD: the wall clock jumps by $FAKE_CLOCK_STEP seconds once $FAKE_CLOCK_AFTER seconds of the process passed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *into) {
    static int (*real)(clockid_t, struct timespec *);
    static double began = -1;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, into);
    if (clock == CLOCK_REALTIME && !code) {
        struct timespec t;
        real(CLOCK_MONOTONIC, &t);
        double now = t.tv_sec + 1e-9 * t.tv_nsec;
        if (began < 0) began = now;
        if (now - began > atof(getenv("FAKE_CLOCK_AFTER"))) into->tv_sec += atol(getenv("FAKE_CLOCK_STEP"));
    }
    return code;
}
