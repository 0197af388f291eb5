/* One function with 128,000 callers, side by side, each called from in turn. The first walks are not timed. */
#include "../bench.h"
#include "rv.h"

#define CALLERS SCALE(128000ul, 1000ul)
#define WARM SCALE(20ul, 10ul)
#define WALKS SCALE(50ul, 20ul)
BENCH("callers-128k", CALLERS * WALKS, CALLERS * WALKS);

static uint64_t walk(uint64_t walks)
{
    uint64_t x = 0;
    while (walks--)
        x = ((uint64_t (*)(uint64_t))(__heap + 8))(x);
    return x;
}

void prepare(void)
{
    uint32_t *leaf = (uint32_t *)__heap, *p = leaf;
    *p++ = rv_addi(A0, A0, 1);
    *p++ = RV_RET;
    p = rv_enter(p);
    for (uint64_t i = 0; i < CALLERS; i++)
        p = rv_call(p, leaf);
    rv_leave(p);
    fence_i();
    walk(WARM);
}

uint64_t kernel(void) { return walk(WALKS); }
