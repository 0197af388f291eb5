/* 100,000 small blocks, walked in turn again and again: two instructions and a jump over a word that never runs.
 * The first walks are not timed. */
#include "../bench.h"
#include "rv.h"

#define BLOCKS SCALE(100000ul, 1000ul)
#define WARM SCALE(20ul, 10ul)
#define WALKS SCALE(100ul, 20ul)
BENCH("blocks-100k", BLOCKS * WALKS, 0);

static uint64_t x, expected;

static void walk(uint64_t walks)
{
    while (walks--)
        x = ((uint64_t (*)(uint64_t))__heap)(x);
}

void prepare(void)
{
    uint32_t *p = (uint32_t *)__heap;
    for (uint64_t i = 0; i < BLOCKS; i++) {
        *p++ = rv_addi(A0, A0, i & 0x7ff);
        *p++ = rv_xori(A0, A0, i >> 3 & 0x7ff);
        *p++ = rv_jal(ZERO, 8);
        *p++ = 0; /* no instruction */
    }
    *p++ = RV_RET;
    for (uint64_t w = 0; w < WARM + WALKS; w++)
        for (uint64_t i = 0; i < BLOCKS; i++)
            expected = (expected + (i & 0x7ff)) ^ (i >> 3 & 0x7ff);
    fence_i();
    walk(WARM);
}

uint64_t kernel(void)
{
    walk(WALKS);
    return x - expected;
}
