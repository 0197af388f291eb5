/* The whole runtime of a guest program: a console, a clock, an end. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define UART 0x10000000ul      /* ns16550, registers one byte apart */
#define UART_LSR (UART + 5)
#define UART_SCR (UART + 7)
#define FINISHER 0x100000ul
#define CLINT 0x2000000ul
#define MSIP (CLINT)
#define MTIMECMP (CLINT + 0x4000)
#define MTIME (CLINT + 0xbff8) /* 10 MHz */

#define REG8(addr) (*(volatile uint8_t *)(addr))
#define REG32(addr) (*(volatile uint32_t *)(addr))
#define REG64(addr) (*(volatile uint64_t *)(addr))

#define NOINLINE __attribute__((noinline, noclone))

extern char __heap[]; /* free RAM, 2 MiB aligned, at least 100 MiB of it */

void putch(char c);
/* %s %c %d %u %x with an optional l, and a width with leading zeros: %016lx */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the run: 0 is a pass, anything else (16 bits) the code of the failure. */
void finish(int code) __attribute__((noreturn));

/* Called on every trap; returns where to go on. The default reports and ends the run. */
uint64_t trap(uint64_t cause, uint64_t epc, uint64_t tval);

/* Where harts 1 to 3 start, at reset, with .bss not yet cleared. The default returns, and the hart sleeps. */
void secondary(uint64_t hart);

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);

static inline uint64_t mtime(void) { return REG64(MTIME); }
static inline void fence_i(void) { __asm__ volatile("fence.i" ::: "memory"); }

#define csr_write(csr, value) __asm__ volatile("csrw " #csr ", %0" ::"r"(value) : "memory")
#define csr_set(csr, value) __asm__ volatile("csrs " #csr ", %0" ::"r"(value) : "memory")
#define csr_clear(csr, value) __asm__ volatile("csrc " #csr ", %0" ::"r"(value) : "memory")
#define csr_read(csr) ({ uint64_t v_; __asm__ volatile("csrr %0, " #csr : "=r"(v_)); v_; })

#define MSTATUS_MIE 8ul
#define MIP_MSIP (1ul << 3)
#define MIP_MTIP (1ul << 7)

/* xorshift64: input data for every program here, the same on each engine. */
static inline uint64_t random64(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* Folds a value into a running checksum; order matters. */
static inline uint64_t mix(uint64_t check, uint64_t value)
{
    check = (check ^ value) * 0x9e3779b97f4a7c15ul;
    return check ^ (check >> 29);
}
