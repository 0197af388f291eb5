/* False sharing of code and data: each turn calls a function and stores to a word of its page, another 64-byte line.
 * APART 1: to a page of its own, to compare. */
#include "../bench.h"

#define COUNT SCALE(2000000ul, 20000ul)
#if APART
BENCH("smc-apart", COUNT, 0);
#define DISTANCE "4096"
#else
BENCH("smc-beside", COUNT, 0);
#define DISTANCE "2048"
#endif

uint64_t hot(uint64_t);
extern volatile uint64_t beside[];
__asm__(".section .hot, \"awx\"\n"
        ".balign 4096\n"
        "hot: addi  a0, a0, 3\n"
        "     xori  a0, a0, 1\n"
        "     ret\n"
        ".org hot + " DISTANCE "\n"
        ".globl beside\n"
        "beside: .zero 2048\n"
        ".text\n");

uint64_t kernel(void)
{
    uint64_t x = 0, y = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        x = hot(x);
        y = (y + 3) ^ 1;
        beside[i & 63] = x;
    }
    return (x - y) | (beside[(COUNT - 1) & 63] - y);
}
