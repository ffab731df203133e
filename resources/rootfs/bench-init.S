# PID 1 of a benchmark, for init=/sbin/bench-init: OUT 0x80 <- 0x7b at the first
# chance, then restart: by the keyboard controller's reset line first, because
# the kernel's own restart says so on the console, which would be measured too.
# No library, no stack, four instructions to the mark.
	.intel_syntax noprefix
	.globl _start
	.text
_start:
	mov	eax, 173		# ioperm(0x64, 0x80 - 0x64 + 1, 1)
	mov	edi, 0x64
	mov	esi, 0x1d
	mov	edx, 1
	syscall
	mov	al, 0x7b
	out	0x80, al
	mov	al, 0xfe
	out	0x64, al
	mov	eax, 169		# reboot(MAGIC1, MAGIC2, RB_AUTOBOOT)
	mov	edi, 0xfee1dead
	mov	esi, 672274793
	mov	edx, 0x01234567
	syscall
1:	mov	eax, 34			# pause()
	syscall
	jmp	1b
	.section .note.GNU-stack,"",@progbits
