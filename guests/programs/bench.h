/* A bench guest is one kernel: prepare() is not timed, kernel() is, and its result must be the one expected.
 * SCALE picks the amount of work: the full one is timed by `make bench`, the quick one (-DQUICK) is a test. */
#pragma once
#include "lib.h"

#ifdef QUICK
#define SCALE(full, quick) (quick)
#else
#define SCALE(full, quick) (full)
#endif

extern const char bench_name[];
extern const uint64_t bench_events;   /* how many of what the row counts: calls, stores, bytes, patches */
extern const uint64_t bench_expected; /* kernel()'s result */

#define BENCH(name, events, expected)                                                                                  \
    const char bench_name[] = name;                                                                                    \
    const uint64_t bench_events = (events);                                                                            \
    const uint64_t bench_expected = (expected)

void prepare(void);
uint64_t kernel(void);
