/* Only ever new code: a long run of functions, written before the clock starts, each executed once. The row is the price
 * of translation; events are guest instructions, in blocks of seven or eight. */
#include "../bench.h"
#include "rv.h"

#define FUNCTIONS SCALE(20000ul, 500ul)
#define TURNS 4
#define LENGTH (TURNS * 16 + 1)
/* of the 16 instructions of a turn one is branched over */
BENCH("translate", FUNCTIONS * (TURNS * 15 + 1), 0);

static uint64_t words[16], expected;
typedef uint64_t (*function)(uint64_t, uint64_t *);

void prepare(void)
{
    uint32_t *p = (uint32_t *)__heap;
    uint64_t x = 0;
    for (uint64_t i = 0; i < FUNCTIONS; i++) {
        for (int n = 0; n < TURNS; n++) {
            int imm = (i * 7 + n) & 0x7ff;
            *p++ = rv_addi(A0, A0, imm);
            *p++ = rv_ld(A2, A1, n * 8);
            *p++ = rv_xor(A3, A0, A2);
            *p++ = rv_slli(A4, A3, 3);
            *p++ = rv_add(A3, A3, A4);
            *p++ = rv_sd(A3, A1, n * 8);
            *p++ = rv_beq_over_one(ZERO, ZERO);
            *p++ = rv_addi(A0, A0, 1); /* never runs */
            *p++ = rv_mul(A0, A3, A0);
            *p++ = rv_xori(A0, A0, imm >> 1);
            *p++ = rv_ld(A5, A1, 64 + n * 8);
            *p++ = rv_add(A5, A5, A0);
            *p++ = rv_sd(A5, A1, 64 + n * 8);
            *p++ = rv_slli(A4, A5, 1);
            *p++ = rv_xor(A0, A0, A4);
            *p++ = rv_addi(A0, A0, -imm);
            x += imm;
            uint64_t a3 = (x ^ words[n]) * 9;
            words[n] = a3;
            x = (a3 * x) ^ (imm >> 1);
            words[8 + n] += x;
            x = (x ^ words[8 + n] << 1) - imm;
        }
        *p++ = RV_RET;
    }
    expected = x;
    memset(words, 0, sizeof words);
    fence_i();
}

uint64_t kernel(void)
{
    const uint32_t *at = (const uint32_t *)__heap;
    uint64_t x = 0;
    for (uint64_t i = 0; i < FUNCTIONS; i++, at += LENGTH)
        x = ((function)at)(x, words);
    return x - expected;
}
