/* A canonical Huffman code, written and read a bit at a time: short loops, shifts, and branches that data decides. */
#include "../bench.h"

#define SYMBOLS 4096
#define LONGEST 12
#define TURNS SCALE(1500ul, 2ul)
BENCH("huffman", TURNS * SYMBOLS, SCALE(0x42aab08b77b5cc5cul, 0xf49cdffba5ac9090ul));

/* By length: how many codes, and the first of them. By symbol: length and code. By rank: the symbol. */
static uint16_t count[LONGEST + 1], first[LONGEST + 1], start[LONGEST + 1];
static uint8_t length[256], ranked[256];
static uint16_t code[256];
static uint8_t text[SYMBOLS], bits[SYMBOLS * LONGEST / 8 + 8];

void prepare(void)
{
    /* 256 symbols, and some room in the code. */
    static const uint16_t lengths[LONGEST + 1] = {0, 0, 1, 1, 2, 2, 4, 4, 8, 16, 32, 64, 122};
    int symbol = 0, next = 0;
    for (int n = 1; n <= LONGEST; n++) {
        next <<= 1;
        count[n] = lengths[n], first[n] = next, start[n] = symbol;
        for (int i = 0; i < lengths[n]; i++, symbol++, next++)
            ranked[symbol] = symbol * 167, length[ranked[symbol]] = n, code[ranked[symbol]] = next;
    }
    uint64_t seed = 1;
    for (int i = 0; i < SYMBOLS; i++) {
        /* Short codes are common. */
        uint64_t random = random64(&seed), most = 1ul << (random & 7);
        text[i] = ranked[(random >> 8) % most];
    }
}

static NOINLINE uint64_t encode(void)
{
    uint64_t at = 0, buffer = 0, filled = 0;
    for (int i = 0; i < SYMBOLS; i++) {
        buffer = buffer << length[text[i]] | code[text[i]];
        for (filled += length[text[i]]; filled >= 8; filled -= 8)
            bits[at++] = buffer >> (filled - 8);
    }
    bits[at] = buffer << (8 - filled);
    return at;
}

static NOINLINE uint64_t decode(void)
{
    uint64_t sum = 0, bit = 0;
    for (int i = 0; i < SYMBOLS; i++) {
        uint32_t value = 0, n = 0;
        do {
            value = value << 1 | (bits[bit / 8] >> (7 - bit % 8) & 1), n++, bit++;
        } while (value - first[n] >= count[n] && n < LONGEST);
        uint8_t symbol = ranked[start[n] + value - first[n]];
        sum = sum * 31 + symbol + (symbol != text[i]);
    }
    return sum;
}

uint64_t kernel(void)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < TURNS; i++) {
        sum += encode() + decode();
        text[i % SYMBOLS] = ranked[i & 15];
    }
    return sum;
}
