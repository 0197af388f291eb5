/* Matrix products of doubles, 64 by 64. */
#include "double.h"

#define N 64
#define ROUNDS SCALE(60, 2)
BENCH("dmatrix", (uint64_t)ROUNDS * N * N * N, SCALE(0x246d5ed22b26f911ul, 0xfe51525f23f05dc8ul));

static double a[N][N], b[N][N], c[N][N];

void prepare(void)
{
    uint64_t seed = 7;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = random_double(&seed) - 0.5;
            b[i][j] = random_double(&seed) - 0.5;
        }
}

static NOINLINE void multiply(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int l = 0; l < N; l++)
                sum += a[i][l] * b[l][j];
            c[i][j] = sum;
        }
}

uint64_t kernel(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        multiply();
        for (int i = 0; i < N; i++)
            a[i][round % N] += c[round % N][i] * 0.125;
    }
    uint64_t check = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            check = mix(check, bits_of(c[i][j]));
    return check;
}
