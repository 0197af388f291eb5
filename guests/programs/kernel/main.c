/* Start, traps, and the sums at the end. */
#include "kernel.h"

struct counts counts;
static volatile uint32_t up;
static uint64_t frames_at_start;

void fail(const char *what, uint64_t value)
{
    print("kernel: %s: %lx\n", what, value);
    finish(96);
}

void kernel_trap(uint64_t cause, uint64_t epc, uint64_t tval)
{
    print("kernel: a trap of its own: cause %lx at %lx, tval %lx\n", cause, epc, tval);
    finish(95);
}

void kernel_main(uint64_t hart)
{
    if (hart == 0) {
        memory_start();
        frames_at_start = frames_free();
        struct process *first = process_new(space_new(), 1);
        first->frame.x[0] = *(const uint64_t *)(user_elf + 0x18);
        first->frame.x[2] = USER_STACK;
        __atomic_store_n(&up, 1, __ATOMIC_RELEASE);
    } else {
        while (!__atomic_load_n(&up, __ATOMIC_ACQUIRE))
            ;
        __atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
    }
    sfence_all();
    use_kernel_tables();
    if (hart == 0) {
        while (__atomic_load_n(&up, __ATOMIC_ACQUIRE) != HARTS)
            ;
        print("kernel: harts=%d\n", HARTS);
    }
    csr_write(scounteren, 7);
    lock();
    schedule(hart);
}

/* An illegal instruction because floating point is off is a process's first. */
static int first_float(struct process *process)
{
    if (process->has_float)
        return 0;
    process->has_float = 1;
    counts.float_first++;
    return 1;
}

void user_trap(struct frame *frame, uint64_t cause, uint64_t tval)
{
    struct process *process = (struct process *)frame;
    uint64_t hart = frame->hart;
    lock();
    if (harts[hart].process != process || process->state != RUNNING)
        fail("another process runs than should", process->number);
    switch (cause) {
    case 2:
        if (!first_float(process))
            fail("an illegal instruction", frame->x[0]);
        break;
    case 8:
        call(hart, process);
    case 12:
    case 13:
    case 15:
        if (!fault(process, cause, tval)) {
            float_keep(process);
            process->state = READY;
            schedule(hart);
        }
        break;
    case 1ul << 63 | 1: /* another hart has made work for an idle one */
        csr_clear(sip, 2);
        break;
    case 1ul << 63 | 5:
        counts.preempted++;
        process->preempted++;
        float_keep(process);
        process->state = READY;
        schedule(hart);
    default:
        print("kernel: process %d: cause %lx at %lx, tval %lx\n", process->number, cause, frame->x[0], tval);
        finish(94);
    }
    resume(hart, process);
}

static void equal(const char *what, uint64_t a, uint64_t b)
{
    if (a != b) {
        print("kernel: %s: %lu and %lu\n", what, a, b);
        finish(93);
    }
}

static void some(const char *what, uint64_t count)
{
    if (count == 0) {
        print("kernel: %s: none\n", what);
        finish(92);
    }
}

/* The first process has ended: is everything given back, and does everything add up? */
void finish_checked(uint64_t value)
{
    struct process *first = &processes[0];
    process_end(first, value);
    for (int n = 1; n < PROCESSES; n++)
        equal("a process is left", processes[n].state, FREE);
    equal("frames", frames_free(), frames_at_start);
    equal("beginnings and ends", counts.forks + counts.threads + 1, counts.ends);
    const struct counts *c = &counts;
    equal("faults", c->faults, c->zeroed + c->loaded + c->copied + c->kept + c->raced + c->refused);
    some("copies on write", c->copied);
    some("pages that were kept", c->kept);
    some("preemptions", c->preempted);
    some("floating-point state saved", c->float_saved);
    some("floating-point state loaded", c->float_loaded);
    if (HARTS > 1)
        some("fences of other harts", c->fences);
    /* What does not depend on which process had its turn. */
    print("kernel: forks=%lu threads=%lu zeroed=%lu loaded=%lu float=%lu\n", c->forks, c->threads, c->zeroed,
          c->loaded, c->float_first);
    print("kernel check=%016lx\n", value);
    finish(0);
}
