//! The files under test, in the place where they expect each other.

#[path = "../../src/fault/chunk.rs"]
pub(crate) mod chunk;
#[path = "../../src/fault/ledger.rs"]
pub(crate) mod ledger;
#[path = "../../src/fault/log.rs"]
pub(crate) mod log;
#[path = "../../src/fault/registry.rs"]
pub(crate) mod registry;

/// The smallest tree that has a root, one level of nodes and two leaves.
pub(crate) mod shape {
    pub(crate) const LEAF_SHIFT: u32 = 4;
    pub(crate) const NODE_BITS: u32 = 1;
    pub(crate) const LEVELS: u32 = 1;
    pub(crate) const ROOT_BITS: u32 = 0;
}

/// How memory was touched.
pub(crate) mod decode {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Access {
        Read,
        Write,
    }
}
