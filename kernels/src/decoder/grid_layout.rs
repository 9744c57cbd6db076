//! For which models and GPUs the whole GPU is a decoder, and how it is laid out: the host's side of `cu/grid_model.cuh`, `cu/grid_shared.cuh` and
//! `cu/grid_exchange.cuh`.

use super::ModelShape;
use super::spread::{PICK_BYTES, PICK_WORDS, picks};
use crate::compile::Unit;

/// How a model is spread over all multiprocessors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridLayout {
    shape: ModelShape,
    /// Bytes of a weight: 2 or 4.
    element_bytes: usize,
    /// Blocks of the launch, one a multiprocessor.
    blocks: usize,
    /// Dynamic shared memory of a block.
    shared_bytes: usize,
    /// Pieces that a head's cache is cut into.
    splits: usize,
}

/// Warps of a block that multiply; with more, registers spill.
const WARPS: usize = 8;
/// Bytes of a row that are multiplied at a time, and rows.
const GROUP_BYTES: usize = 64;
const TILE_ROWS: usize = 8;
/// Rows that a finishing warp adds up at a time.
const FINISHER_ROWS: usize = 24;
/// Copies of the words that all blocks read.
const REPLICAS: usize = 6;
/// Consumers read all pieces and merge them: more cost more than they bring.
const SPLITS_MAX: usize = 6;
/// Below this, recorded steps keep up: handing results from block to block takes as long as reading the weights.
const WEIGHT_BYTES_MIN: usize = 64 << 20;

impl GridLayout {
    /// The layout for a model whose elements have so many bytes, on a GPU of `multiprocessors` whose blocks may use `shared_bytes_max` of
    /// shared memory, if there is one.
    #[must_use]
    pub fn new(
        shape: ModelShape,
        element_bytes: usize,
        multiprocessors: usize,
        shared_bytes_max: usize,
    ) -> Option<Self> {
        let ModelShape { channels, heads, width, layers, context, vocab } = shape;
        if [channels, heads, width, layers, context, vocab, multiprocessors].contains(&0)
            || channels % heads != 0
            || shared_bytes_max < PICK_BYTES
            || !picks(multiprocessors, vocab)
        {
            return None;
        }
        let shared_bytes = (shared_bytes_max - PICK_BYTES) / 16 * 16;
        // A task of attention, a head's piece, has a block of its own, whose warps take 16 positions each at a time. No more pieces than
        // make the last position's rounds fewer: consumers read them all.
        let at_once = WARPS * 16;
        let most = (multiprocessors / heads).min(context.div_ceil(at_once)).clamp(1, SPLITS_MAX);
        let rounds = context.div_ceil(at_once * most);
        let splits = context.div_ceil(at_once * rounds);
        let layout = Self { shape, element_bytes, blocks: multiprocessors, shared_bytes, splits };
        let head_bytes = channels / heads * element_bytes;
        let even = channels % 16 == 0 && width % 16 == 0 && head_bytes.is_multiple_of(16);
        // The device code counts rows times blocks in 32 bits.
        let counted = vocab.max(3 * channels).max(width) < u32::MAX as usize / (multiprocessors + 1);
        (even && counted && head_bytes <= 32 * 16 && layout.shared_bytes_needed() <= shared_bytes)
            .then_some(layout)
    }

    /// Whether one launch a generation is faster than recorded steps.
    #[must_use]
    pub fn gains(&self) -> bool {
        let ModelShape { channels, width, layers, vocab, .. } = self.shape;
        let weights = layers * (4 * channels * channels + 2 * channels * width) + vocab * channels;
        weights * self.element_bytes >= WEIGHT_BYTES_MIN
    }

    /// Words of 16 bytes of the exchange: `EXCHANGE_WORDS` of the device code.
    #[must_use]
    pub fn exchange_words(&self) -> usize {
        let ModelShape { channels, heads, width, .. } = self.shape;
        let (wide, pack) = (3, 12 / self.element_bytes);
        let head_words = (channels / heads).div_ceil(pack);
        let core_pack = if self.element_bytes == 2 { 4 } else { 1 };
        let attention = 3 * heads * head_words + self.splits * channels / core_pack;
        let rows = 2 * channels.div_ceil(wide) + width.div_ceil(pack);
        2 * REPLICAS * (attention + rows) + PICK_WORDS * self.blocks
    }

    /// Rows of a block in the stage that has most.
    fn rows_max(&self) -> usize {
        let ModelShape { channels, heads, width, vocab, .. } = self.shape;
        let pack = 12 / self.element_bytes;
        let head_words = (channels / heads).div_ceil(pack);
        let stages = [
            (3 * heads * head_words, pack),
            (channels.div_ceil(3), 3),
            (width.div_ceil(pack), pack),
            (vocab, 1),
        ];
        stages.map(|(words, rows)| words.div_ceil(self.blocks) * rows).into_iter().max().unwrap_or(0)
    }

    /// Warps of a block that finish: three, measured to be faster, but where their sums would take room from the ring.
    fn finishers(&self) -> usize {
        if self.rows_max() <= 2 * FINISHER_ROWS { 3 } else { 2 }
    }

    /// Threads of a block: one more warp fetches.
    pub(crate) fn threads(&self) -> usize {
        (WARPS + self.finishers() + 1) * 32
    }

    /// At least what a block's shared memory takes, with a ring that holds no more than the tile at hand.
    fn shared_bytes_needed(&self) -> usize {
        let ModelShape { channels, heads, width, .. } = self.shape;
        let (bytes, head) = (self.element_bytes, channels / heads);
        let group_bytes =
            |columns: usize| (columns * bytes).div_ceil(GROUP_BYTES).div_ceil(WARPS) * GROUP_BYTES;
        // In bf16, columns of the residual stream have two parts.
        let inputs = WARPS * (4 / bytes * group_bytes(channels) + group_bytes(width));
        let (queries, stream) = (WARPS * head * 4, channels * 4);
        let pass_rows = self.rows_max().next_multiple_of(TILE_ROWS).min(self.finishers() * FINISHER_ROWS);
        let partial = 2 * 3 * pass_rows * (WARPS + 4) * 4;
        let core = (WARPS + self.finishers()) * (head + 4) * 4;
        let own = (channels.div_ceil(3).div_ceil(self.blocks) * 3).div_ceil(4) * 16;
        let (spans, norms) = (WARPS * 8, 4 * channels * bytes);
        let (slot, slots) = self.ring();
        inputs + queries + partial + core + own + stream + spans + norms + 8 * 11 + slots * (slot + 16)
    }

    /// Bytes of a slot of the ring, and slots that a tile takes.
    fn ring(&self) -> (usize, usize) {
        let power_below = |n: usize| {
            if n >= 8 {
                8
            } else if n >= 4 {
                4
            } else {
                n.clamp(1, 2)
            }
        };
        let stride = |columns: usize| (columns * self.element_bytes + 63) / 128 * 128 + 64;
        let (narrow, wide) = (stride(self.shape.channels), stride(self.shape.width));
        let least = wide.max(narrow * if narrow * 8 <= 13 * 1024 { 8 } else { 4 });
        let slot = least.div_ceil(128) * 128 + if least < 2 * wide { 64 } else { 0 };
        (slot, TILE_ROWS / power_below(slot / wide).min(power_below(slot / narrow)))
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
        self.blocks
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
            ("GRID_BLOCKS", self.blocks),
            ("GRID_WARPS", WARPS),
            ("GRID_FINISHERS", self.finishers()),
            ("GRID_SPLITS", self.splits),
            ("GRID_SHARED", self.shared_bytes),
            ("GRID_EXCHANGE_WORDS", self.exchange_words()),
        ];
        Unit::decoder(&["decode_grid.cu"], &[&self.shape.macros(true)[..], &own].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::shapes::{WIDE, XL};

    /// Multiprocessors and shared memory of an H200.
    const HOPPER: (usize, usize) = (132, 232_448);

    fn layout(shape: ModelShape, bytes: usize, (blocks, shared): (usize, usize)) -> Option<GridLayout> {
        GridLayout::new(shape, bytes, blocks, shared)
    }

    /// Without this, a model could get a layout that the device code refuses, or be left to the slower path unnoticed.
    #[test]
    fn layouts_are_those_of_large_models_and_of_no_odd_one() {
        let splits = |shape| layout(shape, 2, HOPPER).map(|found| found.splits);
        assert_eq!(splits(WIDE), Some(2));
        assert_eq!(splits(ModelShape { heads: 12, context: 1024, vocab: 50257, ..WIDE }), Some(4));
        assert_eq!(splits(XL), Some(4));
        let finishers = |shape| layout(shape, 2, HOPPER).map(|found| found.finishers());
        assert_eq!((finishers(WIDE), finishers(XL)), (Some(3), Some(2)));
        assert!(layout(WIDE, 4, HOPPER).is_some());
        assert!(layout(WIDE, 2, (170, 101_376)).is_some());
        assert_eq!(layout(XL, 2, (170, 101_376)), None, "a ring does not fit");
        assert_eq!(layout(WIDE, 2, (132, 100)), None);
        assert_eq!(layout(WIDE, 2, (257, 232_448)), None, "a block is heard by nobody");
        for odd in [
            ModelShape { channels: 776, ..WIDE },
            ModelShape { heads: 7, ..WIDE },
            ModelShape { heads: 0, ..WIDE },
            ModelShape { heads: 1, ..WIDE },
            ModelShape { heads: 192, ..WIDE },
            ModelShape { width: 3080, ..WIDE },
            ModelShape { layers: 0, ..WIDE },
            ModelShape { vocab: 132 * 4096 + 1, ..WIDE },
            ModelShape { vocab: usize::MAX / 4096, ..WIDE },
        ] {
            assert_eq!(splits(odd), None, "{odd:?}");
        }
    }

    /// Without this, models that recorded steps run as fast would wait for a compilation of their own.
    #[test]
    fn only_large_models_gain() {
        let gains = |shape, bytes| layout(shape, bytes, HOPPER).is_some_and(|found| found.gains());
        let small = ModelShape { channels: 384, heads: 6, width: 1536, layers: 6, ..WIDE };
        assert!(gains(WIDE, 2) && gains(XL, 2) && !gains(small, 2) && !gains(small, 4));
    }

    /// Without this, the plan could promise less than the kernel writes.
    #[test]
    fn words_are_those_counted_by_hand() {
        // A head of 96 is 16 words of six values, and of each of two pieces 24 of four.
        let attention = 3 * 8 * 16 + 8 * 2 * 24;
        let copy = attention + 256 + 512 + 256;
        assert_eq!(layout(WIDE, 2, HOPPER).unwrap().exchange_words(), 12 * copy + 2 * 4 * 32 * 132);
    }
}
