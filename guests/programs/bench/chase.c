/* A pointer chase through KIB of memory: each load waits for the one before, in an order no prefetcher guesses. */
#include "../bench.h"

#if KIB == 4
BENCH("chase-4K", SCALE(200000000ul, 100000ul), SCALE(0x8f, 0x97));
#elif KIB == 1024
BENCH("chase-1M", SCALE(80000000ul, 100000ul), SCALE(0x2c65, 0xd8fd));
#else
BENCH("chase-64M", SCALE(5000000ul, 100000ul), SCALE(0x3ec06b, 0x305b6));
#endif

#define NODES (SCALE(KIB, KIB > 1024 ? 4096 : KIB) * 1024ul / sizeof(struct node))
static struct node {
    struct node *next;
    uint64_t value;
} *const nodes = (struct node *)__heap;

/* Sattolo's shuffle: a permutation that is one single cycle. */
void prepare(void)
{
    uint64_t seed = 42;
    for (uint64_t i = 0; i < NODES; i++)
        nodes[i].value = i;
    for (uint64_t i = NODES - 1; i > 0; i--) {
        uint64_t j = random64(&seed) % i, t = nodes[i].value;
        nodes[i].value = nodes[j].value;
        nodes[j].value = t;
    }
    for (uint64_t i = 0; i < NODES; i++)
        nodes[i].next = &nodes[nodes[i].value];
}

uint64_t kernel(void)
{
    const struct node *n = nodes;
    for (uint64_t i = 0; i < bench_events; i++)
        n = n->next;
    return n->value;
}
