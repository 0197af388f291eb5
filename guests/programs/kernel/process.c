/* The table of processes, and which one has its turn. */
#include "kernel.h"

struct process processes[PROCESSES];
struct hart harts[HARTS];

#define SLICE 5000ul /* ticks of 100 ns */
#define STIMECMP "0x14d"
#define SIE (1ul << 1 | 1ul << 5) /* software, timer */

static volatile uint32_t held;

void lock(void)
{
    while (__atomic_exchange_n(&held, 1, __ATOMIC_ACQUIRE))
        while (held)
            ;
}

void unlock(void) { __atomic_store_n(&held, 0, __ATOMIC_RELEASE); }

static void set_timer(void)
{
    uint64_t now;
    __asm__ volatile("rdtime %0" : "=r"(now));
    __asm__ volatile("csrw " STIMECMP ", %0" ::"r"(now + SLICE));
}

struct process *process_new(struct space *space, int parent)
{
    for (int n = 0; n < PROCESSES; n++) {
        struct process *p = &processes[n];
        if (p->state != FREE)
            continue;
        memset(p, 0, sizeof *p);
        p->space = space;
        p->number = n + 1;
        p->parent = parent;
        p->float_hart = -1;
        p->state = READY;
        return p;
    }
    fail("no processes left", PROCESSES);
}

/* Registers that were written are put where the process keeps them; the hart still has them, too. */
void float_keep(struct process *process)
{
    if ((csr_read(sstatus) & SSTATUS_FS) != FS_DIRTY)
        return;
    counts.float_saved++;
    float_save(process->f);
    csr_clear(sstatus, SSTATUS_FS);
    csr_set(sstatus, FS_CLEAN);
}

static void float_bring(uint64_t hart, struct process *process)
{
    if ((csr_read(sstatus) & SSTATUS_FS) == FS_DIRTY)
        return; /* back to where the trap came from: nothing was kept, nothing is lost */
    csr_clear(sstatus, SSTATUS_FS);
    if (!process->has_float)
        return; /* off: the first use is a trap */
    csr_set(sstatus, FS_DIRTY);
    if (harts[hart].float_owner != process || process->float_hart != (int)hart) {
        counts.float_loaded++;
        float_load(process->f);
        harts[hart].float_owner = process;
        process->float_hart = hart;
    }
    csr_clear(sstatus, SSTATUS_FS);
    csr_set(sstatus, FS_CLEAN);
}

void process_end(struct process *process, uint64_t value)
{
    counts.ends++;
    use_kernel_tables();
    csr_clear(sstatus, SSTATUS_FS);
    for (int h = 0; h < HARTS; h++)
        if (harts[h].float_owner == process)
            harts[h].float_owner = NULL;
    space_drop(process->space);
    process->space = NULL;
    process->value = value;
    process->state = ENDED;
    struct process *parent = &processes[process->parent - 1];
    if (parent->state == WAITING && parent->waits_for == process->number)
        parent->state = READY;
}

void resume(uint64_t hart, struct process *process)
{
    harts[hart].process = process;
    use_space(process->space);
    float_bring(hart, process);
    extern char __stack[]; /* stacks begin anew at each trap */
    process->frame.kernel_sp = (uint64_t)__stack - (hart << 14);
    process->frame.hart = hart;
    csr_clear(sstatus, SSTATUS_SPP);
    csr_set(sstatus, SSTATUS_SPIE);
    unlock();
    user_return(&process->frame);
}

/* The next process that is ready, behind the last one that ran; sleeps while there is none. */
void schedule(uint64_t hart)
{
    static int last;
    harts[hart].process = NULL;
    csr_write(sie, SIE);
    for (;;) {
        set_timer();
        for (int n = 1; n <= PROCESSES; n++) {
            int at = (last + n) % PROCESSES;
            if (processes[at].state == READY) {
                last = at;
                processes[at].state = RUNNING;
                harts[hart].turns++;
                harts[hart].idle = 0;
                resume(hart, &processes[at]);
            }
        }
        harts[hart].idle = 1;
        use_kernel_tables();
        unlock();
        __asm__ volatile("wfi");
        csr_clear(sip, 2);
        lock();
    }
}
