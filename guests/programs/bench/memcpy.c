/* Copies of 16 MiB, source and target 16 MiB apart: both streams fall on the same index of most TLBs. */
#include "../bench.h"

#define BYTES SCALE(16ul << 20, 1ul << 20)
#define ROUNDS SCALE(60, 2)
BENCH("memcpy", (uint64_t)ROUNDS * BYTES, SCALE(0x212b235d991d6f6dul, 0x7471727aed55ce08ul));

static uint64_t *const from = (uint64_t *)__heap;

void prepare(void)
{
    uint64_t seed = 3;
    for (uint64_t i = 0; i < BYTES / 8; i++)
        from[i] = random64(&seed);
}

uint64_t kernel(void)
{
    uint64_t *to = (uint64_t *)(__heap + (16ul << 20));
    uint64_t check = 0;
    for (int i = 0; i < ROUNDS; i++) {
        from[i * 1009] = i;
        memcpy(to, from, BYTES);
        check = mix(check, to[i * 1009] + to[BYTES / 8 - 1 - i]);
    }
    return check;
}
