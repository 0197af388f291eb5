/* After Whetstone: simple identifiers, array elements, calls with doubles, conversions, and elementary functions by
 * their series, in about its proportions; a part of it in single precision. */
#include "double.h"

#define LOOPS SCALE(30000, 40)
BENCH("whet", LOOPS, SCALE(0x0a541d85af04d7d5ul, 0x56de06eced003980ul));

static double e[4] = { 1.0, -1.0, -1.0, -1.0 };
static const double t = 0.499975, t2 = 2.0;

static NOINLINE void in_array(double *x)
{
    for (int i = 0; i < 6; i++) {
        x[0] = (x[0] + x[1] + x[2] - x[3]) * t;
        x[1] = (x[0] + x[1] - x[2] + x[3]) * t;
        x[2] = (x[0] - x[1] + x[2] + x[3]) * t;
        x[3] = (-x[0] + x[1] + x[2] + x[3]) / t2;
    }
}

static NOINLINE double called(double x, double y)
{
    x = t * (x + y);
    y = t * (x + y);
    return (x + y) / t2;
}

/* For |x| up to about one. */
static NOINLINE double sine(double x)
{
    double square = x * x, term = x, sum = x;
    for (int i = 2; i < 14; i += 2) {
        term *= -square / (i * (i + 1));
        sum += term;
    }
    return sum;
}

static NOINLINE double exponential(double x)
{
    double term = 1, sum = 1;
    for (int i = 1; i < 12; i++) {
        term *= x / i;
        sum += term;
    }
    return sum;
}

static NOINLINE float singles(float x)
{
    for (int i = 0; i < 20; i++) {
        float whole = (float)(int)x;
        x = (x - whole) * 3.7f + 0.31f;
        x = x > 2.5f ? x - 1.25f : x + 0.5f;
    }
    return x;
}

uint64_t kernel(void)
{
    double x = 0.75, y = 0.5, z = 0.25;
    float f = 0.5f;
    int32_t counts[4] = { 0, 0, 0, 0 };
    for (int loop = 0; loop < LOOPS; loop++) {
        in_array(e);
        for (int i = 0; i < 12; i++)
            z = called(x * 0.5 + z * 0.125, y);
        x = t * sine(x) + 0.25;
        y = __builtin_sqrt(exponential(x) * t);
        for (int i = 0; i < 8; i++) {
            int32_t n = (int32_t)(x * 7 + y * i);
            counts[n & 3] += n;
        }
        f = singles(f) * 0.5f;
    }
    uint64_t check = mix(mix(0, bits_of(x)), bits_of(y));
    for (int i = 0; i < 4; i++)
        check = mix(mix(check, bits_of(e[i])), (uint32_t)counts[i]);
    return mix(mix(check, bits_of(z)), bits_of(f));
}
