/* What a compiler calls by itself. */
#include "lib.h"

/* Eight words a turn: the shape of a C library's copy of aligned blocks. */
void *memcpy(void *to, const void *from, size_t n)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    if ((((uintptr_t)d | (uintptr_t)s) & 7) == 0) {
        uint64_t *dw = to;
        const uint64_t *sw = from;
        for (; n >= 64; n -= 64, dw += 8, sw += 8) {
            uint64_t a = sw[0], b = sw[1], c = sw[2], e = sw[3];
            uint64_t f = sw[4], g = sw[5], h = sw[6], i = sw[7];
            dw[0] = a, dw[1] = b, dw[2] = c, dw[3] = e;
            dw[4] = f, dw[5] = g, dw[6] = h, dw[7] = i;
        }
        for (; n >= 8; n -= 8)
            *dw++ = *sw++;
        d = (uint8_t *)dw;
        s = (const uint8_t *)sw;
    }
    while (n--)
        *d++ = *s++;
    return to;
}

void *memset(void *to, int byte, size_t n)
{
    uint8_t *d = to;
    while (n--)
        *d++ = byte;
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *p = a, *q = b;
    for (; n; n--, p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}
