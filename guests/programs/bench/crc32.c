/* crc32 by table, a byte at a time: loads on the critical path. */
#include "../bench.h"

#define BYTES 4096
BENCH("crc32", (uint64_t)SCALE(20000, 20) * BYTES, SCALE(0xf01282d0ul, 0x3f1bd794ul));

static uint32_t table[256];
static uint8_t data[BYTES];

void prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
        table[i] = c;
    }
    uint64_t seed = 1;
    for (int i = 0; i < BYTES; i++)
        data[i] = random64(&seed);
}

static NOINLINE uint32_t crc32(uint32_t crc, const uint8_t *p, uint64_t n)
{
    crc = ~crc;
    while (n--)
        crc = table[(uint8_t)(crc ^ *p++)] ^ crc >> 8;
    return ~crc;
}

uint64_t kernel(void)
{
    uint32_t crc = 0;
    for (int i = 0; i < SCALE(20000, 20); i++)
        crc = crc32(crc, data, BYTES);
    return crc;
}
