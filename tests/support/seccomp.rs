//! Denying system calls for real, with a seccomp filter, in a child that is about to end.

use std::mem::offset_of;

/// `USERFAULTFD_IOC_NEW`, the request of /dev/userfaultfd.
const NEW_FROM_DEVICE: u32 = 0xAA00;

/// Has userfaultfd fail with `errno`, as container runtimes do: the system call by their filter, and the
/// device, which root could open, by not being there.
pub(crate) fn deny_userfaultfd(errno: i32) {
    deny(&[(libc::SYS_userfaultfd, None), (libc::SYS_ioctl, Some(NEW_FROM_DEVICE))], errno);
}

/// Has each of `calls`, with the given second argument if any, fail with `errno` in this process from
/// here on, in all its threads.
pub(crate) fn deny(calls: &[(libc::c_long, Option<u32>)], errno: i32) {
    let mut program = Vec::new();
    let fail = libc::SECCOMP_RET_ERRNO | errno as u32;
    for (call, argument) in calls {
        program.push(load(offset_of!(libc::seccomp_data, nr)));
        match argument {
            None => program.push(unless(*call as u32, 1)),
            Some(argument) => {
                program.push(unless(*call as u32, 3));
                program.push(load(offset_of!(libc::seccomp_data, args) + 8));
                program.push(unless(*argument, 1));
            }
        }
        program.push(statement(libc::BPF_RET | libc::BPF_K, fail));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    install(&mut program);
}

fn install(program: &mut [libc::sock_filter]) {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter is valid, and copied by the kernel.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        let result = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter);
        assert_eq!(result, 0, "seccomp: {}", std::io::Error::last_os_error());
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Loads the 32-bit word at `offset` of the call's description.
fn load(offset: usize) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32)
}

/// Skips so many statements unless the word is `value`.
fn unless(value: u32, skip: u8) -> libc::sock_filter {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    libc::sock_filter { code: code as u16, jt: 0, jf: skip, k: value }
}
