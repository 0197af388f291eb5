/* Recursive calls: a call and a return every dozen instructions. fib(n) makes 2 * fib(n + 1) - 1 calls. */
#include "../bench.h"

BENCH("fib", SCALE(26925370, 51670), SCALE(8320400, 15970));

static NOINLINE __attribute__((optimize("no-inline", "no-optimize-sibling-calls"))) uint64_t fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t kernel(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 10; i++)
        sum += fib(SCALE(30, 17));
    return sum;
}
