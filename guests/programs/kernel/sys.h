/* What the kernel and its processes agree on. A call's number is in a7, its operands in a0 to a3, its result in a0. */
#pragma once

enum {
    SYS_EXIT = 1,  /* (value): ends this process, or thread */
    SYS_FORK,      /* (): the child's number, 0 in the child */
    SYS_THREAD,    /* (entry, argument, stack): a thread of this address space, its number */
    SYS_WAIT,      /* (number): what that child ended with */
    SYS_YIELD,     /* (): another process's turn */
    SYS_GROW,      /* (bytes): the heap grows, where it ended before */
    SYS_PROTECT,   /* (address, pages, rights): of pages that are there, alone or shared; rights as in an entry */
    SYS_SHARE,     /* (address, pages): a fork does not copy them */
    SYS_ALIAS,     /* (address, other, rights): the page of one address is also seen at the other */
    SYS_FENCE_I,   /* (): fence.i on every hart */
    SYS_PREEMPTED, /* (): how often the timer took the hart from this process */
    SYS_HARTS,     /* (): a bit for each hart that has run a process, by which the machine is full: 1 if all have */
    SYS_REPORT,    /* (name, value): prints a line; up to eight letters in a register */
    SYS_FAIL,      /* (name, code): ends the run */
};

/* Rights, as they stand in page-table entries. */
#define PTE_R 2
#define PTE_W 4
#define PTE_X 8

/* Addresses of a process: its file, its heap behind it, aliases, its stack. */
#define USER_BASE 0x40000000ul
#define USER_HEAP 0x50000000ul
#define USER_ALIAS 0x60000000ul
#define USER_STACK 0x7ff00000ul /* below it, down to USER_STACK_END */
#define USER_STACK_END (USER_STACK - 0x100000ul)
