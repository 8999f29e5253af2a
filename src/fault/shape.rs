//! The shape of the registry's tree: 2^12 root slots of 64 GiB, then three levels of 32-way nodes
//! down to the 2 MiB chunk. Together 48 bits, the user half of every address space that Linux
//! gives without being asked for more.

use crate::page::CHUNK_SHIFT;

/// log2 of the bytes that a leaf slot stands for.
pub(crate) const LEAF_SHIFT: u32 = CHUNK_SHIFT;
/// log2 of the slots of a node: 256 bytes a node, so that a lonely arena costs little.
pub(crate) const NODE_BITS: u32 = 5;
/// Levels of nodes below the root.
pub(crate) const LEVELS: u32 = 3;
/// log2 of the slots of the root.
pub(crate) const ROOT_BITS: u32 = 12;
