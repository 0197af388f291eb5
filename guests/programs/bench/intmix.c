/* The integer mix: lists, a small matrix, a text state machine and a crc over the results, in the proportions of
 * embedded benchmarks: short blocks, much branching, data that stays in the first cache. */
#include "../bench.h"

BENCH("intmix", SCALE(8000, 20), SCALE(0xb270e5698dc17922ul, 0x8ef8700297008ddcul));

static uint16_t crc16(uint16_t crc, uint16_t value)
{
    for (int i = 0; i < 16; i++, value >>= 1)
        crc = (crc ^ value) & 1 ? crc >> 1 ^ 0xa001 : crc >> 1;
    return crc;
}

/* --- lists: build, sort by two orders, find, reverse ------------------------------------------------------------ */

#define NODES 120
struct node {
    struct node *next;
    int16_t key, place;
};
static struct node pool[NODES];

typedef int (*order)(const struct node *, const struct node *);
static int by_key(const struct node *a, const struct node *b) { return a->key - b->key; }
static int by_place(const struct node *a, const struct node *b) { return a->place - b->place; }

static struct node *merge(struct node *a, struct node *b, order cmp)
{
    struct node head, *tail = &head;
    while (a && b) {
        struct node **least = cmp(a, b) <= 0 ? &a : &b;
        tail = tail->next = *least;
        *least = (*least)->next;
    }
    tail->next = a ? a : b;
    return head.next;
}

static NOINLINE struct node *sort(struct node *list, int n, order cmp)
{
    if (n == 1) {
        list->next = 0;
        return list;
    }
    struct node *half = list;
    for (int i = 0; i < n / 2; i++)
        half = half->next;
    struct node *right = sort(half, n - n / 2, cmp);
    return merge(sort(list, n / 2, cmp), right, cmp);
}

static NOINLINE uint16_t lists(uint16_t seed)
{
    for (int i = 0; i < NODES; i++) {
        pool[i].next = i + 1 < NODES ? &pool[i + 1] : 0;
        pool[i].place = i;
        pool[i].key = crc16(seed, i * 7) & 0x3ff;
    }
    struct node *list = sort(pool, NODES, by_key);
    uint16_t crc = seed;
    for (int wanted = 0; wanted < 64; wanted++) {
        struct node *n = list;
        while (n && n->key < wanted * 16)
            n = n->next;
        crc += n ? n->place : wanted;
    }
    struct node *reversed = 0;
    while (list) {
        struct node *next = list->next;
        list->next = reversed;
        reversed = list;
        list = next;
    }
    crc = crc16(crc, reversed->key);
    list = sort(reversed, NODES, by_place);
    for (struct node *n = list; n; n = n->next)
        crc += n->key ^ n->place;
    return crc;
}

/* --- matrix: 16 bit elements, 32 bit sums ----------------------------------------------------------------------- */

#define N 12
static int16_t ma[N][N], mb[N][N];
static int32_t mc[N][N];

static NOINLINE uint16_t matrices(uint16_t seed)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            ma[i][j] = (seed + i * j) & 0x7f;
            mb[i][j] = (seed ^ (i + j)) & 0x7f;
        }
    uint16_t crc = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            int32_t sum = 0;
            for (int k = 0; k < N; k++)
                sum += ma[i][k] * mb[k][j];
            mc[i][j] = sum;
            if (sum & 0x40)
                ma[i][j] += 3;
        }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            crc += (mc[i][j] >> 2 & 15) * (mc[j][i] >> 5 & 127);
    return crc;
}

/* --- a state machine that tells integers, floats, exponents and rubbish apart ------------------------------------ */

enum state { START, SIGN, INTEGER, POINT, FRACTION, E, ESIGN, EXPONENT, BAD, STATES };
static const char *const words[] = { "5012", "-874", "+122", "35.54400", "-110.700", "+0.64400", "5.500e+3", "-.123e-2",
                                     "87e+832", "+.6e-12", "T0.3e-1F", "-T.T++Tq", "1T3.4e4z", "34.0e-T^" };

static NOINLINE enum state scan(const char **at, uint32_t *moves)
{
    enum state s = START;
    const char *p = *at;
    for (; *p && *p != ','; p++) {
        char c = *p;
        int digit = c >= '0' && c <= '9';
        enum state was = s;
        switch (s) {
        case START: s = digit ? INTEGER : c == '+' || c == '-' ? SIGN : c == '.' ? POINT : BAD; break;
        case SIGN: s = digit ? INTEGER : c == '.' ? POINT : BAD; break;
        case INTEGER: s = digit ? INTEGER : c == '.' ? POINT : c == 'e' ? E : BAD; break;
        case POINT:
        case FRACTION: s = digit ? FRACTION : c == 'e' ? E : BAD; break;
        case E: s = c == '+' || c == '-' ? ESIGN : BAD; break;
        case ESIGN:
        case EXPONENT: s = digit ? EXPONENT : BAD; break;
        default: break;
        }
        if (s != was)
            moves[was]++;
    }
    *at = *p ? p + 1 : p;
    return s;
}

static NOINLINE uint16_t states(uint16_t seed)
{
    static char text[600];
    char *t = text;
    for (int i = 0; t < text + sizeof text - 16; i++) {
        for (const char *w = words[(seed + i * 5) % 14]; *w; w++)
            *t++ = *w;
        *t++ = ',';
    }
    *t = 0;
    uint32_t ends[STATES] = { 0 }, moves[STATES] = { 0 };
    for (const char *at = text; *at;)
        ends[scan(&at, moves)]++;
    uint16_t crc = seed;
    for (int i = 0; i < STATES; i++)
        crc = crc16(crc16(crc, ends[i]), moves[i]);
    return crc;
}

uint64_t kernel(void)
{
    uint64_t check = 0;
    uint16_t seed = 0x3415;
    for (unsigned i = 0; i < bench_events; i++) {
        seed = crc16(lists(seed), i);
        seed = crc16(seed, matrices(seed));
        seed = crc16(seed, states(seed));
        check = mix(check, seed);
    }
    return check;
}
