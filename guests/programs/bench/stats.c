/* A statistics loop: mean and variance as values come (a division each), extremes, and how many lie in a band. */
#include "double.h"

#define N 4096
#define ROUNDS SCALE(800, 4)
BENCH("stats", (uint64_t)ROUNDS * N, SCALE(0xc34ea9d0adba8afdul, 0x7aef584aa5e2fd5bul));

static double values[N];

void prepare(void)
{
    uint64_t seed = 3;
    for (int i = 0; i < N; i++)
        values[i] = random_double(&seed) * 200 - 100;
}

/* What a compiler makes of fmin and fmax where it knows that it may. */
static inline double lesser(double a, double b)
{
    __asm__("fmin.d %0, %0, %1" : "+f"(a) : "f"(b));
    return a;
}

static inline double greater(double a, double b)
{
    __asm__("fmax.d %0, %0, %1" : "+f"(a) : "f"(b));
    return a;
}

static NOINLINE uint64_t round_of(uint64_t check)
{
    double mean = 0, squares = 0, least = values[0], greatest = values[0];
    uint64_t inside = 0;
    for (int i = 0; i < N; i++) {
        double value = values[i], delta = value - mean;
        mean += delta / (i + 1);
        squares += delta * (value - mean);
        least = lesser(least, value);
        greatest = greater(greatest, value);
        inside += __builtin_fabs(value) < 33.5;
        values[i] = value * 0.999 + (value < mean ? 0.25 : -0.25);
    }
    check = mix(mix(check, bits_of(mean)), bits_of(squares));
    return mix(mix(check, bits_of(greatest - least)), inside);
}

uint64_t kernel(void)
{
    uint64_t check = 0;
    for (int round = 0; round < ROUNDS; round++)
        check = round_of(check);
    return check;
}
