/* main of every bench guest: one line for the host to read, and a failing exit if the result is wrong. */
#include "bench.h"

__attribute__((weak)) void prepare(void) {}

int main(void)
{
    prepare();
    uint64_t start = mtime();
    uint64_t check = kernel();
    uint64_t ticks = mtime() - start;
    print("%s ticks=%lu check=%016lx n=%lu\n", bench_name, ticks, check, bench_events);
    if (check == bench_expected)
        return 0;
    print("%s: wrong result, expected %016lx\n", bench_name, bench_expected);
    return 1;
}
