/* Frames, page tables, faults.
 *
 *   0x0000_0000  devices, a global page of 1 GiB
 *   0x4000_0000  the process: its file, heap, aliases, stack
 *   0x8000_0000  RAM, global pages of 2 MiB, the kernel's
 *
 * Pages of the file that no process writes are the file's own bytes in the kernel's image; all else is a frame, which counts
 * the entries that show it. */
#include "kernel.h"

#define FRAMES 4096ul
#define RAM 0x80000000ul
#define RAM_SIZE 0x2000000ul

static uint64_t base; /* of the frames */
static uint16_t uses[FRAMES];
static uint32_t free_list[FRAMES];
static uint64_t free_count;

static pte kernel_root[512] __attribute__((aligned(4096)));
static pte kernel_ram[512] __attribute__((aligned(4096)));

#define SPACES 32
static struct space spaces[SPACES];

static inline pte entry(uint64_t address, uint64_t bits) { return address >> 12 << 10 | bits; }
static inline uint64_t address_of(pte e) { return e >> 10 << 12; }
static inline int is_frame(uint64_t address) { return address >= base && address < base + FRAMES * PAGE; }
static inline uint16_t *uses_of(uint64_t address) { return &uses[(address - base) / PAGE]; }

uint64_t frames_free(void) { return free_count; }

static uint64_t frame_new(void)
{
    if (free_count == 0)
        fail("no frames left", FRAMES);
    uint64_t n = free_list[--free_count];
    if (uses[n] != 0)
        fail("a free frame is in use", n);
    uses[n] = 1;
    memset((void *)(base + n * PAGE), 0, PAGE);
    return base + n * PAGE;
}

static void frame_drop(uint64_t address)
{
    if (!is_frame(address))
        return;
    uint16_t *u = uses_of(address);
    if (*u == 0)
        fail("a frame is dropped twice", address);
    if (--*u == 0)
        free_list[free_count++] = (address - base) / PAGE;
}

void memory_start(void)
{
    base = ((uint64_t)__heap + PAGE - 1) & -PAGE;
    for (uint64_t n = 0; n < FRAMES; n++)
        free_list[n] = FRAMES - 1 - n;
    free_count = FRAMES;
    uint64_t rights = PTE_V | PTE_R | PTE_W | PTE_G | PTE_A | PTE_D;
    kernel_root[0] = entry(0, rights);
    kernel_root[2] = entry((uint64_t)kernel_ram, PTE_V);
    for (uint64_t n = 0; n < RAM_SIZE >> 21; n++)
        kernel_ram[n] = entry(RAM + (n << 21), rights | PTE_X);
    if (base + FRAMES * PAGE > RAM + RAM_SIZE)
        fail("frames beyond RAM", base);
}

static void use_root(pte *root, uint64_t asid)
{
    uint64_t satp = 8ul << 60 | asid << 44 | (uint64_t)root >> 12;
    if (csr_read(satp) != satp)
        csr_write(satp, satp);
}

void use_kernel_tables(void) { use_root(kernel_root, 0); }
void use_space(struct space *space) { use_root(space->root, space->asid); }

struct space *space_new(void)
{
    for (uint64_t n = 0; n < SPACES; n++) {
        struct space *s = &spaces[n];
        if (s->uses)
            continue;
        s->root = (pte *)frame_new();
        s->root[0] = kernel_root[0];
        s->root[2] = kernel_root[2];
        s->asid = n + 1;
        s->heap_end = USER_HEAP;
        s->uses = 1;
        /* The number may have been another space's. */
        sfence_space(s->asid);
        others(FENCE_SPACE, 0, s->asid);
        return s;
    }
    fail("no address spaces left", SPACES);
}

/* The entry of a page; NULL if its tables are not there and must not be made. */
static pte *find(struct space *space, uint64_t address, int make)
{
    pte *table = space->root;
    for (int level = 2; level > 0; level--) {
        pte *e = &table[address >> (12 + 9 * level) & 511];
        if (!(*e & PTE_V)) {
            if (!make)
                return NULL;
            *e = entry(frame_new(), PTE_V);
        }
        table = (pte *)address_of(*e);
    }
    return &table[address >> 12 & 511];
}

/* Calls what(entry, address, arg) for every page that is there. */
static void each(struct space *space, void (*what)(pte *, uint64_t, void *), void *arg)
{
    pte *root = space->root;
    if (!(root[1] & PTE_V))
        return;
    pte *middle = (pte *)address_of(root[1]);
    for (uint64_t i = 0; i < 512; i++) {
        if (!(middle[i] & PTE_V))
            continue;
        pte *leaves = (pte *)address_of(middle[i]);
        for (uint64_t j = 0; j < 512; j++)
            if (leaves[j] & PTE_V)
                what(&leaves[j], USER_BASE | i << 21 | j << 12, arg);
    }
}

static void copy_one(pte *e, uint64_t address, void *to)
{
    if (*e & PTE_W && !(*e & PTE_SHARED))
        *e = (*e & ~(PTE_W | PTE_D)) | PTE_COW;
    *find(to, address, 1) = *e;
    if (is_frame(address_of(*e)))
        ++*uses_of(address_of(*e));
}

struct space *space_copy(struct space *of)
{
    struct space *s = space_new();
    s->heap_end = of->heap_end;
    each(of, copy_one, s);
    sfence_space(of->asid);
    others(FENCE_SPACE, 0, of->asid);
    return s;
}

static void drop_one(pte *e, uint64_t address, void *arg)
{
    (void)address, (void)arg;
    frame_drop(address_of(*e));
    *e = 0;
}

/* Its tables are in use by no hart: the last of its processes is gone. */
void space_drop(struct space *space)
{
    if (--space->uses)
        return;
    each(space, drop_one, NULL);
    if (space->root[1] & PTE_V) {
        pte *middle = (pte *)address_of(space->root[1]);
        for (uint64_t i = 0; i < 512; i++)
            if (middle[i] & PTE_V)
                frame_drop(address_of(middle[i]));
        frame_drop((uint64_t)middle);
    }
    frame_drop((uint64_t)space->root);
}

/* Another entry than before, for every hart that may know the old one. */
static void renewed(struct space *space, uint64_t address)
{
    sfence(address, space->asid);
    if (space->uses > 1)
        others(FENCE_ADDRESS, address, space->asid);
}

/* The page of the file at an address: its bytes, how many there are of them, its rights; 0 if there is no such page. */
static int of_file(uint64_t address, const char **bytes, uint64_t *count, uint64_t *rights)
{
    const char *elf = user_elf;
    const char *header = elf + *(const uint64_t *)(elf + 0x20);
    for (int n = *(const uint16_t *)(elf + 0x38); n; n--, header += 56) {
        uint32_t type = *(const uint32_t *)header, flags = *(const uint32_t *)(header + 4);
        uint64_t offset = *(const uint64_t *)(header + 8), start = *(const uint64_t *)(header + 16);
        uint64_t in_file = *(const uint64_t *)(header + 32), in_memory = *(const uint64_t *)(header + 40);
        if (type != 1 || address < start || address >= ((start + in_memory + PAGE - 1) & -PAGE))
            continue;
        *bytes = elf + offset + (address - start);
        *count = address - start >= in_file ? 0 : in_file - (address - start);
        *rights = PTE_V | PTE_U | PTE_A | PTE_R | (flags & 1 ? PTE_X : 0) | (flags & 2 ? PTE_W : 0);
        return 1;
    }
    return 0;
}

/* A page that is not there yet. */
static int bring(struct space *space, pte *e, uint64_t address, uint64_t cause)
{
    const char *bytes;
    uint64_t count = 0, rights = PTE_V | PTE_U | PTE_A | PTE_D | PTE_R | PTE_W;
    if (of_file(address, &bytes, &count, &rights)) {
        if (!(rights & PTE_W)) {
            counts.loaded++;
            *e = entry((uint64_t)bytes, rights);
            return 1;
        }
        rights |= PTE_D;
    } else if (!(address >= USER_HEAP && address < space->heap_end) &&
               !(address >= USER_STACK_END && address < USER_STACK)) {
        return 0;
    }
    /* Bytes of the file that are only read for now stay where they are. */
    if (count >= PAGE && cause != 15) {
        counts.loaded++;
        *e = entry((uint64_t)bytes, (rights & ~(PTE_W | PTE_D)) | PTE_COW);
        return 1;
    }
    uint64_t frame = frame_new();
    if (count) {
        counts.loaded++;
        memcpy((void *)frame, bytes, count < PAGE ? count : PAGE);
    } else {
        counts.zeroed++;
    }
    *e = entry(frame, rights);
    return 1;
}

/* The page of an entry is this space's own from now on. */
static void own(pte *e)
{
    uint64_t from = address_of(*e), bits = (*e & 1023 & ~PTE_COW) | PTE_W | PTE_D;
    if (is_frame(from) && *uses_of(from) == 1) {
        counts.kept++;
        *e |= PTE_W | PTE_D;
        *e &= ~PTE_COW;
        return;
    }
    uint64_t to = frame_new();
    memcpy((void *)to, (void *)from, PAGE);
    *e = entry(to, bits);
    counts.copied++;
    frame_drop(from);
}

int fault(struct process *process, uint64_t cause, uint64_t address)
{
    struct space *space = process->space;
    uint64_t needed = cause == 12 ? PTE_X : cause == 13 ? PTE_R : PTE_W;
    counts.faults++;
    address &= -PAGE;
    pte *e = find(space, address, 1);
    if (!(*e & PTE_V)) {
        if (!bring(space, e, address, cause))
            fail("a wild address", address);
        sfence(address, space->asid);
    } else if (*e & needed) {
        /* Another thread had the same fault. */
        counts.raced++;
        sfence(address, space->asid);
    } else if (needed == PTE_W && *e & PTE_COW) {
        own(e);
        renewed(space, address);
    } else if (needed == PTE_W) {
        counts.refused++;
        return 0;
    } else {
        fail("no right to it", address);
    }
    return 1;
}

static pte *present(struct space *space, uint64_t address)
{
    pte *e = find(space, address, 0);
    if (!e || !(*e & PTE_V) || !(*e & PTE_U))
        fail("no such page", address);
    if (*e & PTE_COW)
        own(e);
    return e;
}

void space_protect(struct space *space, uint64_t address, uint64_t pages, uint64_t rights)
{
    for (; pages--; address += PAGE) {
        pte *e = present(space, address);
        *e = (*e & ~(PTE_R | PTE_W | PTE_X)) | rights;
        renewed(space, address);
    }
}

void space_share(struct space *space, uint64_t address, uint64_t pages)
{
    for (; pages--; address += PAGE) {
        *present(space, address) |= PTE_SHARED;
        renewed(space, address);
    }
}

/* Both are shared with children, or a write would part them. */
void space_alias(struct space *space, uint64_t address, uint64_t other, uint64_t rights)
{
    pte *from = present(space, address), *to = find(space, other, 1);
    if (*to & PTE_V)
        fail("an alias over a page", other);
    *from |= PTE_SHARED;
    ++*uses_of(address_of(*from));
    *to = (*from & ~(PTE_R | PTE_W | PTE_X)) | rights;
    renewed(space, address);
    renewed(space, other);
}
