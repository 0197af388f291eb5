/* Two hot functions, called in turn, at every power-of-two distance: a table indexed by address bits has both in one slot
 * at some distance. Each distance has a pair and a caller of its own, so none profits from the one before.
 * INDIRECT 1: one indirect call calls both. */
#include "../suite.h"
#include "rv.h"

enum { SMALLEST = 5, LARGEST = 26 }; /* 32 bytes to 64 MiB */
#define CALLS SCALE(3000000ul, 20000ul)
typedef uint64_t (*caller)(uint64_t, uint64_t, uint64_t, const uint32_t *, const uint32_t *);

/* Page k of the heap has the first function of pair k and, in its upper quarter, their caller. The second functions of
 * 4 KiB and more lie in the same line of later pages, no two in one place; the smaller ones in page k and the next. */
static uint32_t *first(uint64_t k) { return (uint32_t *)(__heap + 4096 * k + 64 * k); }
static uint32_t *second(uint64_t k) { return first(k) + (1ul << k) / sizeof(uint32_t); }
static uint32_t *caller_of(uint64_t k) { return (uint32_t *)(__heap + 4096 * k + 3072); }

static void emit_function(uint32_t *p, int reg)
{
    for (int i = 0; i < 3; i++)
        *p++ = rv_addi(reg, reg, 1);
    *p = RV_RET;
}

/* a2 turns; a3 and a4 are the functions. */
static void emit_caller(uint32_t *p, uint64_t k)
{
    p = rv_enter(p);
    uint32_t *loop = p;
#if INDIRECT
    *p++ = rv_jalr(RA, A3, 0);
    *p++ = rv_addi(A5, A3, 0);
    *p++ = rv_addi(A3, A4, 0);
    *p++ = rv_addi(A4, A5, 0);
    (void)k;
#else
    p = rv_call(p, first(k));
    p = rv_call(p, second(k));
#endif
    *p++ = rv_addi(A2, A2, -1);
    *p = rv_bne(A2, ZERO, (char *)loop - (char *)p);
    p++;
    *p++ = rv_add(A0, A0, A1);
    rv_leave(p);
}

static uint64_t call(uint64_t k)
{
    return ((caller)caller_of(k))(0, 0, INDIRECT ? CALLS : CALLS / 2, first(k), second(k));
}

void suite(void)
{
    static const char *const names[] = {
#define NAME(distance) INDIRECT ? "jump-" distance : "apart-" distance
        NAME("32"),   NAME("64"),  NAME("128"),  NAME("256"),  NAME("512"), NAME("1K"), NAME("2K"), NAME("4K"),
        NAME("8K"),   NAME("16K"), NAME("32K"),  NAME("64K"),  NAME("128K"), NAME("256K"), NAME("512K"), NAME("1M"),
        NAME("2M"),   NAME("4M"),  NAME("8M"),   NAME("16M"),  NAME("32M"), NAME("64M"),
    };
    for (uint64_t k = SMALLEST; k <= LARGEST; k++) {
        emit_function(first(k), A0);
        emit_function(second(k), A1);
        emit_caller(caller_of(k), k);
    }
    fence_i();
    for (uint64_t k = SMALLEST; k <= LARGEST; k++)
        measure(names[k - SMALLEST], CALLS, call, k, 3 * CALLS);
}
