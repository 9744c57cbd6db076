//! For which models and GPUs clusters that each hold a shard are a decoder, and how it is laid out: the host's side of `cu/shard_layout.cuh`.

use super::ModelShape;
use super::spread::{PICK_BYTES, PICK_WORDS, picks};
use crate::compile::Unit;

/// Blocks of a cluster: as many as a GPU can be asked for, or fewer, which hand over sooner, where a layer's weights are so few bytes a block.
pub(crate) const CLUSTER_MAX: usize = 16;
const CLUSTER_SMALL: usize = 12;
const SMALL_BYTES_MAX: usize = 100 << 10;
/// Warps of a block that compute, and those that fetch weights.
const WARPS: usize = 8;
const FETCHERS: usize = 4;
/// Positions that a warp takes at a time.
const KEYS: usize = 8;
/// Columns that a warp multiplies at a time.
const CHUNK: usize = 128;
/// Below this, one cluster keeps up: it need not wait for others.
const WEIGHT_BYTES_MIN: usize = 20 << 20;

/// Clusters, of so many that there may be, to which heads are dealt: not more than heads, and one fewer where that deals them evenly.
fn dealt(heads: usize, clusters: usize) -> usize {
    let most = clusters.min(heads);
    if most > 1 && !heads.is_multiple_of(most) && heads.is_multiple_of(most - 1) { most - 1 } else { most }
}

/// How a model is spread over clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLayout {
    shape: ModelShape,
    /// Bytes of a weight: 2 or 4.
    element_bytes: usize,
    /// Clusters of the launch, each with a shard of the model, and blocks of each.
    shards: usize,
    cluster: usize,
    /// Dynamic shared memory of a block.
    shared_bytes: usize,
    /// Pieces that a head's cache is cut into, each with a block of its own.
    pieces: usize,
}

impl ShardLayout {
    /// The layout for a model whose elements have so many bytes, on a GPU that holds `clusters` clusters of [`CLUSTER_MAX`] blocks at once, which may
    /// use `shared_bytes_max` of shared memory each, if there is one.
    #[must_use]
    pub fn new(
        shape: ModelShape,
        element_bytes: usize,
        clusters: usize,
        shared_bytes_max: usize,
    ) -> Option<Self> {
        let ModelShape { channels, heads, width, layers, context, vocab } = shape;
        let clusters = dealt(heads, clusters);
        if [channels, heads, width, layers, context, vocab, clusters].contains(&0)
            || channels % heads != 0
            || shared_bytes_max < PICK_BYTES
        {
            return None;
        }
        let shared_bytes = (shared_bytes_max - PICK_BYTES) / 16 * 16;
        let layer_bytes = (4 * channels + 2 * width) * channels * element_bytes;
        let small = layer_bytes <= SMALL_BYTES_MAX * clusters * CLUSTER_SMALL;
        let cluster = if small { CLUSTER_SMALL } else { CLUSTER_MAX };
        let blocks = clusters * cluster;
        if heads > blocks || !picks(blocks, vocab) {
            return None;
        }
        // No more pieces than a full context keeps busy: consumers read them all.
        let most = cluster / heads.div_ceil(clusters);
        let pieces = context.div_ceil(WARPS * KEYS).next_power_of_two().min(1 << most.ilog2());
        let layout = Self { shape, element_bytes, shards: clusters, cluster, shared_bytes, pieces };
        let head_bytes = channels / heads * element_bytes;
        let even = channels % 16 == 0 && width % 16 == 0 && (channels / heads).is_multiple_of(8);
        let fits = channels >= cluster * WARPS && head_bytes <= 32 * 16;
        // The device code counts rows times blocks in 32 bits.
        let counted = vocab.max(3 * channels).max(width) < u32::MAX as usize / (blocks + 1);
        if !(even && fits && counted) {
            return None;
        }
        let units = layout.units();
        let dealt = units.iter().all(|count| (1..=channels).contains(count));
        (dealt && layout.shared_bytes_needed(&units) <= shared_bytes).then_some(layout)
    }

    /// Whether, for a model whose elements have so many bytes, one launch a generation is faster than recorded steps, and than one cluster.
    #[must_use]
    pub fn gains(shape: ModelShape, element_bytes: usize) -> bool {
        let ModelShape { channels, width, layers, vocab, .. } = shape;
        let weights = layers * (4 * channels * channels + 2 * channels * width) + vocab * channels;
        weights * element_bytes >= WEIGHT_BYTES_MIN
    }

    /// Words of 16 bytes of the exchange: `EXCHANGE_WORDS` of the device code.
    #[must_use]
    pub fn exchange_words(&self) -> usize {
        self.shards * self.shape.channels + PICK_WORDS * self.blocks()
    }

    /// Rows behind a norm, each with two sums: `SUMS` of the device code.
    #[must_use]
    pub fn sums(&self) -> usize {
        let ModelShape { channels, width, layers, vocab, .. } = self.shape;
        layers * (3 * channels + width) + vocab
    }

    /// Hidden units of each shard: as many as make the weights of all alike, a head having those of 2 D units; where that leaves one
    /// without any, evenly many.
    fn units(&self) -> Vec<usize> {
        let ModelShape { channels, heads, width, .. } = self.shape;
        let alike = |shard: usize| {
            let heads_before = shard * heads / self.shards;
            shard * (2 * channels + width) / self.shards / 16 * 16 - 2 * channels / heads * heads_before
        };
        let even = |shard: usize| shard * (width / 16) / self.shards * 16;
        let firsts = |first: &dyn Fn(usize) -> usize| (0..=self.shards).map(first).collect::<Vec<_>>();
        let counts = |firsts: Vec<usize>| {
            firsts.windows(2).map(|pair| pair[1].checked_sub(pair[0])).collect::<Option<Vec<_>>>()
        };
        counts(firsts(&alike))
            .filter(|counts| !counts.contains(&0))
            .or_else(|| counts(firsts(&even)))
            .unwrap_or_default()
    }

    /// At least what a block's shared memory takes, with a ring of four slots.
    fn shared_bytes_needed(&self, units: &[usize]) -> usize {
        let ModelShape { channels, heads, layers, vocab, .. } = self.shape;
        let head = channels / heads;
        let chunks = |columns: usize| columns.next_multiple_of(CHUNK);
        let stream = chunks(channels) * 4 + (self.cluster * WARPS).next_multiple_of(32) * 8;
        let core = chunks(heads.div_ceil(self.shards) * head);
        let pieces = self.pieces * (core * 4 + core.div_ceil(head) * 8);
        let hidden = chunks(units.iter().copied().max().unwrap_or(0)) * 4;
        let (head_rows, table) = ((3 + WARPS) * head * 4, (layers + 1) * 15 * 8);
        let logits = vocab.div_ceil(self.blocks()) * 4;
        let row = channels * self.element_bytes;
        let slot = WARPS * row * if row <= 2048 { 2 } else { 1 };
        let fixed = 1024 + 2 * stream + pieces + hidden + head_rows + logits + table;
        fixed.next_multiple_of(128) + 4 * slot + CHUNK * self.element_bytes
    }

    /// The model's dimensions.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        self.shape
    }

    /// Bytes of a weight.
    pub(crate) fn element_bytes(&self) -> usize {
        self.element_bytes
    }

    /// Blocks of the launch.
    pub(crate) fn blocks(&self) -> usize {
        self.shards * self.cluster
    }

    /// Blocks of a cluster.
    pub(crate) fn cluster(&self) -> usize {
        self.cluster
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> usize {
        (WARPS + FETCHERS) * 32
    }

    /// Dynamic shared memory of a block.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// What is compiled for it.
    #[must_use]
    pub fn unit(&self) -> Unit {
        let own = [
            ("GRID_HALF", usize::from(self.element_bytes == 2)),
            ("GRID_BLOCKS", self.blocks()),
            ("GRID_CLUSTER", self.cluster),
            ("GRID_WARPS", WARPS),
            ("GRID_KEYS", KEYS),
            ("GRID_SPLITS", self.pieces),
            ("GRID_SHARED", self.shared_bytes),
            ("GRID_EXCHANGE_WORDS", self.exchange_words()),
        ];
        Unit::decoder(
            &["decode_shards.cu", "decode_shard_sums.cu"],
            &[&self.shape.macros(true)[..], &own].concat(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::shapes::{SMALL, WIDE, XL};

    const SHARED: usize = 232_448;

    fn layout(shape: ModelShape, bytes: usize) -> Option<ShardLayout> {
        ShardLayout::new(shape, bytes, 7, SHARED)
    }

    /// Without this, a model could get a layout that the device code refuses, or be left to the slower path unnoticed.
    #[test]
    fn layouts_are_those_of_models_that_can_be_dealt() {
        let pieces = |shape| layout(shape, 2).map(|found| found.pieces);
        assert_eq!(pieces(WIDE), Some(4));
        assert_eq!(pieces(ModelShape { heads: 12, context: 1024, vocab: 50257, ..WIDE }), Some(8));
        assert_eq!(pieces(XL), Some(4));
        assert!(layout(WIDE, 4).is_some());
        assert!(ShardLayout::gains(WIDE, 2) && !ShardLayout::gains(SMALL, 4));
        assert_eq!(layout(XL, 4), None, "four slots of the ring do not fit");
        assert_eq!(ShardLayout::new(WIDE, 2, 0, SHARED), None);
        assert_eq!(ShardLayout::new(WIDE, 2, 7, 101_376), None, "a ring does not fit");
        for odd in [
            ModelShape { channels: 776, ..WIDE },
            ModelShape { channels: 112, heads: 7, ..WIDE },
            ModelShape { heads: 7, ..WIDE },
            ModelShape { heads: 0, ..WIDE },
            ModelShape { heads: 1, ..WIDE },
            ModelShape { heads: 192, ..WIDE },
            ModelShape { width: 3080, ..WIDE },
            ModelShape { width: 96, ..WIDE },
            ModelShape { width: 30720, ..WIDE },
            ModelShape { layers: 0, ..WIDE },
            ModelShape { vocab: 112 * 4096 + 1, ..WIDE },
            ModelShape { vocab: usize::MAX / 4096, ..WIDE },
        ] {
            assert_eq!(pieces(odd), None, "{odd:?}");
        }
    }

    /// Without this, a shard could be left without units, or with more than its share of the weights.
    #[test]
    fn units_make_up_for_heads() {
        let units = |shape| layout(shape, 2).map(|found| found.units());
        assert_eq!(units(WIDE), Some(vec![464, 464, 464, 464, 464, 464, 288]));
        let narrow = ModelShape { channels: 128, heads: 4, width: 128, ..WIDE };
        assert_eq!(units(narrow), Some(vec![32; 4]), "no cluster is without a head");
        let even = ModelShape { heads: 12, ..WIDE };
        assert_eq!(units(even), Some(vec![512; 6]), "two heads each");
    }

    /// Without this, a small layer could be spread over more blocks than gain by it.
    #[test]
    fn clusters_are_smaller_where_layers_are() {
        let blocks = |shape, bytes| layout(shape, bytes).map(|found| (found.cluster(), found.blocks()));
        let small = ModelShape { channels: 384, heads: 6, width: 1536, layers: 6, ..WIDE };
        assert_eq!((blocks(small, 2), blocks(small, 4)), (Some((12, 72)), Some((12, 72))));
        assert_eq!((blocks(WIDE, 2), blocks(XL, 2)), (Some((16, 112)), Some((16, 112))));
    }

    /// Without this, the plan could promise less than the kernel writes.
    #[test]
    fn words_and_sums_are_those_counted_by_hand() {
        let found = layout(WIDE, 2).unwrap();
        assert_eq!(found.exchange_words(), 7 * 768 + 2 * 4 * 32 * 112);
        assert_eq!(found.sums(), 12 * (3 * 768 + 3072) + 95);
    }
}
