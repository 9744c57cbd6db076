//! For which models several clusters are a decoder of batches, and how it is laid out: the host's side of `cu/batch_layout.cuh`.

use super::ModelShape;
use super::cluster_layout::SHARED_BYTES;
use crate::compile::Unit;

/// How a model is spread over each of the clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    shape: ModelShape,
    /// Blocks of a cluster.
    cluster: usize,
}

/// Warps of a block that compute; four more fill the ring.
const WARPS: usize = 8;
/// Threads of a block.
pub(crate) const THREADS: usize = (WARPS + 4) * 32;
/// Sequences of a cluster at most. An H200 has room for seven clusters of 16: so they serve 64.
pub(crate) const SEQUENCES: usize = 10;
/// Above these a model's rows or constants leave no room for rings of weights.
const CHANNELS_MAX: usize = 384;
const WIDTH_MAX: usize = 1536;
const CONSTANTS_MAX: usize = 8192;
/// Above this, kernels that read the weights once a step for all sequences are faster.
const WEIGHT_LEN_MAX: usize = 24 << 20;

impl BatchLayout {
    /// The layout for a model whose elements have so many bytes, if there is one. Which clusters a GPU can hold it does not know.
    #[must_use]
    pub fn new(shape: ModelShape, element_bytes: usize) -> Option<Self> {
        let ModelShape { channels, heads, width, layers, vocab, .. } = shape;
        let layout = Self { shape, cluster: if channels <= 128 { 8 } else { 16 } };
        if element_bytes != 2 || heads == 0 || channels % heads != 0 || layers == 0 || width == 0 {
            return None;
        }
        // Each warp attends to one pair of sequence and head.
        let attends =
            (SEQUENCES * heads).div_ceil(layout.cluster) <= WARPS && matches!(channels / heads, 32 | 64);
        let even = channels % (16 * WARPS) == 0 && width % (16 * layout.cluster) == 0;
        let bounded = channels <= CHANNELS_MAX && width <= WIDTH_MAX && vocab <= 256;
        let fits = layout.constants_of_a_block() <= CONSTANTS_MAX && layout.stream_len() <= WEIGHT_LEN_MAX;
        (attends && even && bounded && fits).then_some(layout)
    }

    /// Elements of the packed weights: those of the layers, then the head's, in whole eights of rows.
    #[must_use]
    pub fn stream_len(&self) -> usize {
        let ModelShape { channels, width, layers, .. } = self.shape;
        layers * (4 * channels + 2 * width) * channels + self.cluster * self.head_rows() * channels
    }

    /// Elements of the constants, float32: those of every block, then the means of the rows of both embeddings.
    #[must_use]
    pub fn constants_len(&self) -> usize {
        self.means_start() + self.shape.vocab + self.shape.context
    }

    /// Where the means of the token embedding begin among the constants.
    pub(crate) fn means_start(&self) -> usize {
        self.cluster * self.constants_of_a_block()
    }

    /// `CONSTANTS` of the device code: a and b of the rows behind a norm, biases of the others, gammas.
    fn constants_of_a_block(&self) -> usize {
        let ModelShape { channels, width, layers, .. } = self.shape;
        let own = channels / self.cluster;
        layers * (2 * 3 * own + 2 * width / self.cluster + 4 * own) + own + 2 * self.head_rows()
    }

    /// Rows of the head that a block has.
    fn head_rows(&self) -> usize {
        self.shape.vocab.div_ceil(8 * self.cluster) * 8
    }

    /// Blocks of a cluster.
    #[must_use]
    pub fn cluster(&self) -> usize {
        self.cluster
    }

    /// The model's dimensions.
    #[must_use]
    pub fn shape(&self) -> ModelShape {
        self.shape
    }

    /// Warps that have weights of their own.
    pub(crate) fn warps(&self) -> usize {
        self.cluster * WARPS
    }

    /// What is compiled for it.
    #[must_use]
    pub fn unit(&self) -> Unit {
        let own = [
            ("CLUSTER", self.cluster),
            ("SEQUENCES", SEQUENCES),
            ("SHARED_BYTES", SHARED_BYTES),
            ("CONSTANTS_LEN", self.constants_of_a_block()),
        ];
        Unit::decoder(
            &["decode_batch.cu", "decode_batch_pack.cu"],
            &[&self.shape.macros(false)[..], &own].concat(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::shapes::SMALL;

    /// Without this, a model could get a layout that the device code refuses, or be left to the slower path unnoticed.
    #[test]
    fn layouts_are_those_of_the_committed_models_and_of_no_odd_one() {
        let cluster = |shape, bytes| BatchLayout::new(shape, bytes).map(|layout| layout.cluster);
        assert_eq!(cluster(SMALL, 2), Some(8));
        let wide = ModelShape { channels: 384, heads: 6, width: 1536, ..SMALL };
        assert_eq!((cluster(wide, 2), cluster(wide, 4)), (Some(16), None));
        for odd in [
            ModelShape { channels: 96, ..SMALL },
            ModelShape { heads: 5, ..SMALL },
            ModelShape { heads: 0, ..SMALL },
            ModelShape { heads: 8, ..SMALL },
            ModelShape { channels: 256, heads: 2, ..SMALL },
            ModelShape { width: 0, ..SMALL },
            ModelShape { width: 192, ..SMALL },
            ModelShape { vocab: 257, ..SMALL },
            ModelShape { layers: 0, ..SMALL },
            ModelShape { layers: 60, ..SMALL },
            ModelShape { channels: 512, heads: 8, width: 2048, ..SMALL },
        ] {
            assert_eq!(cluster(odd, 2), None, "{odd:?}");
        }
    }

    /// Without this, the plan could promise another size than the packing writes.
    #[test]
    fn lengths_are_those_counted_by_hand() {
        let layout = BatchLayout::new(SMALL, 2).unwrap();
        // 65 rows of the head in blocks of 16.
        assert_eq!(layout.stream_len(), 6 * (4 * 128 * 128 + 2 * 128 * 512) + 8 * 16 * 128);
        // A block's rows: 48 of q, k, v, 64 of up, 16 of out and of down, 16 of the head; gammas of 16 channels.
        let block = 6 * (2 * 48 + 2 * 64 + 4 * 16) + 16 + 2 * 16;
        assert_eq!(layout.constants_len(), 8 * block + 65 + 256);
    }
}
