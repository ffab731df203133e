# The BIOS calls that a kernel's setup code makes (Linux arch/x86/boot), and the
# few that anything of the time makes before it finds that there is no disk.
# After Ralf Brown's Interrupt List and the IBM PC AT Technical Reference.
#
# All addresses are offsets from `bios_begin`, where the segment begins.

bios_begin:
# What Rust looks up: `Symbol` in bios.rs, in this order.
    .word   nothing - bios_begin
    .word   timer - bios_begin
    .word   irq_master - bios_begin
    .word   irq_slave - bios_begin
    .word   int10 - bios_begin
    .word   int11 - bios_begin
    .word   int12 - bios_begin
    .word   int13 - bios_begin
    .word   int15 - bios_begin
    .word   int16 - bios_begin
    .word   reset - bios_begin
    .word   int1a - bios_begin
    .word   memory - bios_begin

# Ways back: the carry flag of the caller says whether it worked.
unsupported:
    movb    $0x86, %ah
fail:
    pushw   %bp
    movw    %sp, %bp
    orb     $1, 6(%bp)
    popw    %bp
    iretw
succeed:
    pushw   %bp
    movw    %sp, %bp
    andb    $0xfe, 6(%bp)
    popw    %bp
nothing:
    iretw

# Hardware interrupts: IRQ 0 counts 18.2 ticks a second, the rest is dismissed.
timer:
    pushw   %ds
    pushw   $0x40
    popw    %ds
    incl    0x6c
    cmpl    $0x1800b0, 0x6c
    jb      1f
    movl    $0, 0x6c
    movb    $1, 0x70
1:
    popw    %ds
    int     $0x1c
irq_master:
    pushw   %ax
    movb    $0x20, %al
    outb    %al, $0x20
    popw    %ax
    iretw
irq_slave:
    pushw   %ax
    movb    $0x20, %al
    outb    %al, $0xa0
    outb    %al, $0x20
    popw    %ax
    iretw

# Video: a teletype on COM1. Whatever else is asked for stays unanswered, as by
# a BIOS without EGA, VGA or VESA.
int10:
    cmpb    $0x0e, %ah
    je      teletype
    cmpb    $0x0f, %ah
    je      video_mode
    cmpb    $0x03, %ah
    je      cursor
    iretw
teletype:
    pushw   %ax
    pushw   %cx
    pushw   %dx
    movb    %al, %ah
    xorw    %cx, %cx
    movw    $0x3fd, %dx
1:
    inb     %dx, %al
    testb   $0x20, %al
    loopz   1b
    movw    $0x3f8, %dx
    movb    %ah, %al
    outb    %al, %dx
    popw    %dx
    popw    %cx
    popw    %ax
    iretw
video_mode:
    movw    $0x5003, %ax
    xorb    %bh, %bh
    iretw
cursor:
    xorw    %ax, %ax
    movw    $0x0607, %cx
    xorw    %dx, %dx
    iretw

# Equipment, and conventional memory in KiB.
int11:
    pushw   %ds
    pushw   $0x40
    popw    %ds
    movw    0x10, %ax
    popw    %ds
    iretw
int12:
    pushw   %ds
    pushw   $0x40
    popw    %ds
    movw    0x13, %ax
    popw    %ds
    iretw

# Disks: the kernel has its own way to them; there is none for the BIOS.
int13:
    movb    $0x01, %ah
    jmp     fail

# System services: memory and the A20 gate.
int15:
    cmpw    $0xe820, %ax
    je      e820
    cmpw    $0xe801, %ax
    je      e801
    cmpb    $0x88, %ah
    je      extended
    cmpw    $0x2401, %ax
    je      done
    cmpw    $0x2402, %ax
    je      a20_status
    cmpw    $0xec00, %ax
    je      done
    jmp     unsupported
done:
    xorb    %ah, %ah
    jmp     succeed
a20_status:
    movw    $0x0001, %ax
    jmp     succeed
e801:
    movw    %cs:(memory - bios_begin + 2), %ax
    movw    %cs:(memory - bios_begin + 4), %bx
    movw    %ax, %cx
    movw    %bx, %dx
    jmp     succeed
extended:
    movw    %cs:(memory - bios_begin), %ax
    jmp     succeed

# EBX counts entries; the caller gets 20 bytes at ES:DI.
e820:
    cmpl    $0x534d4150, %edx
    jne     unsupported
    cmpl    $20, %ecx
    jb      unsupported
    movzwl  %cs:(memory - bios_begin + 6), %eax
    cmpl    %eax, %ebx
    jae     unsupported
    pushw   %ds
    pushw   %si
    pushw   %di
    pushw   %cs
    popw    %ds
    imulw   $20, %bx, %si
    addw    $(memory - bios_begin + 8), %si
    movw    $10, %cx
    cld
    rep movsw
    popw    %di
    popw    %si
    popw    %ds
    incl    %ebx
    cmpl    %eax, %ebx
    jb      1f
    xorl    %ebx, %ebx
1:
    movl    $20, %ecx
    movl    $0x534d4150, %eax
    jmp     succeed

# Keyboard: there is none. Who waits for a key waits for good.
int16:
    testb   $0xef, %ah
    jz      2f
    cmpb    $0x01, %ah
    je      1f
    cmpb    $0x11, %ah
    je      1f
    xorb    %al, %al
    iretw
1:
    pushw   %bp
    movw    %sp, %bp
    orb     $0x40, 6(%bp)
    popw    %bp
    iretw
2:
    sti
    hlt
    jmp     2b

# Time of day: ticks since midnight, and whether it has passed.
int1a:
    testb   %ah, %ah
    jnz     fail
    pushw   %ds
    pushw   $0x40
    popw    %ds
    movw    0x6c, %dx
    movw    0x6e, %cx
    movb    0x70, %al
    movb    $0, 0x70
    popw    %ds
    jmp     succeed

# No disk to boot from, and the processor's reset vector.
reset:
    movb    $0xfe, %al
    outb    %al, $0x64
    cli
1:
    hlt
    jmp     1b

    .balign 4
# What Rust fills in: KiB above 1 MiB for AH=88h; KiB up to 16 MiB and blocks of
# 64 KiB above for E801h; entries of the memory map, and the entries.
memory:
    .fill   8 + 16 * 20, 1, 0
bios_end:
