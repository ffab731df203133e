# The guest's side: `vsock PORT` connects to that port of the host, `vsock lPORT`
# listens on that port of its own. Then standard input goes to the socket, which
# is shut down for sending, and after that the socket to standard output. Exits
# with 0, or with the error's number.
#
# Position-independent, without a stack of its own or data: the test puts an ELF
# header in front of it.
	.pushsection .rodata.vsock_guest, "a"
	.globl vsock_guest_start
	.globl vsock_guest_end
vsock_guest_start:
	mov	rbx, [rsp + 16]		# argv[1]
	xor	ebp, ebp		# ebp: whether to listen
	cmp	byte ptr [rbx], 'l'
	jne	2f
	inc	ebp
	inc	rbx
2:	xor	edx, edx		# edx: the port
3:	movzx	eax, byte ptr [rbx]
	sub	eax, '0'
	cmp	eax, 9
	ja	4f
	imul	edx, edx, 10
	add	edx, eax
	inc	rbx
	jmp	3b
4:	sub	rsp, 65536 + 16
	mov	dword ptr [rsp], 40	# struct sockaddr_vm: AF_VSOCK, reserved
	mov	[rsp + 4], edx
	mov	dword ptr [rsp + 8], 2	# VMADDR_CID_HOST
	mov	dword ptr [rsp + 12], 0
	mov	eax, 41			# socket(AF_VSOCK, SOCK_STREAM, 0)
	mov	edi, 40
	mov	esi, 1
	xor	edx, edx
	syscall
	test	eax, eax
	js	9f
	mov	r12d, eax		# r12: the socket
	mov	edi, eax
	mov	rsi, rsp
	mov	edx, 16
	test	ebp, ebp
	jnz	5f
	mov	eax, 42			# connect
	syscall
	test	eax, eax
	js	9f
	jmp	6f
5:	mov	dword ptr [rsp + 8], -1	# VMADDR_CID_ANY
	mov	eax, 49			# bind
	syscall
	test	eax, eax
	js	9f
	mov	eax, 50			# listen(socket, 1)
	mov	edi, r12d
	mov	esi, 1
	syscall
	test	eax, eax
	js	9f
	mov	eax, 43			# accept(socket, NULL, NULL)
	mov	edi, r12d
	xor	esi, esi
	xor	edx, edx
	syscall
	test	eax, eax
	js	9f
	mov	r12d, eax
6:	xor	r13d, r13d		# from standard input
	mov	r14d, r12d		# to the socket
	call	7f
	mov	eax, 48			# shutdown(socket, SHUT_WR)
	mov	edi, r12d
	mov	esi, 1
	syscall
	test	eax, eax
	js	9f
	mov	r13d, r12d		# from the socket
	mov	r14d, 1			# to standard output
	call	7f
	xor	eax, eax
9:	mov	edi, eax
	neg	edi
	mov	eax, 60			# exit
	syscall
	# Copies from r13 to r14 up to the end. The buffer is behind the return address.
7:	xor	eax, eax		# read
	mov	edi, r13d
	lea	rsi, [rsp + 8]
	mov	edx, 65536
	syscall
	test	rax, rax
	js	9b
	jz	2f
	lea	rsi, [rsp + 8]
	mov	r15, rax
8:	mov	eax, 1			# write
	mov	edi, r14d
	mov	rdx, r15
	syscall
	test	rax, rax
	js	9b
	add	rsi, rax
	sub	r15, rax
	jnz	8b
	jmp	7b
2:	ret
vsock_guest_end:
	.popsection
