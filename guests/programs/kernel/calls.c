/* System calls. */
#include "kernel.h"

static void wake_idle(void)
{
    for (int h = 0; h < HARTS; h++)
        if (harts[h].idle) {
            others(WAKE, 0, 0);
            return;
        }
}

static uint64_t fork(struct process *process)
{
    float_keep(process);
    struct process *child = process_new(space_copy(process->space), process->number);
    counts.forks++;
    child->frame = process->frame;
    child->frame.x[10] = 0;
    memcpy(child->f, process->f, sizeof child->f);
    child->fcsr = process->fcsr;
    child->has_float = process->has_float;
    wake_idle();
    return child->number;
}

static uint64_t thread(struct process *process, const uint64_t *a)
{
    struct process *child = process_new(process->space, process->number);
    counts.threads++;
    process->space->uses++;
    child->frame.x[0] = a[0];
    child->frame.x[2] = a[2];
    child->frame.x[3] = process->frame.x[3];
    child->frame.x[10] = a[1];
    wake_idle();
    return child->number;
}

/* Whether it has ended; if not, the process waits, and calls again. */
static int wait(struct process *process, uint64_t number, uint64_t *value)
{
    if (number == 0 || number > PROCESSES)
        fail("no such child", number);
    struct process *child = &processes[number - 1];
    if (child->state == FREE || child->parent != process->number)
        fail("not a child", number);
    if (child->state == ENDED) {
        *value = child->value;
        child->state = FREE;
        return 1;
    }
    process->waits_for = number;
    process->state = WAITING;
    process->frame.x[0] -= 4;
    return 0;
}

static void print_name(uint64_t name)
{
    for (; name; name >>= 8)
        putch(name & 0xff);
}

void call(uint64_t hart, struct process *process)
{
    uint64_t *a = &process->frame.x[10], result = 0;
    uint64_t number = process->frame.x[17];
    process->frame.x[0] += 4;
    counts.calls++;
    switch (number) {
    case SYS_EXIT:
        if (process->number == 1)
            finish_checked(a[0]);
        process_end(process, a[0]);
        schedule(hart);
    case SYS_FORK:
        result = fork(process);
        break;
    case SYS_THREAD:
        result = thread(process, a);
        break;
    case SYS_WAIT:
        if (!wait(process, a[0], &result)) {
            float_keep(process);
            schedule(hart);
        }
        break;
    case SYS_YIELD:
        a[0] = 0;
        float_keep(process);
        process->state = READY;
        schedule(hart);
    case SYS_GROW:
        result = process->space->heap_end;
        process->space->heap_end += a[0];
        break;
    case SYS_PROTECT:
        space_protect(process->space, a[0], a[1], a[2]);
        break;
    case SYS_SHARE:
        space_share(process->space, a[0], a[1]);
        break;
    case SYS_ALIAS:
        space_alias(process->space, a[0], a[1], a[2]);
        break;
    case SYS_FENCE_I:
        fence_i();
        others(FENCE_CODE, 0, 0);
        break;
    case SYS_PREEMPTED:
        result = process->preempted;
        break;
    case SYS_HARTS:
        result = 1;
        for (int h = 0; h < HARTS; h++)
            result &= harts[h].turns > 0;
        break;
    case SYS_REPORT:
        print_name(a[0]);
        print(" check=%016lx\n", a[1]);
        break;
    case SYS_FAIL:
        print_name(a[0]);
        print(": failed, check %lu\n", a[1]);
        finish(a[1] ? a[1] : 1);
    default:
        fail("no such call", number);
    }
    a[0] = result;
    resume(hart, process);
}
