/* Rounds of table look-ups, as AES by tables has them: sixteen a round, each by another byte of four words. */
#include "../bench.h"

#define ROUNDS 10
#define BLOCKS SCALE(400000ul, 400ul)
BENCH("lookups", BLOCKS * ROUNDS * 16, SCALE(0xbec4aac433591f65ul, 0x4b8015b35d06e6aful));

static uint32_t table[4][256], key[4 * ROUNDS];

void prepare(void)
{
    uint64_t seed = 1;
    for (int i = 0; i < 256; i++) {
        table[0][i] = random64(&seed);
        for (int n = 1; n < 4; n++)
            table[n][i] = table[0][i] << 8 * n | table[0][i] >> (32 - 8 * n);
    }
    for (int i = 0; i < 4 * ROUNDS; i++)
        key[i] = random64(&seed);
}

static inline uint32_t column(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t k)
{
    return table[0][a & 0xff] ^ table[1][b >> 8 & 0xff] ^ table[2][c >> 16 & 0xff] ^ table[3][d >> 24] ^ k;
}

static NOINLINE void block(uint32_t *state)
{
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    for (const uint32_t *k = key; k != key + 4 * ROUNDS; k += 4) {
        uint32_t w = column(a, b, c, d, k[0]), x = column(b, c, d, a, k[1]);
        uint32_t y = column(c, d, a, b, k[2]), z = column(d, a, b, c, k[3]);
        a = w, b = x, c = y, d = z;
    }
    state[0] = a, state[1] = b, state[2] = c, state[3] = d;
}

uint64_t kernel(void)
{
    uint32_t state[4] = {1, 2, 3, 4};
    for (uint64_t i = 0; i < BLOCKS; i++)
        block(state);
    return (uint64_t)state[0] << 32 | state[3];
}
