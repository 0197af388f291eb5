/* What a guest's JIT does to us at its worst: emit 64 instructions at a fresh place, run them once, move on. */
#include "../bench.h"
#include "rv.h"

#define COUNT SCALE(30000ul, 600ul)
#define LENGTH 64
BENCH("smc-emit", COUNT, 0);

static uint64_t words[64];
typedef uint64_t (*function)(uint64_t, uint64_t *);

/* One straight block of ALU operations, loads and stores; what it computes depends on i. */
static NOINLINE function emit(uint32_t *p, uint64_t i)
{
    uint32_t *start = p;
    for (int n = 0; n < (LENGTH - 1) / 7; n++) {
        *p++ = rv_addi(A0, A0, (i + n) & 0x7ff);
        *p++ = rv_ld(A2, A1, n * 8);
        *p++ = rv_xor(A0, A0, A2);
        *p++ = rv_slli(A3, A0, 1 + (i & 7));
        *p++ = rv_addi(A0, A0, -5);
        *p++ = rv_add(A0, A0, A3);
        *p++ = rv_sd(A0, A1, n * 8);
    }
    *p++ = RV_RET;
    fence_i();
    return (function)start;
}

/* The same sum in C. */
static uint64_t model(uint64_t a0, uint64_t *memory, uint64_t i)
{
    for (int n = 0; n < (LENGTH - 1) / 7; n++) {
        a0 += (i + n) & 0x7ff;
        a0 ^= memory[n];
        uint64_t a3 = a0 << (1 + (i & 7));
        a0 += a3 - 5;
        memory[n] = a0;
    }
    return a0;
}

static uint64_t expected;

void prepare(void)
{
    for (uint64_t i = 0; i < COUNT; i++)
        expected = model(expected, words, i);
    memset(words, 0, sizeof words);
}

uint64_t kernel(void)
{
    uint32_t *at = (uint32_t *)__heap;
    uint64_t x = 0;
    for (uint64_t i = 0; i < COUNT; i++, at += LENGTH)
        x = emit(at, i)(x, words);
    return x - expected;
}
