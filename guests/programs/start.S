# Reset to main, and the trap entry that C handlers hang on. Hart 0 runs main; harts 1 to 3 call secondary, which sleeps
# unless the program has its own; further harts sleep.

    .section .text.start, "ax"
    .globl _start
_start:
    csrr  t0, mhartid
    bnez  t0, park
    .option push
    .option norelax
    la    gp, __global_pointer$
    .option pop
    la    sp, __stack
    la    tp, __tls
    la    t0, __trap_entry
    csrw  mtvec, t0
#ifdef __riscv_flen
    li    t0, 0x2000        # the floating-point unit is on: mstatus.FS is initial
    csrs  mstatus, t0
#endif
    la    t0, __bss
    la    t1, __bss_end
1:  bgeu  t0, t1, 2f
    sd    zero, 0(t0)
    addi  t0, t0, 8
    j     1b
2:
#ifdef PAGED
    # To S-mode, with page tables: paged/tables.c. Traps come here, to M-mode, but for calls of U-mode.
    call  paged_tables
    csrw  satp, a0
    sfence.vma
    fence.i
    li    t0, -1
    csrw  pmpaddr0, t0
    li    t0, 0x1f
    csrw  pmpcfg0, t0
    li    t0, 0x100
    csrw  medeleg, t0
    li    t0, 0x1800
    csrc  mstatus, t0
    li    t0, 0x800
    csrs  mstatus, t0
    la    t0, 3f
    csrw  mepc, t0
    mret
3:
#endif
    call  main
    tail  finish            # main's result is the exit code

# The stack area is 64 KiB, 16 KiB for each of four harts.
park:
    li    t1, 4
    bgeu  t0, t1, 1f
    .option push
    .option norelax
    la    gp, __global_pointer$
    .option pop
    la    t1, __trap_entry
    csrw  mtvec, t1
    la    sp, __stack
    slli  t1, t0, 14
    sub   sp, sp, t1
    mv    a0, t0
    call  secondary
1:  wfi
    j     1b

# Saves what a C function may clobber, calls trap(cause, epc, tval), resumes where it says.
    .balign 4
    .globl __trap_entry
__trap_entry:
    addi  sp, sp, -128
    sd    ra, 0(sp)
    sd    t0, 8(sp)
    sd    t1, 16(sp)
    sd    t2, 24(sp)
    sd    t3, 32(sp)
    sd    t4, 40(sp)
    sd    t5, 48(sp)
    sd    t6, 56(sp)
    sd    a0, 64(sp)
    sd    a1, 72(sp)
    sd    a2, 80(sp)
    sd    a3, 88(sp)
    sd    a4, 96(sp)
    sd    a5, 104(sp)
    sd    a6, 112(sp)
    sd    a7, 120(sp)
    csrr  a0, mcause
    csrr  a1, mepc
    csrr  a2, mtval
    call  trap
    csrw  mepc, a0
    ld    ra, 0(sp)
    ld    t0, 8(sp)
    ld    t1, 16(sp)
    ld    t2, 24(sp)
    ld    t3, 32(sp)
    ld    t4, 40(sp)
    ld    t5, 48(sp)
    ld    t6, 56(sp)
    ld    a0, 64(sp)
    ld    a1, 72(sp)
    ld    a2, 80(sp)
    ld    a3, 88(sp)
    ld    a4, 96(sp)
    ld    a5, 104(sp)
    ld    a6, 112(sp)
    ld    a7, 120(sp)
    addi  sp, sp, 128
    mret
