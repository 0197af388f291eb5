/* A function of 1 KiB that is overwritten with one of two versions in turn, then called: a code overlay. */
#include "../bench.h"
#include "rv.h"

#define COUNT SCALE(12000ul, 300ul)
#define LENGTH 256
BENCH("smc-toggle", COUNT, 0);

static uint32_t versions[2][LENGTH];
static uint64_t expected;
typedef uint64_t (*function)(uint64_t);

void prepare(void)
{
    for (int v = 0; v < 2; v++) {
        uint32_t *p = versions[v];
        for (int i = 0; i < LENGTH - 2; i += 2) {
            *p++ = rv_addi(A0, A0, v ? i : -i);
            *p++ = rv_xori(A0, A0, v ? 0x155 : 0x2aa);
        }
        *p++ = rv_slli(A0, A0, 1);
        *p++ = RV_RET;
    }
    for (uint64_t i = 0; i < COUNT; i++) {
        int v = i & 1;
        for (int n = 0; n < LENGTH - 2; n += 2)
            expected = (expected + (v ? n : -n)) ^ (v ? 0x155 : 0x2aa);
        expected = (expected << 1) + 1;
    }
}

uint64_t kernel(void)
{
    uint64_t x = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        memcpy(__heap, versions[i & 1], sizeof versions[0]);
        fence_i();
        x = ((function)__heap)(x) + 1;
    }
    return x - expected;
}
