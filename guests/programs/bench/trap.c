/* Synchronous traps and the way back: ILLEGAL 0 is ecall, 1 a word that is no instruction. */
#include "../bench.h"

#define COUNT SCALE(1500000ul, 10000ul)
#if ILLEGAL
#define NAME "illegal"
#define CAUSE 2
#define TRAP ".4byte 0x0000000b" /* custom-0, which nobody implements here */
#else
#define NAME "ecall"
#define CAUSE 11
#define TRAP "ecall"
#endif
BENCH(NAME, COUNT, 0);

/* The shortest handler that returns behind a 4-byte instruction; it adds each cause up in s11. */
static __attribute__((naked, aligned(4))) void handler(void)
{
    __asm__ volatile("csrrw t6, mscratch, t6\n"
                     "csrr t6, mepc\n"
                     "addi t6, t6, 4\n"
                     "csrw mepc, t6\n"
                     "csrr t6, mcause\n"
                     "add s11, s11, t6\n"
                     "csrrw t6, mscratch, t6\n"
                     "mret\n");
}

uint64_t kernel(void)
{
    uint64_t causes;
    csr_write(mtvec, handler);
    __asm__ volatile("li s11, 0\n"
                     "mv t0, %1\n"
                     "1: .option push\n"
                     ".option norvc\n" TRAP "\n"
                     ".option pop\n"
                     "addi t0, t0, -1\n"
                     "bnez t0, 1b\n"
                     "mv %0, s11\n"
                     : "=r"(causes) : "r"(COUNT) : "s11", "t0", "t6", "memory");
    return causes - COUNT * CAUSE;
}
