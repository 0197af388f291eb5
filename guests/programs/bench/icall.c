/* Indirect calls. TARGETS 1: one call site that always goes to one place; TARGETS 16: it goes to one of sixteen,
 * in an order that does not repeat soon. */
#include "../bench.h"

#define STR(x) #x
#define NAME(x) "icall-" STR(x)
#if TARGETS == 1
BENCH(NAME(TARGETS), SCALE(25000000, 200000), 0x0139408dcbbf7a44ul);
#else
BENCH(NAME(TARGETS), SCALE(25000000, 200000), SCALE(0x010018a32e15b02cul, 0x01d46a571f45ffc1ul));
#endif

typedef uint64_t (*function)(uint64_t);
#define F(n) static NOINLINE uint64_t f##n(uint64_t x) { return (x + n) ^ (x >> (n + 1)); }
F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)

static function volatile table[16] = { f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, f12, f13, f14, f15 };

uint64_t kernel(void)
{
    uint64_t x = 88172645463325252ul, pick = 1;
    for (uint64_t i = 0; i < bench_events; i++) {
        pick = pick * 0x5851f42d4c957f2dul + 1;
        x = table[pick >> 40 & (TARGETS - 1)](x);
    }
    return x;
}
