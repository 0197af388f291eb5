// A crash four calls deep in optimised code: a leaf without a frame, frames of two sizes and of a size known at run time.
// Built without frame pointers; the tables of frames are .eh_frame or .debug_frame.
#define APART __attribute__((noinline, noclone))

int main(void);
int crash_depth = 3;

APART int leaf(const int *p) { return *p; }

APART int outer(int n, const int *p) {
    volatile char pad[3000];
    pad[n] = (char)n;
    return leaf(p) + pad[n];
}

APART int changing(int n, const int *p) {
    volatile int array[n * 10];
    for (int i = 0; i < n * 10; i++) array[i] = i;
    return outer(n, p) + array[n];
}

volatile int done;

APART int twice(int n, const int *p) {
    int result = n ? twice(n - 1, p) : changing(crash_depth, p);
    done = n; // it is no loop
    return result;
}

int main(void) { return twice(crash_depth, (const int *)8) + 1; }

// No handler: the first trap is the last.
void _start(void);
__asm__(".section .text.start, \"ax\"\n.globl _start\n_start:\n.cfi_startproc\n.cfi_undefined ra\n"
        "la sp, __stack\ncall main\n1: j 1b\n.cfi_endproc\n.text\n");
