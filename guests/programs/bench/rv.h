/* The few encodings that the self-modifying guests emit. */
#pragma once
#include <stdint.h>

enum { ZERO, RA, SP, GP, TP, T0, T1, T2, S0, S1, A0, A1, A2, A3, A4, A5 };

static inline uint32_t rv_i(int op, int f3, int rd, int rs1, int imm)
{
    return (uint32_t)imm << 20 | rs1 << 15 | f3 << 12 | rd << 7 | op;
}

static inline uint32_t rv_r(int f7, int f3, int rd, int rs1, int rs2)
{
    return (uint32_t)f7 << 25 | rs2 << 20 | rs1 << 15 | f3 << 12 | rd << 7 | 0x33;
}

static inline uint32_t rv_sd(int rs2, int rs1, int imm)
{
    return (uint32_t)(imm >> 5 & 0x7f) << 25 | rs2 << 20 | rs1 << 15 | 3 << 12 | (imm & 31) << 7 | 0x23;
}

static inline uint32_t rv_addi(int rd, int rs1, int imm) { return rv_i(0x13, 0, rd, rs1, imm); }
static inline uint32_t rv_xori(int rd, int rs1, int imm) { return rv_i(0x13, 4, rd, rs1, imm); }
static inline uint32_t rv_slli(int rd, int rs1, int by) { return rv_i(0x13, 1, rd, rs1, by); }
static inline uint32_t rv_ld(int rd, int rs1, int imm) { return rv_i(3, 3, rd, rs1, imm); }
static inline uint32_t rv_add(int rd, int rs1, int rs2) { return rv_r(0, 0, rd, rs1, rs2); }
static inline uint32_t rv_xor(int rd, int rs1, int rs2) { return rv_r(0, 4, rd, rs1, rs2); }
static inline uint32_t rv_mul(int rd, int rs1, int rs2) { return rv_r(1, 0, rd, rs1, rs2); }
/* beq rs1, rs2, +8: over one instruction */
static inline uint32_t rv_beq_over_one(int rs1, int rs2) { return 8 << 7 | rs2 << 20 | rs1 << 15 | 0x63; }

#define RV_RET 0x00008067u
