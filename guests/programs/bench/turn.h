/* Sixteen instructions of new code and what they compute: the piece that `translate` and `code-*` are made of. */
#pragma once
#include "rv.h"

/* One is branched over. */
#define TURN_RUNS 15

/* Emits turn n of 0 to 7: a0 is the running value, a1 points at 16 words; clobbers a2 to a5. */
static inline uint32_t *emit_turn(uint32_t *p, int imm, int n)
{
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
    return p;
}

/* What that turn does to a0 and to the words. */
static inline uint64_t model_turn(uint64_t x, uint64_t *words, int imm, int n)
{
    x += imm;
    uint64_t a3 = (x ^ words[n]) * 9;
    words[n] = a3;
    x = (a3 * x) ^ (imm >> 1);
    words[8 + n] += x;
    return (x ^ words[8 + n] << 1) - imm;
}
