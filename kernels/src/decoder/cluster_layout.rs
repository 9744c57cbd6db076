//! For which models a cluster of blocks is a decoder, or a train of them, and how it is laid out: the host's side of `cu/decode_layout.cuh` and
//! `cu/train_layout.cuh`.

use super::ModelShape;
use crate::compile::Unit;

/// How a model is spread over a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterLayout {
    shape: ModelShape,
    /// Bytes of a weight: 2 or 4.
    element_bytes: usize,
    /// Clusters of the launch: one, or one for each layer.
    clusters: usize,
    /// Blocks of a cluster.
    cluster: usize,
    /// Teams of blocks, which take the layers in turn; 1 where all blocks share every layer.
    stages: usize,
    /// Blocks that share a head's keys.
    split: usize,
}

/// Warps of a block that compute.
const WARPS: usize = 8;
/// Shared memory of a block, on Hopper and Blackwell the most there is.
pub(crate) const SHARED_BYTES: usize = 232_448;
/// Above these a model's rows, constants or cache leave no room for a window of weights.
const CHANNELS_MAX: usize = 384;
const WIDTH_MAX: usize = 1536;
const CONSTANTS_MAX: usize = 8192;
/// Above this, all of the GPU reads the weights faster than the blocks of a cluster do.
const WEIGHT_BYTES_MAX: usize = 48 << 20;
/// Layers of a train: no GPU holds more clusters of 16 blocks.
const TRAIN_MAX: usize = 8;
/// Teams of a layout with stages, and blocks of each.
const STAGES: usize = 4;
const TEAM: usize = 4;

impl ClusterLayout {
    /// The layouts for a model whose elements have so many bytes, the fastest first. Which cluster a GPU can hold they do not know.
    pub fn all(shape: ModelShape, element_bytes: usize) -> impl Iterator<Item = Self> {
        let layouts = [Self::staged, Self::train, Self::spread];
        layouts.into_iter().filter_map(move |layout| layout(shape, element_bytes))
    }

    /// With stages: for layers of one shape, whose products just fit into the registers of a team, and few enough that a block holds the keys of its
    /// own.
    fn staged(shape: ModelShape, element_bytes: usize) -> Option<Self> {
        let ModelShape { channels, heads, width, layers, context, vocab } = shape;
        let fits = (channels, heads, width, element_bytes) == (128, TEAM, 512, 2)
            && (1..=2 * STAGES).contains(&layers)
            && context <= 256
            && vocab <= 128;
        let cluster = STAGES * TEAM;
        fits.then_some(Self { shape, element_bytes, clusters: 1, cluster, stages: STAGES, split: 1 })
    }

    /// With a cluster for each layer, whose registers and shared memory just hold its weights and keys. Narrower layers a single cluster reads as
    /// fast as they are handed on.
    fn train(shape: ModelShape, element_bytes: usize) -> Option<Self> {
        let ModelShape { channels, heads, width, layers, context, vocab } = shape;
        let (clusters, cluster) = (layers, 16);
        let fits = (channels, width, element_bytes) == (CHANNELS_MAX, WIDTH_MAX, 2)
            && matches!(heads, 6 | 12)
            && (2..=TRAIN_MAX).contains(&layers)
            && context <= 256
            && (1..=8 * cluster).contains(&vocab);
        fits.then(|| {
            let split = Self::split(cluster, heads, context);
            Self { shape, element_bytes, clusters, cluster, stages: 1, split }
        })
    }

    /// Blocks that share a head's keys. That costs a merge: little, where there are many keys.
    fn split(cluster: usize, heads: usize, context: usize) -> usize {
        let split_max = if context > 512 { 4 } else { 2 };
        (cluster / heads).min(split_max).next_power_of_two().min(cluster / heads).max(1)
    }

    /// With every layer spread over all blocks.
    fn spread(shape: ModelShape, element_bytes: usize) -> Option<Self> {
        let ModelShape { channels, heads, width, layers, context, vocab } = shape;
        // Narrow models: a smaller cluster hands over faster, and its blocks read fast enough.
        let cluster = if channels <= 128 { 8 } else { 16 };
        let team = cluster * WARPS;
        if heads == 0 || channels % heads != 0 || heads > cluster || layers == 0 {
            return None;
        }
        let split = Self::split(cluster, heads, context);
        let layout = Self { shape, element_bytes, clusters: 1, cluster, stages: 1, split };
        let even = channels % team == 0 && width % (2 * team) == 0 && width > 0;
        let bounded = channels <= CHANNELS_MAX && width <= WIDTH_MAX && vocab <= 256 && vocab <= 2 * team;
        let fits =
            layout.constants_of_a_block() <= CONSTANTS_MAX && layout.stream_bytes() <= WEIGHT_BYTES_MAX;
        (even && bounded && fits && matches!(channels / heads, 32 | 64)).then_some(layout)
    }

    /// Elements of the packed weights.
    #[must_use]
    pub fn stream_len(&self) -> usize {
        let ModelShape { channels, width, .. } = self.shape;
        self.clusters
            * self.stages
            * self.layers_held()
            * ((self.qkv_rows() + channels) * channels + 2 * channels * width)
    }

    /// Whether each layer has a cluster of its own.
    #[must_use]
    pub fn is_train(&self) -> bool {
        self.clusters > 1
    }

    /// Layers that a block has a part of.
    fn layers_held(&self) -> usize {
        self.shape.layers.div_ceil(self.stages * self.clusters)
    }

    /// Blocks that share a layer.
    fn team(&self) -> usize {
        self.cluster / self.stages
    }

    /// Rows of q, k and v that a layer's blocks have in all. In a small cluster, each of a head's blocks has all of the head's.
    fn qkv_rows(&self) -> usize {
        let ModelShape { channels, heads, .. } = self.shape;
        let local = self.cluster <= 8 && heads * self.split == self.cluster;
        3 * channels * if local { self.split } else { 1 }
    }

    fn stream_bytes(&self) -> usize {
        self.stream_len() * self.element_bytes
    }

    /// Elements of the constants, float32.
    #[must_use]
    pub fn constants_len(&self) -> usize {
        self.clusters * self.cluster * self.constants_of_a_block()
    }

    /// Words of 16 bytes that the clusters of a train tell each other, two columns each, and one of what stays between launches; none of a single
    /// cluster.
    #[must_use]
    pub fn exchange_words(&self) -> Option<usize> {
        self.is_train().then_some(self.clusters * self.shape.channels / 2 + 1)
    }

    /// `CONSTANTS` of the device code: gammas of a block's rows of the residual, a and b of its rows behind a norm, biases of the others, the first
    /// norm's gammas, and the tokens' means.
    fn constants_of_a_block(&self) -> usize {
        let (ModelShape { channels, width, vocab, .. }, team) = (self.shape, self.team());
        let qkv = self.qkv_rows() / team;
        let residual = if self.stages > 1 { channels } else { channels / team };
        let head = vocab.div_ceil(team).max(8).next_power_of_two();
        if self.is_train() {
            // Gammas are those of all channels: each warp scales what it multiplies.
            return 3 * channels + 2 * (qkv + width / team + head) + 2 * residual + vocab;
        }
        let layer = 2 * residual + 2 * qkv + 2 * (width / team) + 2 * residual;
        self.layers_held() * layer + residual + 2 * head + channels + vocab
    }

    /// Blocks of the cluster.
    #[must_use]
    pub fn cluster(&self) -> usize {
        self.cluster
    }

    /// The model's dimensions.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        self.shape
    }

    /// Blocks of the launch.
    pub(crate) fn blocks(&self) -> usize {
        self.clusters * self.cluster
    }

    /// Threads of a block: where layers are spread over a single cluster, two warps more fetch weights and keys.
    pub(crate) fn threads(&self) -> usize {
        (WARPS + if self.stages > 1 || self.is_train() { 0 } else { 2 }) * 32
    }

    /// Warps that have rows of their own.
    pub(crate) fn warps(&self) -> usize {
        self.cluster * WARPS
    }

    /// Bytes of a weight.
    pub(crate) fn element_bytes(&self) -> usize {
        self.element_bytes
    }

    /// What is compiled for it.
    #[must_use]
    pub fn unit(&self) -> Unit {
        let own = [
            ("BF16", usize::from(self.element_bytes == 2)),
            ("CLUSTERS", self.clusters),
            ("CLUSTER", self.cluster),
            ("STAGES", self.stages),
            ("SPLIT", self.split),
            ("SHARED_BYTES", SHARED_BYTES),
            ("CONSTANTS_LEN", self.constants_of_a_block()),
        ];
        let files = if self.is_train() {
            ["decode_train.cu", "decode_train_pack.cu"]
        } else {
            ["decode.cu", "decode_pack.cu"]
        };
        Unit::decoder(&files, &[&self.shape.macros(false)[..], &own].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::shapes::SMALL;

    /// Without this, a model could get a layout that the device code refuses, or be left to the slower path unnoticed.
    #[test]
    fn layouts_are_those_of_the_committed_models_and_of_no_odd_one() {
        let layouts = |shape, bytes| -> Vec<_> {
            let facts = |found: ClusterLayout| (found.clusters, found.cluster, found.stages, found.split);
            ClusterLayout::all(shape, bytes).map(facts).collect()
        };
        assert_eq!(layouts(SMALL, 2), [(1, 16, 4, 1), (1, 8, 1, 2)]);
        assert_eq!(layouts(SMALL, 4), [(1, 8, 1, 2)]);
        for unstaged in [
            ModelShape { layers: 9, ..SMALL },
            ModelShape { context: 257, ..SMALL },
            ModelShape { vocab: 128 + 1, ..SMALL },
            ModelShape { width: 256, ..SMALL },
        ] {
            assert!(layouts(unstaged, 2).iter().all(|(_, _, stages, _)| *stages == 1), "{unstaged:?}");
        }
        let wide = ModelShape { channels: 384, heads: 6, width: 1536, ..SMALL };
        assert_eq!(layouts(wide, 2), [(6, 16, 1, 2), (1, 16, 1, 2)]);
        assert_eq!(layouts(wide, 4), [(1, 16, 1, 2)]);
        let long = ModelShape { channels: 256, width: 1024, context: 1024, vocab: 107, ..SMALL };
        assert_eq!(layouts(long, 2), [(1, 16, 1, 4)]);
        assert_eq!(layouts(long, 4), [(1, 16, 1, 4)]);
        for single in [
            ModelShape { layers: 1, ..wide },
            ModelShape { layers: 9, ..wide },
            ModelShape { context: 257, ..wide },
            ModelShape { width: 1024, ..wide },
            ModelShape { vocab: 129, ..wide },
        ] {
            assert!(layouts(single, 2).iter().all(|(clusters, ..)| *clusters == 1), "{single:?}");
        }
        for odd in [
            ModelShape { channels: 96, ..SMALL },
            ModelShape { heads: 5, ..SMALL },
            ModelShape { heads: 8, ..SMALL },
            ModelShape { heads: 0, ..SMALL },
            ModelShape { width: 500, ..SMALL },
            ModelShape { vocab: 50257, ..SMALL },
            ModelShape { layers: 0, ..SMALL },
            ModelShape { layers: 400, ..SMALL },
            ModelShape { channels: 768, heads: 12, width: 3072, ..SMALL },
        ] {
            assert_eq!(layouts(odd, 2), [], "{odd:?}");
        }
    }

    /// Without this, the plan could promise another size than the packing writes.
    #[test]
    fn lengths_are_those_counted_by_hand() {
        let layout = ClusterLayout::spread(SMALL, 4).unwrap();
        // q, k and v twice: two blocks share a head.
        assert_eq!(layout.stream_len(), 6 * (7 * 128 * 128 + 2 * 128 * 512));
        // 8 blocks: 96, 64 and 16 rows of q, k, v, of up, and of out and down each; 16 of the head.
        let block = 6 * (2 * 16 + 2 * 96 + 2 * 64 + 2 * 16) + 16 + 2 * 16 + 128 + 65;
        assert_eq!(layout.constants_len(), 8 * block);
        let layout = ClusterLayout::staged(SMALL, 2).unwrap();
        // Two layers a team, four teams: as if there were eight layers.
        assert_eq!(layout.stream_len(), 8 * (4 * 128 * 128 + 2 * 128 * 512));
        // 4 blocks: 96 and 128 rows of q, k, v and of up, all of the others; 32 of the head.
        let block = 2 * (2 * 128 + 2 * 96 + 2 * 128 + 2 * 128) + 128 + 2 * 32 + 128 + 65;
        assert_eq!(layout.constants_len(), 16 * block);
        let wide = ModelShape { channels: 384, heads: 6, width: 1536, ..SMALL };
        let layout = ClusterLayout::train(wide, 2).unwrap();
        assert_eq!(layout.stream_len(), 6 * (4 * 384 * 384 + 2 * 384 * 1536));
        // All gammas; 72, 96 and 24 rows of q, k, v, of up, and of out and down each; 8 of the head.
        let block = 3 * 384 + 2 * (72 + 96 + 8) + 2 * 24 + 65;
        assert_eq!(layout.constants_len(), 6 * 16 * block);
        assert_eq!(layout.exchange_words(), Some(6 * 384 / 2 + 1));
        assert_eq!(ClusterLayout::spread(wide, 2).unwrap().exchange_words(), None);
    }
}
