/* main of a bench program on the host: the same line, in the same ticks of 100 ns. */
#include "bench.h"
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

__attribute__((weak)) void prepare(void) {}

static uint64_t ticks(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 10000000 + now.tv_nsec / 100;
}

int main(void)
{
    prepare();
    uint64_t start = ticks();
    uint64_t check = kernel();
    uint64_t took = ticks() - start;
    printf("%s ticks=%" PRIu64 " check=%016" PRIx64 " n=%" PRIu64 "\n", bench_name, took, check, bench_events);
    return check != bench_expected;
}
