# Reset, traps, floating-point registers. Layout of struct frame: pc, x1..x31, kernel_sp, hart.

    .section .text.start, "ax"
    .globl _start
_start:
    csrr  s0, mhartid
    li    t0, HARTS
    bgeu  s0, t0, sleep
    .option push
    .option norelax
    la    gp, __global_pointer$
    .option pop
    la    sp, __stack           # 16 KiB for each hart
    slli  t0, s0, 14
    sub   sp, sp, t0
    bnez  s0, 3f
    la    t0, __bss
    la    t1, __bss_end
1:  bgeu  t0, t1, 2f
    sd    zero, 0(t0)
    addi  t0, t0, 8
    j     1b
2:  la    t0, started
    fence rw, w
    li    t1, 1
    sw    t1, 0(t0)
3:  la    t0, started
    lw    t1, 0(t0)
    beqz  t1, 3b
    fence r, rw

    # M-mode keeps software interrupts and calls of S-mode, and gives S-mode all the rest.
    la    t0, machine_trap
    csrw  mtvec, t0
    la    t0, machine_stacks + 1024
    slli  t1, s0, 10
    add   t0, t0, t1
    csrw  mscratch, t0
    li    t0, -1
    csrw  pmpaddr0, t0
    li    t0, 0x1f
    csrw  pmpcfg0, t0
    li    t0, 0xb1ff
    csrw  medeleg, t0
    li    t0, 0x222
    csrw  mideleg, t0
    li    t0, 7
    csrw  mcounteren, t0
    li    t0, 1
    slli  t0, t0, 63
    csrw  0x30a, t0             # menvcfg.STCE: S-mode has stimecmp
    csrr  t1, 0x30a
    and   t1, t1, t0
    beqz  t1, no_sstc
    li    t0, 8
    csrw  mie, t0               # MSIE
    li    t0, 0x7800
    csrc  mstatus, t0           # MPP, FS
    li    t0, 0x800
    csrs  mstatus, t0
    la    t0, supervisor
    csrw  mepc, t0
    mv    a0, s0
    mret
no_sstc:
    li    a0, 98
    tail  finish
sleep:
    wfi
    j     sleep

supervisor:
    la    t0, supervisor_trap
    csrw  stvec, t0
    csrw  sscratch, zero
    tail  kernel_main

# What a C function may clobber is kept on a stack of M-mode's own: firmware(cause, where a0 to a7 are).
    .balign 4
machine_trap:
    csrrw sp, mscratch, sp
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
    addi  a1, sp, 64
    call  firmware
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
    csrrw sp, mscratch, sp
    mret

# From a process: sscratch is its frame. In the kernel sscratch is zero, and there are no traps but by its own faults.
    .balign 4
supervisor_trap:
    csrrw a0, sscratch, a0
    beqz  a0, 1f
    .irp  n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    sd    x\n, 8*\n(a0)
    .endr
    csrrw t0, sscratch, zero
    sd    t0, 8*10(a0)
    csrr  t0, sepc
    sd    t0, 0(a0)
    ld    sp, 8*32(a0)
    .option push
    .option norelax
    la    gp, __global_pointer$
    .option pop
    csrr  a1, scause
    csrr  a2, stval
    tail  user_trap
1:  csrr  a0, scause
    csrr  a1, sepc
    csrr  a2, stval
    tail  kernel_trap

    .globl user_return
user_return:
    csrw  sscratch, a0
    ld    t0, 0(a0)
    csrw  sepc, t0
    .irp  n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld    x\n, 8*\n(a0)
    .endr
    ld    a0, 8*10(a0)
    sret

    .option push
    .option arch, +d
    .globl float_save
float_save:
    .irp  n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fsd   f\n, 8*\n(a0)
    .endr
    frcsr t0
    sd    t0, 8*32(a0)
    ret
    .globl float_load
float_load:
    .irp  n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fld   f\n, 8*\n(a0)
    .endr
    ld    t0, 8*32(a0)
    fscsr t0
    ret
    .option pop

    .section .data
    .balign 4
started:
    .word 0

    .section .bss
    .balign 16
machine_stacks:
    .space 1024 * HARTS

    .section .rodata
    .balign 4096
    .globl user_elf
user_elf:
    .incbin USER_ELF
    .balign 4096
