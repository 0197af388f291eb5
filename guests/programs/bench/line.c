/* Data that lies with code, as literal pools and packed firmware have it. HARTS 1: a loop counts in a word of its own
 * 64-byte line. HARTS 2: hart 1 runs such a loop, with its counter elsewhere, and hart 0 counts in a word of that page
 * or of that line. Events are stores of hart 0. */
#include "../suite.h"

#define STORES SCALE(10000000ul, 20000ul)

/* count(cell, n): n times one more in *cell.  spin(cell, stop): the same until *stop.  Each starts a page. */
void count(volatile uint64_t *cell, uint64_t n), spin(volatile uint64_t *cell, volatile uint64_t *stop);
extern volatile uint64_t count_line, spin_line, spin_page;
__asm__(".section .hot, \"awx\"\n.option push\n.option norvc\n"
        ".balign 4096\n"
        "count:      ld t0, 0(a0)\n"
        "            addi t0, t0, 1\n"
        "            sd t0, 0(a0)\n"
        "            addi a1, a1, -1\n"
        "            bnez a1, count\n"
        "            ret\n"
        "            .balign 8\n"
        "count_line: .dword 0\n"
        ".balign 4096\n"
        "spin:       ld t0, 0(a0)\n"
        "            addi t0, t0, 1\n"
        "            sd t0, 0(a0)\n"
        "            ld t1, 0(a1)\n"
        "            beqz t1, spin\n"
        "            ret\n"
        "            .balign 8\n"
        "spin_line:  .dword 0\n"
        ".balign 512\n"
        "spin_page:  .dword 0\n"
        ".balign 4096\n"
        ".option pop\n.text\n");

/* Pages of their own. */
static volatile uint64_t turns_of_1 __attribute__((aligned(4096)));
static volatile uint64_t stop __attribute__((aligned(4096)));
static volatile uint64_t go __attribute__((aligned(4096)));

static volatile uint64_t *cell;
static uint64_t run(uint64_t n)
{
    uint64_t before = *cell;
    count(cell, n);
    return *cell - before;
}

static void row(const char *name, volatile uint64_t *at)
{
    cell = at;
    run(STORES / 16);
    measure(name, STORES, run, STORES, STORES);
}

#if HARTS == 1
void suite(void) { row("line-own", &count_line); }
#else
void secondary(uint64_t hart)
{
    if (hart != 1)
        return;
    while (!go)
        ;
    spin(&turns_of_1, &stop);
    go = 2;
}

void suite(void)
{
    go = 1;
    while (turns_of_1 < 100000)
        ;
    row("line-hart-page", &spin_page);
    row("line-hart", &spin_line);
    /* Hart 1 went on meanwhile, and sees this. */
    uint64_t turns = turns_of_1;
    while (turns_of_1 == turns)
        ;
    stop = 1;
    while (go != 2)
        ;
}
#endif
