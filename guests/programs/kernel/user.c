/* The processes. The first one forks one for each of the parts below, and reports what they end with; each part checks
 * itself, and what it ends with depends on nothing but its work. */
#include "../lib.h"
#include "sys.h"

#ifdef QUICK
#define SCALE(full, quick) (quick)
#else
#define SCALE(full, quick) (full)
#endif

__asm__(".section .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        ".option push\n.option norelax\n"
        "la gp, __global_pointer$\n"
        ".option pop\n"
        "call first\n"
        "thread_end:\n"
        "li a7, 1\n"
        "ecall\n"
        "thread_start:\n" /* a0: two words on its stack, what to call and with what */
        "mv sp, a0\n"
        "ld t0, 0(sp)\n"
        "ld a0, 8(sp)\n"
        "jalr t0\n"
        "j thread_end\n"
        ".text\n");
extern char thread_start[];

static uint64_t sys(uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    register uint64_t a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c, a7 __asm__("a7") = number;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a7) : "memory");
    return a0;
}

static void yield(void) { sys(SYS_YIELD, 0, 0, 0); }
static uint64_t wait(uint64_t child) { return sys(SYS_WAIT, child, 0, 0); }
static void end(uint64_t value)
{
    sys(SYS_EXIT, value, 0, 0);
    for (;;)
        ;
}

static uint64_t self; /* this part's name */

static void must(int good, uint64_t check)
{
    if (!good)
        sys(SYS_FAIL, self, check, 0);
}

#define PAGE 4096ul
#define WORDS (PAGE / 8)

/* Pages are there once they are touched, are zero, and stay what they were made. */
static uint64_t heap(uint64_t seed)
{
    enum { PAGES = SCALE(512, 256) };
    uint64_t *at = (uint64_t *)sys(SYS_GROW, PAGES * PAGE, 0, 0);
    uint64_t state = seed, check = 0;
    for (int turn = 0; turn < SCALE(40, 8); turn++) {
        for (int n = 0; n < PAGES; n++) {
            uint64_t page = random64(&state) % PAGES, *word = &at[page * WORDS + page % WORDS];
            must(*word == 0 || *word >> 32 == page, 1);
            *word = page << 32 | (uint32_t)(*word + 1);
        }
    }
    for (uint64_t page = 0; page < PAGES; page++)
        for (uint64_t word = 0; word < WORDS; word++) {
            uint64_t value = at[page * WORDS + word];
            must(word == page % WORDS ? value == 0 || value >> 32 == page : value == 0, 2);
            check = value ? mix(check, value) : check;
        }
    return check;
}

/* After a fork each of the two sees its own writes and none of the other's. */
enum { COW_PAGES = 48 };
static uint64_t copied[COW_PAGES * WORDS];
static uint64_t initial[3 * WORDS] = {0x1234, [WORDS] = 0x5678, [2 * WORDS] = 0x9abc};

static uint64_t cow_child(uint64_t which, uint64_t turn, int deeper)
{
    uint64_t check = 0, grandchild = 0;
    for (uint64_t page = which; page < COW_PAGES; page += 4)
        copied[page * WORDS + turn] = which << 48 | page;
    if (deeper) {
        grandchild = sys(SYS_FORK, 0, 0, 0);
        if (grandchild == 0)
            end(cow_child(which ^ 1, turn, 0));
    }
    for (uint64_t page = 0; page < COW_PAGES; page++) {
        uint64_t value = copied[page * WORDS + turn];
        int written = page % 4 == which || (!deeper && page % 4 == (which ^ 1));
        must(value == (written ? (page % 4) << 48 | page : turn << 32 | page), 10 + which);
        check = mix(check, value);
    }
    initial[WORDS] += which;
    check = mix(check, initial[0] + initial[WORDS]);
    return grandchild ? mix(check, wait(grandchild)) : check;
}

static uint64_t cow(uint64_t seed)
{
    uint64_t check = seed;
    for (uint64_t turn = 0; turn < SCALE(60, 10); turn++) {
        uint64_t children[3];
        for (uint64_t page = 0; page < COW_PAGES; page++)
            copied[page * WORDS + turn] = turn << 32 | page;
        for (int n = 0; n < 3; n++) {
            children[n] = sys(SYS_FORK, 0, 0, 0);
            if (children[n] == 0)
                end(cow_child(n, turn, 1));
        }
        for (uint64_t page = 3; page < COW_PAGES; page += 4)
            copied[page * WORDS + turn] = ~page;
        for (int n = 0; n < 3; n++)
            check = mix(check, wait(children[n]));
        for (uint64_t page = 0; page < COW_PAGES; page++) {
            must(copied[page * WORDS + turn] == (page % 4 == 3 ? ~page : turn << 32 | page), 20);
            copied[page * WORDS + turn] = 0; /* no child is left: kept, not copied */
        }
        must(initial[WORDS] == 0x5678, 21);
    }
    return check;
}

static NOINLINE uint64_t deep(uint64_t depth)
{
    volatile uint64_t here[120];
    here[depth % 120] = depth;
    return depth == 0 ? 0 : deep(depth - 1) + here[depth % 120];
}

/* A stack that grows by faults. */
static uint64_t stack(uint64_t seed)
{
    uint64_t depth = 800, sum = deep(depth);
    must(sum == depth * (depth + 1) / 2, 30);
    return mix(seed, sum);
}

/* Floating point: the same computation twice, interrupted elsewhere, under a rounding mode of its own. */
static NOINLINE uint64_t compute(uint64_t turns)
{
    double a = 1.0, b = 0.7, c = 1e-3, d = 3.0;
    uint64_t check = 0;
    for (uint64_t n = 0; n < turns; n++) {
        a = a * b + c;
        b = b + 1.0 / (d + a);
        c = c * 1.0000001 - a * 1e-9;
        d = __builtin_sqrt(d * d + b);
        if (b > 4.0)
            b -= 3.5;
        if (n % 64 == 0) {
            uint64_t bits[4];
            __builtin_memcpy(&bits[0], &a, 8), __builtin_memcpy(&bits[1], &b, 8);
            __builtin_memcpy(&bits[2], &c, 8), __builtin_memcpy(&bits[3], &d, 8);
            check = mix(mix(mix(mix(check, bits[0]), bits[1]), bits[2]), bits[3]);
        }
    }
    return check;
}

static uint64_t real(uint64_t mode)
{
    uint64_t flags;
    __asm__ volatile("fsrm %0" ::"r"(mode));
    uint64_t turns = SCALE(2000000, 20000), one = compute(turns), two;
    yield();
    two = compute(turns);
    __asm__ volatile("frcsr %0" : "=r"(flags));
    must(one == two, 40 + mode);
    must(flags >> 5 == mode, 50 + mode);
    return mix(one, flags);
}

/* Code that is written at one address and run at another, where it may only be run. */
static uint64_t jit(uint64_t seed)
{
    uint32_t *at = (uint32_t *)sys(SYS_GROW, PAGE, 0, 0);
    at[0] = 0;
    sys(SYS_ALIAS, (uint64_t)at, USER_ALIAS, PTE_R | PTE_X);
    uint64_t (*run)(uint64_t) = (uint64_t (*)(uint64_t))USER_ALIAS;
    uint64_t check = seed;
    for (uint32_t turn = 0; turn < SCALE(2000, 80); turn++) {
        uint32_t length = 1 + turn % 50, sum = 0;
        for (uint32_t n = 0; n < length; n++) {
            uint32_t step = (turn * 7 + n) & 1023;
            at[n] = 0x00050513 | step << 20; /* addi a0, a0, step */
            sum += step;
        }
        at[length] = 0x00008067; /* ret */
        sys(SYS_FENCE_I, 0, 0, 0);
        uint64_t value = 0;
        for (int n = 0; n < 100; n++)
            value = run(value);
        must(value == 100ul * sum, 60);
        check = mix(check, value);
    }
    return check;
}

/* Two threads in one address space: one stores all the time, the other takes the right to it away and gives it back. */
static volatile uint64_t stop;
static volatile uint64_t *stored;

static uint64_t storing(uint64_t arg)
{
    uint64_t n = 0;
    while (!stop) {
        for (int k = 0; k < 100; k++)
            *stored = ++n;
    }
    return arg;
}

static uint64_t thread(uint64_t (*what)(uint64_t), uint64_t arg)
{
    uint64_t *sp = (uint64_t *)(sys(SYS_GROW, 4 * PAGE, 0, 0) + 4 * PAGE - 16);
    sp[0] = (uint64_t)what;
    sp[1] = arg;
    return sys(SYS_THREAD, (uint64_t)thread_start, (uint64_t)sp, (uint64_t)sp);
}

static uint64_t threads(uint64_t seed)
{
    stored = (volatile uint64_t *)sys(SYS_GROW, PAGE, 0, 0);
    *stored = 0;
    uint64_t other = thread(storing, seed);
    for (int turn = 0; turn < SCALE(400, 40); turn++) {
        uint64_t before = *stored;
        while (*stored == before)
            yield();
        sys(SYS_PROTECT, (uint64_t)stored, 1, PTE_R);
        uint64_t value = *stored;
        for (int n = 0; n < 3; n++) {
            for (volatile int k = 0; k < 500; k++)
                ;
            must(*stored == value, 70);
            yield();
        }
        must(*stored == value, 71);
        sys(SYS_PROTECT, (uint64_t)stored, 1, PTE_R | PTE_W);
    }
    stop = 1;
    uint64_t value = wait(other);
    must(value == seed, 72);
    return mix(~seed, value);
}

/* Two processes on one page that they share. */
static uint64_t ring(uint64_t seed)
{
    volatile uint64_t *page = (volatile uint64_t *)sys(SYS_GROW, PAGE, 0, 0);
    page[0] = 0;
    sys(SYS_SHARE, (uint64_t)page, 1, 0);
    uint64_t child = sys(SYS_FORK, 0, 0, 0), turns = SCALE(4000, 400), check = seed;
    for (uint64_t n = child != 0; n < 2 * turns; n += 2) {
        while (__atomic_load_n(&page[0], __ATOMIC_ACQUIRE) != n)
            yield();
        check = mix(check, page[1]);
        page[1] = page[1] * 3 + n;
        __atomic_store_n(&page[0], n + 1, __ATOMIC_RELEASE);
    }
    if (child == 0)
        end(check);
    return mix(check, wait(child));
}

/* Until the timer has taken the hart from it three times. */
static uint64_t spin(uint64_t seed)
{
    uint64_t s[12] = {seed}; /* registers that no call saves for it */
    for (int n = 1; n < 12; n++)
        s[n] = s[n - 1] * 5 + n;
    uint64_t before = mix(s[3], s[11]);
    while (sys(SYS_PREEMPTED, 0, 0, 0) < 3)
        for (volatile int k = 0; k < 1000; k++)
            ;
    must(mix(s[3], s[11]) == before, 80);
    return before;
}

/* Until every hart has run a process; there are two of these, so a hart that sleeps has something to run. */
static uint64_t all_harts(uint64_t seed)
{
    while (!sys(SYS_HARTS, 0, 0, 0))
        ;
    return seed;
}

static const struct part {
    char name[8];
    uint64_t (*run)(uint64_t);
    uint64_t arg;
} parts[] = {
    {"heap-1", heap, 11},   {"heap-2", heap, 12},   {"cow", cow, 21},         {"stack", stack, 31},
    {"real-0", real, 0},    {"real-1", real, 1},    {"real-2", real, 2},      {"real-3", real, 3},
    {"jit-1", jit, 51},     {"jit-2", jit, 52},     {"threads", threads, 61}, {"ring", ring, 71},
    {"spin-1", spin, 81},   {"spin-2", spin, 82},   {"harts-1", all_harts, 91}, {"harts-2", all_harts, 92},
};
enum { PARTS = sizeof parts / sizeof parts[0] };

static uint64_t name_of(const struct part *part)
{
    uint64_t name = 0;
    for (int n = 0; n < 8; n++)
        name |= (uint64_t)part->name[n] << 8 * n;
    return name;
}

uint64_t first(void)
{
    uint64_t children[PARTS], check = 0;
    for (int n = 0; n < PARTS; n++) {
        children[n] = sys(SYS_FORK, 0, 0, 0);
        if (children[n] == 0) {
            self = name_of(&parts[n]);
            end(parts[n].run(parts[n].arg));
        }
    }
    for (int n = 0; n < PARTS; n++) {
        uint64_t value = wait(children[n]);
        sys(SYS_REPORT, name_of(&parts[n]), value, 0);
        check = mix(check, value);
    }
    return check;
}
