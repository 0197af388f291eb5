/* A small kernel: processes in U-mode under Sv39, preempted by Sstc's timer, on HARTS harts.
 *
 *   boot.S      reset, the way to S-mode, entries of traps in M-mode and S-mode, floating-point registers
 *   firmware.c  M-mode: fences and wake-ups of other harts, by CLINT's software interrupts
 *   memory.c    frames with counts of their uses, page tables, faults, copies on write
 *   process.c   the table of processes, their turns, floating point
 *   calls.c     system calls
 *   main.c      start, traps, and the sums that have to be right at the end
 *   user.c      the processes: linked by themselves, in here as an ELF file
 *
 * One lock is held from a trap's start to its end, so nothing here is done by two harts at once. A process that waits has
 * no stack in the kernel: it is set back to its ecall, which is done again when it is woken. */
#pragma once
#include "../lib.h"
#include "sys.h"

#ifndef HARTS
#define HARTS 1
#endif

#define PAGE 4096ul
#define PTE_V 1ul
#define PTE_U 16ul
#define PTE_G 32ul
#define PTE_A 64ul
#define PTE_D 128ul
#define PTE_COW 256ul    /* ours: writable, once it is this process's own */
#define PTE_SHARED 512ul /* ours: a fork leaves it writable in both */
typedef uint64_t pte;

/* An address space. */
struct space {
    pte *root;
    uint64_t asid;
    uint64_t heap_end;
    int uses; /* processes and threads in it */
};

/* Registers of a process; x[0] is its pc. boot.S knows the layout. */
struct frame {
    uint64_t x[32];
    uint64_t kernel_sp;
    uint64_t hart;
};

enum state { FREE, READY, RUNNING, WAITING, ENDED };

struct process {
    struct frame frame;
    uint64_t f[32];
    uint64_t fcsr;
    int has_float;  /* it has used floating point */
    int float_hart; /* where f is loaded as well, or -1 */
    struct space *space;
    enum state state;
    int number, parent;
    int waits_for;
    uint64_t value; /* what it ended with */
    uint64_t preempted;
};

struct hart {
    struct process *process;
    struct process *float_owner; /* the registers hold what this one has */
    uint64_t turns;
    int idle;
};

/* What was done, to be summed up at the end. */
struct counts {
    uint64_t forks, threads, ends, calls;
    uint64_t faults, zeroed, loaded, copied, kept, raced, refused;
    uint64_t float_first, float_saved, float_loaded;
    uint64_t preempted, fences;
};

#define PROCESSES 48
extern struct process processes[PROCESSES];
extern struct hart harts[HARTS];
extern struct counts counts;

/* Ends the run with a line. */
void fail(const char *what, uint64_t value) __attribute__((noreturn));

/* memory.c */
void memory_start(void);
uint64_t frames_free(void);
void use_kernel_tables(void);
void use_space(struct space *space);
struct space *space_new(void);
struct space *space_copy(struct space *of);
void space_drop(struct space *space);
/* Whether the process can go on; if not, it has to try again later. */
int fault(struct process *process, uint64_t cause, uint64_t address);
void space_protect(struct space *space, uint64_t address, uint64_t pages, uint64_t rights);
void space_share(struct space *space, uint64_t address, uint64_t pages);
void space_alias(struct space *space, uint64_t address, uint64_t other, uint64_t rights);

/* process.c */
struct process *process_new(struct space *space, int parent);
void process_end(struct process *process, uint64_t value);
void float_keep(struct process *process);
void schedule(uint64_t hart) __attribute__((noreturn));
void resume(uint64_t hart, struct process *process) __attribute__((noreturn));
void lock(void);
void unlock(void);

/* calls.c */
void call(uint64_t hart, struct process *process) __attribute__((noreturn));

/* main.c */
void finish_checked(uint64_t value) __attribute__((noreturn));

/* firmware.c, called by ecall */
enum { FENCE_ADDRESS = 1, FENCE_SPACE, FENCE_ALL, FENCE_CODE, WAKE };
/* On all other harts, and done there when it returns; a WAKE may come later. */
void others(uint64_t what, uint64_t address, uint64_t asid);

/* boot.S */
void user_return(struct frame *frame) __attribute__((noreturn));
void float_save(uint64_t *f);
void float_load(const uint64_t *f);
extern const char user_elf[];

#define SSTATUS_SPP 0x100ul
#define SSTATUS_SPIE 0x20ul
#define SSTATUS_FS 0x6000ul
#define FS_INITIAL 0x2000ul
#define FS_CLEAN 0x4000ul
#define FS_DIRTY 0x6000ul

static inline void sfence(uint64_t address, uint64_t asid)
{
    __asm__ volatile("sfence.vma %0, %1" ::"r"(address), "r"(asid) : "memory");
}
static inline void sfence_space(uint64_t asid) { __asm__ volatile("sfence.vma zero, %0" ::"r"(asid) : "memory"); }
static inline void sfence_all(void) { __asm__ volatile("sfence.vma" ::: "memory"); }
