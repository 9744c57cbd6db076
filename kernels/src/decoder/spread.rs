//! The two ways to spread a large model over a GPU: rows over all blocks alike, or shards over clusters of them.

use super::cluster_layout::SHARED_BYTES;
use super::grid_layout::GridLayout;
use super::shard_layout::{CLUSTER_MAX, ShardLayout};
use super::{ModelShape, clusters_at_once};
use crate::compile::Unit;
use crate::device::{Device, Launch, Start};
use crate::entry::{DecoderEntry, Entry};
use crate::error::Result;

/// Words of 16 bytes of a block for a pick, and the shared memory that picking and aligning the rest take: see `cu/grid_pick.cuh`.
pub(super) const PICK_WORDS: usize = 2 * 4 * 32;
pub(super) const PICK_BYTES: usize = 8192;

/// Threads of a block that pick, and logits that each can hold in registers.
const PICKERS: usize = 256;
const HELD_MAX: usize = 16;

/// Whether so many blocks can pick from so many logits: each thread hears a block, and holds some of its own block's logits.
pub(super) fn picks(blocks: usize, vocab: usize) -> bool {
    blocks <= PICKERS && vocab.div_ceil(blocks) <= PICKERS * HELD_MAX
}

/// How a large model is spread over the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Rows of every matrix over all blocks: `cu/decode_grid.cu`.
    Grid(GridLayout),
    /// Shards over clusters: `cu/decode_shards.cu`.
    Shards(ShardLayout),
}

impl Spread {
    /// Shards for a model whose elements have so many bytes, if they and the GPU allow it.
    ///
    /// # Errors
    /// The driver's.
    pub fn shards(device: &Device, shape: ModelShape, element_bytes: usize) -> Result<Option<ShardLayout>> {
        let info = device.info();
        if info.compute.0 < 9 || info.shared_bytes_max < SHARED_BYTES {
            return Ok(None);
        }
        // With all of the shared memory, any kernel has a multiprocessor a block.
        let launch = Launch {
            grid: [CLUSTER_MAX as u32, 1, 1],
            threads: 32,
            shared_bytes: SHARED_BYTES as u32,
            start: Start::Clusters(CLUSTER_MAX as u32),
        };
        let clusters = clusters_at_once(device, device.function(Entry::add_f32), launch)? as usize;
        Ok(ShardLayout::new(shape, element_bytes, clusters, info.shared_bytes_max))
    }

    /// The model's dimensions.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        match self {
            Self::Grid(layout) => layout.shape(),
            Self::Shards(layout) => layout.shape(),
        }
    }

    /// Words of 16 bytes that blocks hand each other.
    #[must_use]
    pub fn exchange_words(&self) -> usize {
        match self {
            Self::Grid(layout) => layout.exchange_words(),
            Self::Shards(layout) => layout.exchange_words(),
        }
    }

    /// Rows behind a norm whose sums are made in advance, if any are.
    #[must_use]
    pub fn sums(&self) -> Option<usize> {
        match self {
            Self::Grid(_) => None,
            Self::Shards(layout) => Some(layout.sums()),
        }
    }

    /// Bytes of a weight.
    pub(crate) fn element_bytes(&self) -> usize {
        match self {
            Self::Grid(layout) => layout.element_bytes(),
            Self::Shards(layout) => layout.element_bytes(),
        }
    }

    /// What is compiled for it.
    pub(crate) fn unit(&self) -> Unit {
        match self {
            Self::Grid(layout) => layout.unit(),
            Self::Shards(layout) => layout.unit(),
        }
    }

    /// The kernel that generates.
    pub(crate) fn entry(&self) -> DecoderEntry {
        match self {
            Self::Grid(_) => DecoderEntry::decode_grid,
            Self::Shards(_) => DecoderEntry::decode_shards,
        }
    }

    /// Its launch.
    pub(crate) fn launch(&self) -> Launch {
        let (blocks, threads, shared_bytes, start) = match self {
            Self::Grid(layout) => {
                (layout.blocks(), layout.threads(), layout.shared_bytes(), Start::Cooperative)
            }
            Self::Shards(layout) => {
                let start = Start::Clusters(layout.cluster() as u32);
                (layout.blocks(), layout.threads(), layout.shared_bytes(), start)
            }
        };
        Launch {
            grid: [blocks as u32, 1, 1],
            threads: threads as u32,
            shared_bytes: shared_bytes as u32,
            start,
        }
    }
}
