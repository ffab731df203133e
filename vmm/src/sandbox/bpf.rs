//! A list of system calls as a classic BPF program.
//!
//! The kernel runs a filter once for every system call there is when it is
//! installed (`seccomp_cache_prepare` in `kernel/seccomp.c`), and then at every
//! call that has conditions. A chain of comparisons would make the first cost
//! more than all else that the monitor does to start; this is a search tree:
//!
//! ```text
//!  another architecture ─► trap
//!  number < middle ─► left half, else right half ─► … ─► one or two comparisons
//!                                    └── with conditions: compare the argument
//! ```

use seccompiler::sock_filter;

/// A system call that is allowed, and for which values of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// The argument that is looked at, 0 to 5, its low 32 bits.
    pub argument: u32,
    /// All values but these are refused; an empty list allows all.
    pub values: &'static [u32],
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// The signal's handler gives the terminal back and then dies of it.
const REFUSE: u32 = libc::SECCOMP_RET_TRAP;
/// `AUDIT_ARCH_X86_64`: `EM_X86_64`, 64 bits, little-endian.
const ARCH: u32 = 62 | 0x8000_0000 | 0x4000_0000;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ARGUMENT_SIZE: u32 = 8;

/// As many calls as are compared one by one.
const LEAF: usize = 2;

/// The program that allows `calls`, sorted by number, each once, and nothing
/// else.
pub fn program(calls: &[Call]) -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE), jump(libc::BPF_JEQ, ARCH, 1, 0), ret(REFUSE)];
    program.push(load(NUMBER));
    program.extend(tree(calls));
    program
}

fn tree(calls: &[Call]) -> Vec<sock_filter> {
    if calls.len() <= LEAF {
        return leaf(calls);
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let (left, right) = (tree(low), tree(high));
    let middle = high.first().map_or(0, |call| call.number);
    // A jump reaches 255 instructions; with more, the first half is stepped over
    // by an unconditional one, whose reach is 32 bits.
    let mut all = vec![
        jump(libc::BPF_JGE, middle, 0, 1),
        code(libc::BPF_JMP | libc::BPF_JA, 0, 0, left.len() as u32),
    ];
    all.extend(left);
    all.extend(right);
    all
}

fn leaf(calls: &[Call]) -> Vec<sock_filter> {
    let mut all = Vec::new();
    for call in calls {
        let body = body(call);
        all.push(jump(libc::BPF_JEQ, call.number, 1, 0));
        all.push(code(libc::BPF_JMP | libc::BPF_JA, 0, 0, body.len() as u32));
        all.extend(body);
    }
    all.push(ret(REFUSE));
    all
}

fn body(call: &Call) -> Vec<sock_filter> {
    if call.values.is_empty() {
        return vec![ret(ALLOW)];
    }
    let mut all = vec![load(ARGUMENTS + call.argument * ARGUMENT_SIZE)];
    for value in call.values {
        all.extend([jump(libc::BPF_JEQ, *value, 0, 1), ret(ALLOW)]);
    }
    all.push(ret(REFUSE));
    all
}

fn code(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump(kind: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    code(libc::BPF_JMP | kind | libc::BPF_K, yes, no, value)
}

fn ret(what: u32) -> sock_filter {
    code(libc::BPF_RET | libc::BPF_K, 0, 0, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel would.
    fn run(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut value, mut steps) = (0, 0, 0);
        loop {
            steps += 1;
            assert!(steps < 64, "a filter is a few comparisons");
            let step = &program[at];
            at += 1;
            match u32::from(step.code) & 7 {
                libc::BPF_LD => {
                    value = match step.k {
                        NUMBER => number,
                        ARCHITECTURE => arch,
                        24 => argument,
                        other => panic!("no such field: {other}"),
                    }
                }
                libc::BPF_JMP => {
                    let yes = match u32::from(step.code) & 0xf0 {
                        libc::BPF_JA => {
                            at += step.k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => value == step.k,
                        libc::BPF_JGE => value >= step.k,
                        other => panic!("no such jump: {other:#x}"),
                    };
                    at += usize::from(if yes { step.jt } else { step.jf });
                }
                _ => return step.k,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_listed_is_allowed_and_nothing_else(
            numbers in prop::collection::btree_set(0u32..500, 0..80),
            others in prop::collection::vec(0u32..600, 20),
        ) {
            let calls: Vec<Call> = numbers
                .iter()
                .map(|&number| Call { number, argument: 1, values: if number % 7 == 3 { &[5, 9] } else { &[] } })
                .collect();
            let program = program(&calls);
            for number in others.into_iter().chain(numbers.iter().copied()) {
                for argument in [0, 5, 9, u32::MAX] {
                    let may = numbers.contains(&number) && (number % 7 != 3 || [5, 9].contains(&argument));
                    let verdict = run(&program, ARCH, number, argument);
                    prop_assert_eq!(verdict, if may { ALLOW } else { REFUSE });
                }
                prop_assert_eq!(run(&program, 0x4000_0003, number, 5), REFUSE);
            }
        }
    }
}
