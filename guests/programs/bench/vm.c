/* What page tables cost that change: fences, address spaces, walks, aliases, processes. In S-mode under Sv39, with the tables
 * of paged/tables.c and a window of its own; a second address space has the same but for its window. */
#include "../suite.h"

#define PAGE 4096ul
#define WINDOW 0xc0000000ul
#define PAGES 1000ul
#define ALIASES 16384ul
#define ALIAS (WINDOW + 0x10000000ul)
#define USER (WINDOW + 0x20000000ul)

#define V 1ul
#define RWX 14ul
#define U 16ul
#define AD 192ul

static uint64_t tables[80][512] __attribute__((aligned(4096)));
static int taken;
static uint64_t satps[2]; /* of the two address spaces */

static uint64_t *new_table(void) { return tables[taken++]; }
static uint64_t entry(const void *at, uint64_t bits) { return (uint64_t)at >> 12 << 10 | bits; }

static void map(uint64_t *root, uint64_t address, const void *page, uint64_t bits)
{
    uint64_t *table = root;
    for (int level = 2; level > 0; level--) {
        uint64_t *e = &table[address >> (12 + 9 * level) & 511];
        if (!(*e & V))
            *e = entry(new_table(), V);
        table = (uint64_t *)(*e >> 10 << 12);
    }
    table[address >> 12 & 511] = entry(page, bits | V | AD);
}

static void fence_page(uint64_t address) { __asm__ volatile("sfence.vma %0" ::"r"(address) : "memory"); }
static void fence_all(void) { __asm__ volatile("sfence.vma" ::: "memory"); }
static void use(int space) { csr_write(satp, satps[space]); }

static void *page(uint64_t n) { return (void *)((uint64_t)__heap + n * PAGE); }

static void prepare_tables(void)
{
    uint64_t *own = (uint64_t *)(csr_read(satp) << 12);
    for (int space = 0; space < 2; space++) {
        uint64_t *root = new_table();
        memcpy(root, own, PAGE);
        for (uint64_t n = 0; n < PAGES; n++)
            map(root, WINDOW + n * PAGE, page(n), RWX);
        satps[space] = 8ul << 60 | (space + 1ul) << 44 | (uint64_t)root >> 12;
        if (space == 0)
            for (uint64_t n = 0; n < ALIASES; n++)
                map(root, ALIAS + n * PAGE, page(PAGES), RWX);
        map(root, USER, page(PAGES + 1), RWX | U);
    }
    for (uint64_t n = 0; n < PAGES; n++)
        *(uint64_t *)page(n) = n;
    use(0);
    fence_all();
}

/* One word of each page. */
static uint64_t touch(void)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < PAGES; n++)
        sum += *(volatile uint64_t *)(WINDOW + n * PAGE);
    return sum;
}

static uint64_t fence_one(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < rounds; n++) {
        uint64_t at = WINDOW + n % 512 * PAGE;
        fence_page(at);
        sum += *(volatile uint64_t *)at;
    }
    return sum;
}

static uint64_t fence_one_touch(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < rounds; n++) {
        fence_page(WINDOW + n % 512 * PAGE);
        sum += touch();
    }
    return sum;
}

static uint64_t fence_all_touch(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < rounds; n++) {
        fence_all();
        sum += touch();
    }
    return sum;
}

static uint64_t switch_spaces(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < rounds; n++) {
        use(n & 1);
        sum += *(volatile uint64_t *)(WINDOW + n % 512 * PAGE);
    }
    use(0);
    return sum;
}

static uint64_t switch_spaces_touch(uint64_t rounds)
{
    uint64_t sum = 0;
    for (uint64_t n = 0; n < rounds; n++) {
        use(n & 1);
        sum += touch();
    }
    use(0);
    return sum;
}

/* A function that is patched and called; its page has one address, or 16,384 more, all of which have been stored to. */
static uint64_t patch(uint64_t rounds)
{
    volatile uint32_t *code = (volatile uint32_t *)page(PAGES);
    uint64_t (*f)(void) = (uint64_t(*)(void))code;
    uint64_t sum = 0;
    code[1] = 0x8067; /* ret */
    for (uint64_t n = 0; n < rounds; n++) {
        code[0] = 0x513 | (n & 1023) << 20; /* addi a0, zero, n */
        fence_i();
        sum += f();
    }
    return sum;
}

/* Stores beside code, in another line of its page. */
static uint64_t beside(uint64_t rounds)
{
    volatile uint64_t *data = (volatile uint64_t *)((uint64_t)page(PAGES) + 512);
    uint64_t (*f)(void) = (uint64_t(*)(void))page(PAGES);
    uint64_t sum = 0;
    for (uint64_t n = 0; n < rounds; n++) {
        if ((n & 255) == 0)
            sum += f();
        *data += n;
    }
    return sum + *data;
}

static void store_to_all_aliases(void)
{
    for (uint64_t n = 0; n < ALIASES; n++)
        *(volatile uint64_t *)(ALIAS + n * PAGE + 1024) = n;
}

/* Two processes in U-mode that use floating point and call the kernel, which goes on with the other one. */
uint64_t processes[2][72]; /* pc, x1 to x31, f0 to f31, fcsr, satp, the other one's address */
uint64_t switches_left, kernel_stack;
void run_processes(uint64_t *first);

__asm__(".text\n"
        ".globl run_processes\n"
        "run_processes:\n"
        "addi sp, sp, -128\n"
        "sd ra, 0(sp)\n sd s0, 8(sp)\n sd s1, 16(sp)\n sd s2, 24(sp)\n sd s3, 32(sp)\n sd s4, 40(sp)\n sd s5, 48(sp)\n"
        "sd s6, 56(sp)\n sd s7, 64(sp)\n sd s8, 72(sp)\n sd s9, 80(sp)\n sd s10, 88(sp)\n sd s11, 96(sp)\n sd gp, 104(sp)\n"
        "sd tp, 112(sp)\n"
        "la t0, kernel_stack\n"
        "sd sp, 0(t0)\n"
        "la t0, process_trap\n"
        "csrw stvec, t0\n"
        "li t0, 0x100\n"
        "csrc sstatus, t0\n"
        "j process_load\n"
        ".balign 4\n"
        "process_trap:\n"
        "csrrw a0, sscratch, a0\n"
        ".irp n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
        "sd x\\n, 8*\\n(a0)\n"
        ".endr\n"
        "csrr t0, sscratch\n"
        "sd t0, 80(a0)\n"
        "csrr t0, sepc\n"
        "addi t0, t0, 4\n"
        "sd t0, 0(a0)\n"
        "csrr t0, sstatus\n"
        "li t1, 0x6000\n"
        "and t2, t0, t1\n"
        "bne t2, t1, 1f\n" /* floating point is not dirty */
        ".option push\n .option arch, +d\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
        "fsd f\\n, 256+8*\\n(a0)\n"
        ".endr\n"
        "frcsr t0\n"
        "sd t0, 512(a0)\n"
        "1:\n"
        "la t0, switches_left\n"
        "ld t1, 0(t0)\n"
        "addi t1, t1, -1\n"
        "sd t1, 0(t0)\n"
        "beqz t1, process_end\n"
        "ld a0, 528(a0)\n"
        "process_load:\n"
        "ld t0, 520(a0)\n"
        "csrw satp, t0\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
        "fld f\\n, 256+8*\\n(a0)\n"
        ".endr\n"
        "ld t0, 512(a0)\n"
        "fscsr t0\n"
        ".option pop\n"
        "li t0, 0x2000\n" /* clean */
        "csrc sstatus, t0\n"
        "ld t0, 0(a0)\n"
        "csrw sepc, t0\n"
        "csrw sscratch, a0\n"
        ".irp n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
        "ld x\\n, 8*\\n(a0)\n"
        ".endr\n"
        "ld a0, 80(a0)\n"
        "sret\n"
        "process_end:\n"
        "la t0, kernel_stack\n"
        "ld sp, 0(t0)\n"
        "ld ra, 0(sp)\n ld s0, 8(sp)\n ld s1, 16(sp)\n ld s2, 24(sp)\n ld s3, 32(sp)\n ld s4, 40(sp)\n ld s5, 48(sp)\n"
        "ld s6, 56(sp)\n ld s7, 64(sp)\n ld s8, 72(sp)\n ld s9, 80(sp)\n ld s10, 88(sp)\n ld s11, 96(sp)\n ld gp, 104(sp)\n"
        "ld tp, 112(sp)\n"
        "addi sp, sp, 128\n"
        "ret\n");

static uint64_t switch_processes(uint64_t rounds)
{
    static const uint32_t code[] = {0x02b57553, 0x00000073, 0xff9ff06f}; /* fadd.d fa0, fa0, fa1; ecall; again */
    memcpy(page(PAGES + 1), code, sizeof code);
    fence_i();
    for (int n = 0; n < 2; n++) {
        uint64_t *p = processes[n];
        memset(p, 0, sizeof processes[n]);
        p[0] = USER;
        p[32 + 10] = 0;
        p[32 + 11] = n ? 0x4000000000000000 : 0x3ff0000000000000; /* 2.0 and 1.0 */
        p[65] = satps[n];
        p[66] = (uint64_t)processes[n ^ 1];
    }
    csr_set(sstatus, 0x6000);
    switches_left = rounds;
    run_processes(processes[0]);
    use(0);
    return processes[0][32 + 10] + processes[1][32 + 10];
}

/* The bits of a small whole number as a double. */
static uint64_t bits_of(uint64_t whole)
{
    int exponent = 63 - __builtin_clzl(whole);
    return (uint64_t)(1023 + exponent) << 52 | (whole << (52 - exponent) & ((1ul << 52) - 1));
}

#ifdef QUICK
#define SCALED(n) ((n) / 100)
#else
#define SCALED(n) (n)
#endif

/* The sum of n % 512 for n below count, which is a multiple of 512. */
static uint64_t turns_of_512(uint64_t count) { return count / 512 * (511 * 256); }

void suite(void)
{
    prepare_tables();
    const uint64_t all = PAGES * (PAGES - 1) / 2;
    uint64_t n = SCALED(2048000), m = SCALED(4000);
    measure("sfence-page", n, fence_one, n, turns_of_512(n));
    measure("satp", n, switch_spaces, n, turns_of_512(n));
    measure("sfence-page-1000", m, fence_one_touch, m, m * all);
    measure("satp-1000", m, switch_spaces_touch, m, m * all);
    measure("walk", m * PAGES, fence_all_touch, m, m * all);
    n = SCALED(256000);
    measure("process-float", n, switch_processes, n, bits_of(n / 2) + bits_of(n));
    n = SCALED(409600);
    uint64_t patched = n / 1024 * (1023 * 512), rest = n % 1024;
    patched += rest * (rest - 1) / 2;
    measure("patch-alone", n, patch, n, patched);
    uint64_t k = SCALED(16384000), f = (n - 1) & 1023, calls = (k + 255) / 256;
    *(uint64_t *)((uint64_t)page(PAGES) + 512) = 0;
    measure("beside-alone", k, beside, k, calls * f + k * (k - 1) / 2);
    store_to_all_aliases();
    measure("patch-aliases", n, patch, n, patched);
    *(uint64_t *)((uint64_t)page(PAGES) + 512) = 0;
    measure("beside-aliases", k, beside, k, calls * f + k * (k - 1) / 2);
}
