//! What a kernel can do: the feature and request bits of `UFFDIO_API`.

use super::abi;

bitflags::bitflags! {
    /// The `UFFD_FEATURE_*` bits of `UFFDIO_API`: what a kernel supports and what a userfaultfd was
    /// opened with.
    ///
    /// Bits of newer kernels that are not named here survive, so
    /// [`Features::from_bits_retain`] can ask for them.
    ///
    /// Some bits change what a userfaultfd does and must be asked for; the others
    /// (`MISSING_*`, `MINOR_*`, `WP_HUGETLBFS_SHMEM`, `PAGEFAULT_FLAG_WP`, `POISON`, `MOVE`) say
    /// that something works, and it works whether or not they were asked for.
    ///
    /// See the UFFDIO_API section of ioctl_userfaultfd(2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// Ranges of anonymous memory can be write-protected
        /// ([`RegisterMode::WP`](super::RegisterMode::WP)); since Linux 5.7.
        #[doc(alias = "UFFD_FEATURE_PAGEFAULT_FLAG_WP")]
        const PAGEFAULT_FLAG_WP = abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
        /// fork(2) carries registrations over to the child and queues
        /// [`Event::Fork`](super::Event::Fork). Needs `CAP_SYS_PTRACE`; since Linux 4.11.
        #[doc(alias = "UFFD_FEATURE_EVENT_FORK")]
        const EVENT_FORK = abi::UFFD_FEATURE_EVENT_FORK as u64;
        /// mremap(2) keeps registrations and queues [`Event::Remap`](super::Event::Remap); since
        /// Linux 4.11.
        #[doc(alias = "UFFD_FEATURE_EVENT_REMAP")]
        const EVENT_REMAP = abi::UFFD_FEATURE_EVENT_REMAP as u64;
        /// `MADV_DONTNEED`, `MADV_FREE` and `MADV_REMOVE` queue
        /// [`Event::Remove`](super::Event::Remove); since Linux 4.11.
        #[doc(alias = "UFFD_FEATURE_EVENT_REMOVE")]
        const EVENT_REMOVE = abi::UFFD_FEATURE_EVENT_REMOVE as u64;
        /// Missing pages of hugetlbfs mappings can be tracked; since Linux 4.11.
        #[doc(alias = "UFFD_FEATURE_MISSING_HUGETLBFS")]
        const MISSING_HUGETLBFS = abi::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        /// Missing pages of shared memory (tmpfs, memfd, System V, shared anonymous) can be
        /// tracked; since Linux 4.11.
        #[doc(alias = "UFFD_FEATURE_MISSING_SHMEM")]
        const MISSING_SHMEM = abi::UFFD_FEATURE_MISSING_SHMEM as u64;
        /// munmap(2), and mappings replaced by mmap(2) or mremap(2), queue
        /// [`Event::Unmap`](super::Event::Unmap); since Linux 4.11.
        #[doc(alias = "UFFD_FEATURE_EVENT_UNMAP")]
        const EVENT_UNMAP = abi::UFFD_FEATURE_EVENT_UNMAP as u64;
        /// A fault raises SIGBUS in the thread that touched the page: no event is queued and nobody
        /// sleeps. A fault of the kernel itself, in a system call, fails with `EFAULT` instead;
        /// since Linux 4.14.
        #[doc(alias = "UFFD_FEATURE_SIGBUS")]
        const SIGBUS = abi::UFFD_FEATURE_SIGBUS as u64;
        /// Page-fault events name the thread that faulted; since Linux 4.14.
        #[doc(alias = "UFFD_FEATURE_THREAD_ID")]
        const THREAD_ID = abi::UFFD_FEATURE_THREAD_ID as u64;
        /// [`RegisterMode::MINOR`](super::RegisterMode::MINOR) works on hugetlbfs; since Linux 5.13.
        #[doc(alias = "UFFD_FEATURE_MINOR_HUGETLBFS")]
        const MINOR_HUGETLBFS = abi::UFFD_FEATURE_MINOR_HUGETLBFS as u64;
        /// [`RegisterMode::MINOR`](super::RegisterMode::MINOR) works on shared memory; since Linux
        /// 5.14.
        #[doc(alias = "UFFD_FEATURE_MINOR_SHMEM")]
        const MINOR_SHMEM = abi::UFFD_FEATURE_MINOR_SHMEM as u64;
        /// Page-fault events carry the address that was touched, not its page's; since Linux 5.18.
        /// (`si_addr` of a SIGBUS is exact in any case.)
        #[doc(alias = "UFFD_FEATURE_EXACT_ADDRESS")]
        const EXACT_ADDRESS = abi::UFFD_FEATURE_EXACT_ADDRESS as u64;
        /// [`RegisterMode::WP`](super::RegisterMode::WP) works on shared memory and hugetlbfs too;
        /// since Linux 5.19.
        #[doc(alias = "UFFD_FEATURE_WP_HUGETLBFS_SHMEM")]
        const WP_HUGETLBFS_SHMEM = abi::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Write-protecting anonymous memory also protects pages that are not there yet; since
        /// Linux 6.4.
        #[doc(alias = "UFFD_FEATURE_WP_UNPOPULATED")]
        const WP_UNPOPULATED = abi::UFFD_FEATURE_WP_UNPOPULATED as u64;
        /// [`Uffd::poison`](super::Uffd::poison) works; since Linux 6.6.
        #[doc(alias = "UFFD_FEATURE_POISON")]
        const POISON = abi::UFFD_FEATURE_POISON as u64;
        /// The kernel itself lifts the write protection of a page that is written, without an
        /// event or a signal, and `PAGEMAP_SCAN` of ioctl(2) on `/proc/PID/pagemap` tells which
        /// pages were written. Implies `WP_UNPOPULATED`; since Linux 6.7.
        #[doc(alias = "UFFD_FEATURE_WP_ASYNC")]
        const WP_ASYNC = abi::UFFD_FEATURE_WP_ASYNC as u64;
        /// [`Uffd::move_pages`](super::Uffd::move_pages) works; since Linux 6.8.
        #[doc(alias = "UFFD_FEATURE_MOVE")]
        const MOVE = abi::UFFD_FEATURE_MOVE as u64;

        const _ = !0;
    }
}

impl Features {
    /// Every feature that queues events other than page faults. Such an event makes the system
    /// call that caused it wait until somebody reads it, so none of them may be combined with
    /// [`Features::SIGBUS`] here.
    pub const EVENTS: Self = Self::EVENT_FORK
        .union(Self::EVENT_REMAP)
        .union(Self::EVENT_REMOVE)
        .union(Self::EVENT_UNMAP);
}

bitflags::bitflags! {
    /// Which requests work, one bit for each request number: on a userfaultfd
    /// ([`Support::ioctls`](super::Support::ioctls)) or on a range
    /// ([`Uffd::register`](super::Uffd::register)).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Ioctls: u64 {
        /// `UFFDIO_REGISTER`: [`Uffd::register`](super::Uffd::register).
        #[doc(alias = "_UFFDIO_REGISTER")]
        const REGISTER = 1 << abi::_UFFDIO_REGISTER;
        /// `UFFDIO_UNREGISTER`: [`Uffd::unregister`](super::Uffd::unregister).
        #[doc(alias = "_UFFDIO_UNREGISTER")]
        const UNREGISTER = 1 << abi::_UFFDIO_UNREGISTER;
        /// `UFFDIO_WAKE`: [`Uffd::wake`](super::Uffd::wake).
        #[doc(alias = "_UFFDIO_WAKE")]
        const WAKE = 1 << abi::_UFFDIO_WAKE;
        /// `UFFDIO_COPY`: [`Uffd::copy`](super::Uffd::copy).
        #[doc(alias = "_UFFDIO_COPY")]
        const COPY = 1 << abi::_UFFDIO_COPY;
        /// `UFFDIO_ZEROPAGE`: [`Uffd::zeropage`](super::Uffd::zeropage).
        #[doc(alias = "_UFFDIO_ZEROPAGE")]
        const ZEROPAGE = 1 << abi::_UFFDIO_ZEROPAGE;
        /// `UFFDIO_MOVE`: [`Uffd::move_pages`](super::Uffd::move_pages).
        #[doc(alias = "_UFFDIO_MOVE")]
        const MOVE = 1 << abi::_UFFDIO_MOVE;
        /// `UFFDIO_WRITEPROTECT`: [`Uffd::write_protect`](super::Uffd::write_protect).
        #[doc(alias = "_UFFDIO_WRITEPROTECT")]
        const WRITEPROTECT = 1 << abi::_UFFDIO_WRITEPROTECT;
        /// `UFFDIO_CONTINUE`: [`Uffd::r#continue`](super::Uffd::continue).
        #[doc(alias = "_UFFDIO_CONTINUE")]
        const CONTINUE = 1 << abi::_UFFDIO_CONTINUE;
        /// `UFFDIO_POISON`: [`Uffd::poison`](super::Uffd::poison).
        #[doc(alias = "_UFFDIO_POISON")]
        const POISON = 1 << abi::_UFFDIO_POISON;
        /// `UFFDIO_API`: the handshake that opening performs.
        #[doc(alias = "_UFFDIO_API")]
        const API = 1 << abi::_UFFDIO_API;

        const _ = !0;
    }
}
