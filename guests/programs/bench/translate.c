/* Only ever new code: a long run of functions, written before the clock starts, each executed once. The row is the price
 * of translation; events are guest instructions, in blocks of seven or eight. */
#include "../bench.h"
#include "turn.h"

#define FUNCTIONS SCALE(20000ul, 500ul)
#define TURNS 4
#define LENGTH (TURNS * 16 + 1)
BENCH("translate", FUNCTIONS * (TURNS * TURN_RUNS + 1), 0);

static uint64_t words[16], expected;
typedef uint64_t (*function)(uint64_t, uint64_t *);

void prepare(void)
{
    uint32_t *p = (uint32_t *)__heap;
    uint64_t x = 0;
    for (uint64_t i = 0; i < FUNCTIONS; i++) {
        for (int n = 0; n < TURNS; n++) {
            int imm = (i * 7 + n) & 0x7ff;
            p = emit_turn(p, imm, n);
            x = model_turn(x, words, imm, n);
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
