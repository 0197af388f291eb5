/* What the guests in doubles share. */
#pragma once
#include "../bench.h"

static inline uint64_t bits_of(double value)
{
    union {
        double value;
        uint64_t bits;
    } both = { .value = value };
    return both.bits;
}

/* In [0, 1). */
static inline double random_double(uint64_t *state) { return (double)(random64(state) >> 11) * 0x1p-53; }
