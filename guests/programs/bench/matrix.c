/* Integer matrix products, 64 by 64, 32 bit elements. */
#include "../bench.h"

#define N 64
#define ROUNDS SCALE(600, 2)
BENCH("matrix", (uint64_t)ROUNDS * N * N * N, SCALE(0xc6f1a124aa553c11ul, 0x954acbf861799202ul));

static int32_t a[N][N], b[N][N], c[N][N];

void prepare(void)
{
    uint64_t seed = 7;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = random64(&seed);
            b[i][j] = random64(&seed);
        }
}

static NOINLINE void multiply(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            uint32_t sum = 0;
            for (int l = 0; l < N; l++)
                sum += (uint32_t)a[i][l] * (uint32_t)b[l][j];
            c[i][j] = sum;
        }
}

uint64_t kernel(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        multiply();
        for (int i = 0; i < N; i++)
            a[i][round % N] += c[round % N][i];
    }
    uint64_t check = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            check = mix(check, c[i][j]);
    return check;
}
