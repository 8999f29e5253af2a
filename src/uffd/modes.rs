//! The `mode` word of each operation.

use super::abi;

bitflags::bitflags! {
    /// Which faults of a range [`Uffd::register`](super::Uffd::register) asks for. At least one.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RegisterMode: u64 {
        /// Touching a page that is not there; since Linux 4.3 (shared memory and hugetlbfs: 4.11).
        #[doc(alias = "UFFDIO_REGISTER_MODE_MISSING")]
        const MISSING = abi::UFFDIO_REGISTER_MODE_MISSING as u64;
        /// Writing a page that [`Uffd::write_protect`](super::Uffd::write_protect) protected; since
        /// Linux 5.7 (shared memory and hugetlbfs: 5.19).
        #[doc(alias = "UFFDIO_REGISTER_MODE_WP")]
        const WP = abi::UFFDIO_REGISTER_MODE_WP as u64;
        /// Touching a page that the page cache has and this mapping has not mapped yet; since Linux
        /// 5.13 on hugetlbfs, 5.14 on shared memory.
        #[doc(alias = "UFFDIO_REGISTER_MODE_MINOR")]
        const MINOR = abi::UFFDIO_REGISTER_MODE_MINOR as u64;

        const _ = !0;
    }

    /// How [`Uffd::copy`](super::Uffd::copy) installs pages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CopyMode: u64 {
        /// Wake nobody: in SIGBUS mode nobody sleeps, otherwise [`Uffd::wake`](super::Uffd::wake)
        /// does it later.
        #[doc(alias = "UFFDIO_COPY_MODE_DONTWAKE")]
        const DONTWAKE = abi::UFFDIO_COPY_MODE_DONTWAKE as u64;
        /// Install the pages write-protected; the range must be registered with
        /// [`RegisterMode::WP`]. Since Linux 5.7.
        #[doc(alias = "UFFDIO_COPY_MODE_WP")]
        const WP = abi::UFFDIO_COPY_MODE_WP as u64;

        const _ = !0;
    }

    /// How [`Uffd::zeropage`](super::Uffd::zeropage) installs pages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ZeropageMode: u64 {
        /// Wake nobody, as [`CopyMode::DONTWAKE`].
        #[doc(alias = "UFFDIO_ZEROPAGE_MODE_DONTWAKE")]
        const DONTWAKE = abi::UFFDIO_ZEROPAGE_MODE_DONTWAKE as u64;

        const _ = !0;
    }

    /// Which way [`Uffd::write_protect`](super::Uffd::write_protect) goes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct WriteProtectMode: u64 {
        /// Protect the range. Without this bit the protection is lifted.
        #[doc(alias = "UFFDIO_WRITEPROTECT_MODE_WP")]
        const WP = abi::UFFDIO_WRITEPROTECT_MODE_WP;
        /// Wake nobody, as [`CopyMode::DONTWAKE`]. Not together with [`WriteProtectMode::WP`], which
        /// never wakes.
        #[doc(alias = "UFFDIO_WRITEPROTECT_MODE_DONTWAKE")]
        const DONTWAKE = abi::UFFDIO_WRITEPROTECT_MODE_DONTWAKE;

        const _ = !0;
    }

    /// How [`Uffd::r#continue`](super::Uffd::continue) maps pages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ContinueMode: u64 {
        /// Wake nobody, as [`CopyMode::DONTWAKE`].
        #[doc(alias = "UFFDIO_CONTINUE_MODE_DONTWAKE")]
        const DONTWAKE = abi::UFFDIO_CONTINUE_MODE_DONTWAKE;
        /// Map the pages write-protected; the range must be registered with [`RegisterMode::WP`].
        /// Since Linux 6.4.
        #[doc(alias = "UFFDIO_CONTINUE_MODE_WP")]
        const WP = abi::UFFDIO_CONTINUE_MODE_WP;

        const _ = !0;
    }

    /// How [`Uffd::poison`](super::Uffd::poison) marks pages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct PoisonMode: u64 {
        /// Wake nobody, as [`CopyMode::DONTWAKE`].
        #[doc(alias = "UFFDIO_POISON_MODE_DONTWAKE")]
        const DONTWAKE = abi::UFFDIO_POISON_MODE_DONTWAKE;

        const _ = !0;
    }

    /// How [`Uffd::move_pages`](super::Uffd::move_pages) moves pages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct MoveMode: u64 {
        /// Wake nobody, as [`CopyMode::DONTWAKE`].
        #[doc(alias = "UFFDIO_MOVE_MODE_DONTWAKE")]
        const DONTWAKE = abi::UFFDIO_MOVE_MODE_DONTWAKE;
        /// Skip source pages that are not there, leaving their destination missing, instead of
        /// stopping with `ENOENT`.
        #[doc(alias = "UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES")]
        const ALLOW_SRC_HOLES = abi::UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES;

        const _ = !0;
    }
}
