/* SHA-256 (FIPS 180-4), written plainly: rotates, adds, 64 unrolled constants. The expected result is the digest's
 * first eight bytes for a message of BLOCKS * 64 zero bytes without its padding block. */
#include "../bench.h"

#define BLOCKS SCALE(300000, 200)
BENCH("sha256", (uint64_t)BLOCKS * 64, SCALE(0x404fec45e1bda1d2ul, 0xc877d41db733bf0dul));

static uint32_t k[64], state[8];

static uint32_t ror(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* First 32 bits of the fractional part of a root of n: the constants of the standard, by integer search. */
static uint32_t root_fraction(uint64_t n, int cube)
{
    unsigned __int128 target = (unsigned __int128)n << (cube ? 96 : 64);
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 37;
    while (high - low > 1) {
        unsigned __int128 mid = (low + high) / 2;
        /* mid^3 fits: mid < 2^37 would overflow only past 2^111 */
        if ((cube ? mid * mid * mid : mid * mid) <= target)
            low = mid;
        else
            high = mid;
    }
    return (uint32_t)low;
}

void prepare(void)
{
    int primes = 0;
    for (uint64_t n = 2; primes < 64; n++) {
        int prime = 1;
        for (uint64_t d = 2; d * d <= n; d++)
            prime &= n % d != 0;
        if (!prime)
            continue;
        if (primes < 8)
            state[primes] = root_fraction(n, 0);
        k[primes++] = root_fraction(n, 1);
    }
}

static NOINLINE void compress(uint32_t *h, const uint8_t *block)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], last = h[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = last + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
        uint32_t t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        last = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += last;
}

uint64_t kernel(void)
{
    static uint8_t block[64];
    for (int i = 0; i < BLOCKS; i++)
        compress(state, block);
    return (uint64_t)state[0] << 32 | state[1];
}
