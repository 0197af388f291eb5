/* M-mode: what a hart asks of the others, as firmware does it. One hart asks at a time, as it holds the kernel's lock. */
#include "kernel.h"

static struct {
    uint64_t what, address, asid;
} asked;
static volatile uint32_t to_do[HARTS]; /* that hart has not done what is asked */
static volatile uint32_t to_wake[HARTS];

#define SIP_SSIP 2ul

static void do_it(void)
{
    switch (asked.what) {
    case FENCE_ADDRESS:
        sfence(asked.address, asked.asid);
        break;
    case FENCE_SPACE:
        sfence_space(asked.asid);
        break;
    case FENCE_ALL:
        sfence_all();
        break;
    case FENCE_CODE:
        fence_i();
        break;
    }
}

static void interrupted(uint64_t hart)
{
    REG32(MSIP + 4 * hart) = 0;
    __sync_synchronize();
    if (__atomic_exchange_n(&to_wake[hart], 0, __ATOMIC_SEQ_CST))
        csr_set(mip, SIP_SSIP);
    if (to_do[hart]) {
        __sync_synchronize();
        do_it();
        __sync_synchronize();
        to_do[hart] = 0;
    }
}

static void ask_others(uint64_t hart, uint64_t what, uint64_t address, uint64_t asid)
{
    if (what != WAKE) {
        asked.what = what;
        asked.address = address;
        asked.asid = asid;
        __sync_synchronize();
    }
    for (uint64_t h = 0; h < HARTS; h++) {
        if (h == hart)
            continue;
        if (what == WAKE)
            to_wake[h] = 1;
        else
            to_do[h] = 1;
        __sync_synchronize();
        REG32(MSIP + 4 * h) = 1;
    }
    if (what != WAKE)
        for (uint64_t h = 0; h < HARTS; h++)
            while (h != hart && to_do[h])
                ;
    __sync_synchronize();
}

void firmware(uint64_t cause, const uint64_t *a)
{
    uint64_t hart = csr_read(mhartid);
    if (cause == (1ul << 63 | 3)) {
        interrupted(hart);
    } else if (cause == 9) {
        csr_write(mepc, csr_read(mepc) + 4);
        ask_others(hart, a[0], a[1], a[2]);
    } else {
        print("kernel: machine mode: cause %lx at %lx, tval %lx\n", cause, csr_read(mepc), csr_read(mtval));
        finish(97);
    }
}

void others(uint64_t what, uint64_t address, uint64_t asid)
{
    if (HARTS == 1)
        return;
    counts.fences += what != WAKE;
    register uint64_t a0 __asm__("a0") = what, a1 __asm__("a1") = address, a2 __asm__("a2") = asid;
    __asm__ volatile("ecall" : "+r"(a0), "+r"(a1), "+r"(a2)::"memory");
}
