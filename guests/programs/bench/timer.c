/* Timer interrupts: a deadline in the past fires at once; the handler takes it away and counts. */
#include "../bench.h"

#define COUNT SCALE(600000ul, 3000ul)
BENCH("timer", COUNT, 0);

static volatile uint64_t taken;

static __attribute__((interrupt("machine"), aligned(4))) void handler(void)
{
    REG64(MTIMECMP) = UINT64_MAX;
    if (csr_read(mcause) != (1ul << 63 | 7))
        finish(2);
    taken = taken + 1;
}

void prepare(void) { REG64(MTIMECMP) = UINT64_MAX; }

uint64_t kernel(void)
{
    csr_write(mtvec, handler);
    csr_set(mie, MIP_MTIP);
    csr_set(mstatus, MSTATUS_MIE);
    for (uint64_t i = 0; i < COUNT; i++) {
        REG64(MTIMECMP) = 0;
        while (taken == i)
            ;
    }
    csr_clear(mstatus, MSTATUS_MIE);
    return taken - COUNT;
}
