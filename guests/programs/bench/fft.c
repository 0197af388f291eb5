/* A complex FFT of 1024 points in place, there and back. */
#include "double.h"

#define N 1024
#define ROUNDS SCALE(300, 2)
BENCH("fft", (uint64_t)ROUNDS * 2 * N * 10 / 2, SCALE(0x3cb23891f8d56b9eul, 0x38d973ad59a9eab6ul));

static double re[N], im[N], cosine[N / 2], sine[N / 2];

void prepare(void)
{
    /* cos and sin of 2 pi / N, and what turning by them gives. */
    const double c = 0.99998117528260111, s = 0.0061358846491544753;
    double x = 1, y = 0;
    uint64_t seed = 11;
    for (int i = 0; i < N / 2; i++) {
        cosine[i] = x;
        sine[i] = y;
        double turned = x * c - y * s;
        y = x * s + y * c;
        x = turned;
    }
    for (int i = 0; i < N; i++) {
        re[i] = random_double(&seed) - 0.5;
        im[i] = random_double(&seed) - 0.5;
    }
}

static NOINLINE void transform(double direction)
{
    for (int i = 1, j = 0; i < N; i++) {
        int bit = N / 2;
        for (; j & bit; bit >>= 1)
            j ^= bit;
        j ^= bit;
        if (i < j) {
            double t = re[i];
            re[i] = re[j];
            re[j] = t;
            t = im[i];
            im[i] = im[j];
            im[j] = t;
        }
    }
    for (int length = 2; length <= N; length *= 2) {
        int half = length / 2, step = N / length;
        for (int start = 0; start < N; start += length)
            for (int k = 0; k < half; k++) {
                double wr = cosine[k * step], wi = direction * sine[k * step];
                int low = start + k, high = low + half;
                double xr = re[high] * wr - im[high] * wi, xi = re[high] * wi + im[high] * wr;
                re[high] = re[low] - xr;
                im[high] = im[low] - xi;
                re[low] += xr;
                im[low] += xi;
            }
    }
}

uint64_t kernel(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        transform(-1);
        transform(1);
        for (int i = 0; i < N; i++) {
            re[i] *= 1.0 / N;
            im[i] *= 1.0 / N;
        }
    }
    uint64_t check = 0;
    for (int i = 0; i < N; i++)
        check = mix(mix(check, bits_of(re[i])), bits_of(im[i]));
    return check;
}
