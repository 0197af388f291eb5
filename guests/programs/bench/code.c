/* KIB of straight code, walked in turn again and again: pieces of 64 instructions, each with a call of a leaf behind it.
 * Nothing in it is hotter than the rest, and a walk is longer than a small table of what is warm. The first walks are not
 * timed: what new code costs is `translate`. */
#include "../bench.h"
#include "turn.h"

#define TURNS 4
#define PIECE_BYTES (4ul * (TURNS * 16 + 1))
#define PIECES (SCALE(KIB, 64) * 1024ul / PIECE_BYTES)
/* The last leaf lies before the pieces that call it, within reach of jal. */
#define PIECES_A_LEAF 2048
#define WARM SCALE(20ul, 10ul)
#define WALKS SCALE(200ul * 1024 / KIB, 20ul)
#define LEAVES ((PIECES + PIECES_A_LEAF - 1) / PIECES_A_LEAF)
/* A piece, its call, the leaf's two; a jump over each leaf; entry and end of the walk. */
#define INSNS (WALKS * (PIECES * (TURNS * TURN_RUNS + 3) + LEAVES + 5))

#if KIB == 1024
BENCH("code-1M", INSNS, 0);
#else
BENCH("code-8M", INSNS, 0);
#endif

static uint64_t words[16], x, expected;

static void walk(uint64_t walks)
{
    while (walks--)
        x = ((uint64_t (*)(uint64_t, uint64_t *))__heap)(x, words);
}

static int immediate(uint64_t piece, int n) { return (piece * 7 + n) & 0x7ff; }

void prepare(void)
{
    uint32_t *p = rv_enter((uint32_t *)__heap), *leaf = p;
    for (uint64_t i = 0; i < PIECES; i++) {
        if (i % PIECES_A_LEAF == 0) {
            *p++ = rv_jal(ZERO, 12);
            leaf = p;
            *p++ = rv_addi(A0, A0, 5);
            *p++ = RV_RET;
        }
        for (int n = 0; n < TURNS; n++)
            p = emit_turn(p, immediate(i, n), n);
        p = rv_call(p, leaf);
    }
    rv_leave(p);
    for (uint64_t w = 0; w < WARM + WALKS; w++)
        for (uint64_t i = 0; i < PIECES; i++) {
            for (int n = 0; n < TURNS; n++)
                expected = model_turn(expected, words, immediate(i, n), n);
            expected += 5;
        }
    memset(words, 0, sizeof words);
    fence_i();
    walk(WARM);
}

uint64_t kernel(void)
{
    walk(WALKS);
    return x - expected;
}
