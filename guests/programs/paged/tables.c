/* Page tables for a program that knows nothing of them: start.S goes to S-mode with them and then to main. All of RAM is
 * where it was, in pages of 4 KiB; devices are one page of 1 GiB.
 *
 *   PAGED=1   each page of memory is where it seems to be
 *   PAGED=2   frames are shuffled: those behind the program among themselves, and the program is copied, page by page
 *
 *   0x8000_0000  program   __heap ··· heap ···   room for a copy of the program   0x87f0_0000 tables */
#include "../lib.h"

#define RAM 0x80000000ul
#define PAGE 4096ul
#define RAM_SIZE 0x8000000ul /* QEMU's board has 128 MiB */
#define TABLES 0x87f00000ul
#define RIGHTS 0xcful       /* V R W X A D */

static uint64_t *const root = (uint64_t *)TABLES;
static uint64_t *const middle = (uint64_t *)(TABLES + PAGE);
static uint64_t *const leaves = (uint64_t *)(TABLES + 2 * PAGE);

static uint64_t entry(uint64_t address, uint64_t bits) { return address >> 12 << 10 | bits; }

static void shuffle(uint64_t *entries, uint64_t count, uint64_t *state)
{
    for (uint64_t n = count; n > 1; n--) {
        uint64_t other = random64(state) % n, e = entries[n - 1];
        entries[n - 1] = entries[other];
        entries[other] = e;
    }
}

/* What satp has to be. Nothing on the stack survives: with PAGED=2 it is copied in the middle of this. */
uint64_t paged_tables(void)
{
    uint64_t own = ((uint64_t)__heap - RAM) / PAGE, all = (TABLES - RAM) / PAGE, state = 42;
    memset(root, 0, 2 * PAGE);
    root[0] = entry(0, RIGHTS);
    root[RAM >> 30] = entry((uint64_t)middle, 1);
    for (uint64_t n = 0; n < RAM_SIZE / PAGE / 512; n++)
        middle[n] = entry((uint64_t)leaves + n * PAGE, 1);
    for (uint64_t n = 0; n < RAM_SIZE / PAGE; n++)
        leaves[n] = entry(RAM + n * PAGE, RIGHTS);
    if (PAGED == 2) {
        uint64_t room = all - own;
        if (room < own)
            finish(90);
        memcpy(leaves, leaves + room, own * 8);
        memset(leaves + room, 0, own * 8);
        shuffle(leaves, own, &state);
        shuffle(leaves + own, room - own, &state);
        for (uint64_t n = 0; n < own; n++)
            memcpy((void *)(leaves[n] >> 10 << 12), (const void *)(RAM + n * PAGE), PAGE);
    }
    return 8ul << 60 | (uint64_t)root >> 12;
}
