/* Patch one instruction, fence.i, run it. SAME_PAGE 0: the patched function lies in a page of its own; 1: it lies in
 * the page of the loop that patches it. */
#include "../bench.h"
#include "rv.h"

#define COUNT SCALE(120000ul, 3000ul)
#if SAME_PAGE
BENCH("smc-same", COUNT, 0);
#define DISTANCE 256
#else
BENCH("smc-other", COUNT, 0);
#define DISTANCE 4096
#endif

#define STR_(x) #x
#define STR(x) STR_(x)

/* patch_loop(count, first, step): count times { store the instruction; fence.i; call it; add its result up }.
 * The instruction is `li a0, imm`; adding step to its encoding changes imm. */
uint64_t patch_loop(uint64_t count, uint32_t first, uint32_t step);
__asm__(".section .text.patch, \"ax\"\n"
        ".balign 4096\n"
        ".globl patch_loop\n"
        "patch_loop:\n"
        "    mv    t6, ra\n"
        "    li    t0, 0\n"
        "    la    t1, patched\n"
        "1:  sw    a1, 0(t1)\n"
        "    addw  a1, a1, a2\n"
        "    fence.i\n"
        "    mv    t2, a0\n"
        "    jalr  t1\n"
        "    add   t0, t0, a0\n"
        "    mv    a0, t2\n"
        "    addi  a0, a0, -1\n"
        "    bnez  a0, 1b\n"
        "    mv    a0, t0\n"
        "    jr    t6\n"
        ".org patch_loop + " STR(DISTANCE) "\n"
        "patched:\n"
        "    .option push\n"
        "    .option norvc\n"
        "    li    a0, 0\n"
        "    ret\n"
        "    .option pop\n"
        ".balign 4096\n"
        ".text\n");

uint64_t kernel(void)
{
    uint64_t sum = patch_loop(COUNT, rv_addi(A0, ZERO, 0), 1 << 20), expected = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        expected += (int64_t)(i << 52) >> 52; /* the 12 bit immediate wraps */
    return sum - expected;
}
