/* One instruction at a time, in loops of four. HARTS 1: alone. HARTS 2: both harts run each row, NAME-shared with their
 * data in one line, NAME-apart in pages of their own, and NAME-2 where no data is touched; the results of both are
 * checked. Events are the operations of one hart. */
#include "../suite.h"

#define TURNS SCALE(HARTS == 1 ? 4000000ul : 1000000ul, 2000ul)
#define LINE 64

/* What one hart works on, and what it has to say of it. */
struct job {
    uint8_t *at;
    uint64_t in, turns, out;
};
typedef void (*operation)(struct job *);

/* INSNS four times, turns times; v holds the job's value in and out, t is scratch. */
#define OPERATION(name, insns)                                                                                         \
    static NOINLINE void name(struct job *job)                                                                         \
    {                                                                                                                  \
        uint64_t v = job->in, t, turns = job->turns;                                                                   \
        __asm__ volatile(".option push\n.option norvc\n.balign 64\n0:\n" insns insns insns insns                      \
                         "addi %[turns], %[turns], -1\nbnez %[turns], 0b\n.option pop\n"                               \
                         : [v] "+&r"(v), [t] "=&r"(t), [turns] "+&r"(turns)                                            \
                         : [at] "r"(job->at), [one] "r"(1ul), [in] "r"(job->in)                                        \
                         : "memory");                                                                                  \
        job->out = v;                                                                                                  \
    }

OPERATION(amoadd_w, "amoadd.w %[t], %[one], (%[at])\n")
OPERATION(amoadd_d, "amoadd.d %[t], %[one], (%[at])\n")
OPERATION(amoswap_w, "amoswap.w %[v], %[v], (%[at])\n")
OPERATION(amoswap_d, "amoswap.d %[v], %[v], (%[at])\n")
OPERATION(amoor_w, "amoor.w %[v], %[in], (%[at])\n")
OPERATION(amoor_d, "amoor.d %[v], %[in], (%[at])\n")
#define LR_SC(width)                                                                                                   \
    "1: lr." width " %[t], (%[at])\naddi %[t], %[t], 1\nsc." width " %[t], %[t], (%[at])\nbnez %[t], 1b\n"
OPERATION(lrsc_w, LR_SC("w"))
OPERATION(lrsc_d, LR_SC("d"))
OPERATION(load, "ld %[t], 0(%[at])\nadd %[v], %[v], %[t]\n")
OPERATION(store, "sd %[in], 0(%[at])\n")
OPERATION(mhartid, "csrr %[t], mhartid\nadd %[v], %[v], %[t]\n")
OPERATION(rdtime, "csrr %[v], time\n")
OPERATION(minstret, "csrr %[v], minstret\n")
OPERATION(fence, "fence rw, rw\n")
OPERATION(fence_acquire, "fence r, rw\n")
OPERATION(fence_release, "fence rw, w\n")
OPERATION(fencei, "fence.i\n")

static uint8_t memory[HARTS + 1][4096] __attribute__((aligned(4096)));
static struct job jobs[HARTS];

/* Hart 0 names a job and raises the round; each hart says when it is about to start, and when it is done. */
static operation current;
static uint64_t round_, ready, done;

#define LOAD(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)
#define ADD(place) __atomic_fetch_add(&(place), 1, __ATOMIC_ACQ_REL)

static void take_part(uint64_t hart)
{
    ADD(ready);
    while (LOAD(ready) != HARTS)
        ;
    current(&jobs[hart]);
    ADD(done);
}

#if HARTS > 1
void secondary(uint64_t hart)
{
    for (uint64_t seen = 0; hart < HARTS;) {
        if (LOAD(round_) == seen)
            continue;
        seen++;
        take_part(hart);
    }
}
#endif

static void all_harts(uint64_t turns)
{
    for (int h = 0; h < HARTS; h++)
        jobs[h].turns = turns;
    ready = done = 0;
    ADD(round_);
    take_part(0);
    while (LOAD(done) != HARTS)
        ;
}

enum kind { CELL, LOADS, STORES, NO_DATA };
struct row {
    const char *name;
    operation op;
    uint64_t turns;
    enum kind kind;
    int width;       /* of the cell, in bytes */
    int offset;      /* of an access, within its line */
    int step;        /* between the accesses of two harts in one line */
    uint64_t in;     /* hart 0's value; each further hart has it doubled */
    /* 0 if the results of all harts are right. There is a cell for all, or one for each; before: what a counter showed,
       or the sum of the cells. */
    uint64_t (*wrong)(const struct row *row, int cells, uint64_t before);
};

static uint64_t cell(int which, int width)
{
    return width == 4 ? *(uint32_t *)memory[which] : *(uint64_t *)memory[which];
}

/* Every addition is in some cell. */
static uint64_t wrong_count(const struct row *row, int cells, uint64_t before)
{
    uint64_t sum = 0;
    for (int c = 0; c < cells; c++)
        sum += cell(c, row->width);
    return sum - before - HARTS * 4 * row->turns;
}

/* A swap loses nothing and makes nothing: what was in registers and cells is in registers and cells. */
static uint64_t wrong_swap(const struct row *row, int cells, uint64_t before)
{
    uint64_t sum = 0;
    for (int c = 0; c < cells; c++)
        sum += cell(c, row->width);
    for (int h = 0; h < HARTS; h++)
        sum += jobs[h].out - jobs[h].in;
    return sum - before;
}

/* Each hart's bit is in its cell, and was when the hart set it for the last time. */
static uint64_t wrong_or(const struct row *row, int cells, uint64_t before)
{
    uint64_t wrong = 0;
    (void)before;
    for (int h = 0; h < HARTS; h++)
        wrong |= jobs[h].in & ~(cell(cells > 1 ? h : 0, row->width) & jobs[h].out);
    return wrong;
}

static uint64_t wrong_loads(const struct row *row, int cells, uint64_t before)
{
    uint64_t wrong = 0;
    (void)cells, (void)before;
    for (int h = 0; h < HARTS; h++) {
        uint64_t value = 0;
        for (int b = 7; b >= 0; b--)
            value = value << 8 | jobs[h].at[b];
        wrong |= jobs[h].out - jobs[h].in - 4 * row->turns * value;
    }
    return wrong;
}

/* Every byte of the lines is a stored one or what it was. */
static uint64_t wrong_stores(const struct row *row, int cells, uint64_t before)
{
    uint64_t wrong = 0;
    (void)row, (void)before;
    for (int c = 0; c < cells; c++)
        for (uint64_t i = 0; i < 4 * LINE; i++) {
            uint8_t *byte = memory[c] + i, expected = i;
            for (int h = 0; h < HARTS; h++)
                if (byte >= jobs[h].at && byte < jobs[h].at + 8)
                    expected = jobs[h].in >> 8 * (byte - jobs[h].at);
            wrong |= *byte ^ expected;
        }
    return wrong;
}

static uint64_t wrong_hartid(const struct row *row, int cells, uint64_t before)
{
    uint64_t wrong = 0;
    (void)cells, (void)before;
    for (int h = 0; h < HARTS; h++)
        wrong |= jobs[h].out - jobs[h].in - 4 * row->turns * h;
    return wrong;
}

/* A counter that stands still, or starts again, is wrong. */
static uint64_t wrong_counter(const struct row *row, int cells, uint64_t before)
{
    uint64_t wrong = 0;
    (void)row, (void)cells;
    for (int h = 0; h < HARTS; h++)
        wrong |= jobs[h].out <= before;
    return wrong;
}

static uint64_t wrong_never(const struct row *row, int cells, uint64_t before)
{
    (void)row, (void)cells, (void)before;
    return 0;
}

#define CELL_OF(bytes) CELL, bytes, 0, 0
#define ACROSS (LINE - 4), LINE
static const struct row rows[] = {
    { "amoadd.w", amoadd_w, TURNS, CELL_OF(4), 1, wrong_count },
    { "amoadd.d", amoadd_d, TURNS, CELL_OF(8), 1, wrong_count },
    { "amoswap.w", amoswap_w, TURNS, CELL_OF(4), 0x1234, wrong_swap },
    { "amoswap.d", amoswap_d, TURNS, CELL_OF(8), 0x123456789, wrong_swap },
    { "amoor.w", amoor_w, TURNS, CELL_OF(4), 0x10, wrong_or },
    { "amoor.d", amoor_d, TURNS, CELL_OF(8), 1ul << 44, wrong_or },
    { "lrsc.w", lrsc_w, TURNS / 2, CELL_OF(4), 0, wrong_count },
    { "lrsc.d", lrsc_d, TURNS / 2, CELL_OF(8), 0, wrong_count },
    { "ld-odd", load, TURNS, LOADS, 8, 1, 16, 0, wrong_loads },
    { "ld-line", load, TURNS, LOADS, 8, ACROSS, 0, wrong_loads },
    { "sd-odd", store, TURNS, STORES, 8, 1, 16, 0x1122334455667788, wrong_stores },
    { "sd-line", store, TURNS, STORES, 8, ACROSS, 0x1122334455667788, wrong_stores },
    { "mhartid", mhartid, TURNS / 8, NO_DATA, 0, 0, 0, 7, wrong_hartid },
    { "time", rdtime, TURNS / 8, NO_DATA, 0, 0, 0, 0, wrong_counter },
    { "minstret", minstret, TURNS / 8, NO_DATA, 0, 0, 0, 0, wrong_counter },
    { "fence", fence, TURNS, NO_DATA, 0, 0, 0, 0, wrong_never },
    { "fence-r-rw", fence_acquire, TURNS, NO_DATA, 0, 0, 0, 0, wrong_never },
    { "fence-rw-w", fence_release, TURNS, NO_DATA, 0, 0, 0, 0, wrong_never },
    { "fence.i", fencei, TURNS / 8, NO_DATA, 0, 0, 0, 0, wrong_never },
};

static uint64_t timed(uint64_t turns)
{
    all_harts(turns);
    return 0;
}

/* cells: 1 if all harts share a line, else one for each. */
static void run(const struct row *row, const char *how, int cells)
{
    char name[32];
    char *end = name;
    for (const char *s = row->name; *s; s++)
        *end++ = *s;
    for (const char *s = how; *s; s++)
        *end++ = *s;
    *end = 0;
    for (int c = 0; c < HARTS + 1; c++)
        for (int i = 0; i < 4096; i++)
            memory[c][i] = i;
    for (int h = 0; h < HARTS; h++) {
        jobs[h].at = memory[cells > 1 ? h : 0] + row->offset + (cells > 1 ? 0 : h * row->step);
        jobs[h].in = row->in << h;
    }
    current = row->op;
    /* Warm, and then with fresh cells. */
    all_harts(row->turns / 16);
    uint64_t before = row->kind == NO_DATA ? jobs[0].out : 0;
    for (int h = 1; row->kind == NO_DATA && h < HARTS; h++)
        before = jobs[h].out < before ? jobs[h].out : before;
    for (int c = 0; row->kind == CELL && c < cells; c++)
        before += cell(c, row->width);
    measure(name, 4 * row->turns, timed, row->turns, 0);
    check(name, row->wrong(row, cells, before), 0);
}

void suite(void)
{
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (HARTS == 1) {
            run(&rows[i], "", 1);
        } else if (rows[i].kind == NO_DATA) {
            run(&rows[i], "-2", 1);
        } else {
            run(&rows[i], "-shared", 1);
            run(&rows[i], "-apart", HARTS);
        }
    }
}
