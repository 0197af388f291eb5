/* main of the guests with several rows. */
#include "suite.h"

static int failures;

void check(const char *name, uint64_t result, uint64_t expected)
{
    if (result == expected)
        return;
    print("%s: wrong result %lx, expected %lx\n", name, result, expected);
    failures++;
}

void measure(const char *name, uint64_t events, uint64_t (*kernel)(uint64_t), uint64_t arg, uint64_t expected)
{
    uint64_t start = mtime();
    uint64_t result = kernel(arg);
    uint64_t ticks = mtime() - start;
    print("%s ticks=%lu check=%016lx n=%lu\n", name, ticks, result, events);
    check(name, result, expected);
}

int main(void)
{
    suite();
    return failures != 0;
}
