/* Sequential loads (STORES 0) or stores (STORES 1) over 64 MiB. */
#include "../bench.h"

#define BYTES SCALE(64ul << 20, 2ul << 20)
#define ROUNDS SCALE(60, 2)
#if STORES
BENCH("seq-store", ROUNDS * (BYTES / 8), SCALE(0x3741a4ab1f8d7ca1ul, 0xc78b1c2e89efc36ful));
#else
BENCH("seq-load", ROUNDS * (BYTES / 8), SCALE(0x85c5616e6bd0eb9eul, 0x830402534d6e5922ul));
#endif

static uint64_t *const words = (uint64_t *)__heap;

void prepare(void)
{
    for (uint64_t i = 0; i < BYTES / 8; i++)
        words[i] = i * 0x9e3779b97f4a7c15ul;
}

#if STORES
static NOINLINE void pass(uint64_t value)
{
    for (uint64_t *p = words; p < words + BYTES / 8; p += 8) {
        p[0] = value, p[1] = value, p[2] = value, p[3] = value;
        p[4] = value, p[5] = value, p[6] = value, p[7] = value;
    }
}

uint64_t kernel(void)
{
    uint64_t check = 0;
    for (int i = 0; i < ROUNDS; i++) {
        pass(i * 0x0101010101010101ul);
        check = mix(check, words[i * 4099] + words[BYTES / 8 - 1 - i]);
    }
    return check;
}
#else
static NOINLINE uint64_t pass(void)
{
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (const uint64_t *p = words; p < words + BYTES / 8; p += 8) {
        a += p[0], b ^= p[1], c += p[2], d ^= p[3];
        a ^= p[4], b += p[5], c ^= p[6], d += p[7];
    }
    return mix(a + b, c + d);
}

uint64_t kernel(void)
{
    uint64_t check = 0;
    for (int i = 0; i < ROUNDS; i++) {
        words[i * 4099] += i; /* else one pass would do for all */
        check = mix(check, pass());
    }
    return check;
}
#endif
