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

static inline uint32_t rv_jal(int rd, int64_t by)
{
    return (uint32_t)(by >> 20 & 1) << 31 | (uint32_t)(by >> 1 & 0x3ff) << 21 | (uint32_t)(by >> 11 & 1) << 20 |
           (uint32_t)(by >> 12 & 0xff) << 12 | rd << 7 | 0x6f;
}
static inline uint32_t rv_bne(int rs1, int rs2, int64_t by)
{
    return (uint32_t)(by >> 12 & 1) << 31 | (uint32_t)(by >> 5 & 0x3f) << 25 | rs2 << 20 | rs1 << 15 | 1 << 12 |
           (uint32_t)(by >> 1 & 15) << 8 | (uint32_t)(by >> 11 & 1) << 7 | 0x63;
}
static inline uint32_t rv_jalr(int rd, int rs1, int imm) { return rv_i(0x67, 0, rd, rs1, imm); }

/* A call as a linker leaves it: one jal within its reach, else auipc and jalr. Returns what follows it. */
static inline uint32_t *rv_call(uint32_t *at, const uint32_t *target)
{
    int64_t by = (const char *)target - (char *)at;
    if (by >= -(1 << 20) && by < 1 << 20) {
        *at++ = rv_jal(RA, by);
    } else {
        *at++ = (uint32_t)(by + 0x800) >> 12 << 12 | RA << 7 | 0x17;
        *at++ = rv_jalr(RA, RA, by & 0xfff);
    }
    return at;
}

/* A function's entry and end around calls. */
static inline uint32_t *rv_enter(uint32_t *p)
{
    *p++ = rv_addi(SP, SP, -16);
    *p++ = rv_sd(RA, SP, 0);
    return p;
}

#define RV_RET 0x00008067u

static inline uint32_t *rv_leave(uint32_t *p)
{
    *p++ = rv_ld(RA, SP, 0);
    *p++ = rv_addi(SP, SP, 16);
    *p++ = RV_RET;
    return p;
}
