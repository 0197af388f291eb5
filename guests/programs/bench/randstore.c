/* Stores of a word to random places of 64 MiB: 16 Ki pages, so that a small TLB misses nearly always. */
#include "../bench.h"

#define BYTES SCALE(64ul << 20, 4ul << 20)
#define STORES SCALE(5000000ul, 50000ul)
BENCH("rand-store", STORES, SCALE(0x7b82783c8a5f540aul, 0x39439ab291d88990ul));

static uint64_t *const words = (uint64_t *)__heap;

void prepare(void)
{
    for (uint64_t i = 0; i < BYTES / 8; i++)
        words[i] = 0;
}

uint64_t kernel(void)
{
    uint64_t seed = 88172645463325252ul;
    for (uint64_t i = 0; i < STORES; i++) {
        uint64_t r = random64(&seed);
        words[r & (BYTES / 8 - 1)] = r;
    }
    /* One word of each page is enough to tell a lost store, and cheap beside the stores. */
    uint64_t check = 0;
    for (uint64_t i = 0; i < BYTES / 8; i += 512)
        check = mix(check, words[i + (i >> 9 & 511)]);
    return check;
}
