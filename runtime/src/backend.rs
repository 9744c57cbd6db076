//! The vocabulary that the model is written in: a short list of verbs, each of which is a specification.
//!
//! Every verb writes into buffers that the caller owns, reads the rest, and allocates nothing. Buffers are flat and row-major;
//! the shape structs say how much of them a call uses. Sums accumulate in float32 on the GPU and in the working precision or
//! better on the host. A shape that does not fit its buffers is a programmer's error and panics with both figures.

pub use touchstone_kernels::CURSOR_LEN;

use crate::config::Config;
use crate::error::Result;
use crate::modules::{AttentionSublayer, Head, LayerCache, MlpSublayer, Norm, Scratch};
use crate::plan::{Capacity, Entry, Precision};
use crate::sampling::Sampling;
use crate::taps::Taps;
use crate::weights::Tensor;

/// The rows of a `[R, C]` buffer that a call reads; what it makes of them is written densely, from row 0 on.
#[derive(Debug)]
pub enum Rows<'a, I> {
    /// So many, from row 0 on.
    All(usize),
    /// Of each sequence of a pass `[B, T]` the last position that is its own: row b · T + length − 1.
    Last {
        /// B and T.
        step: Step,
        /// `[B, 3]`, of which the lengths are read.
        cursor: &'a I,
    },
}

impl<I> Clone for Rows<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Rows<'_, I> {}

impl<I> Rows<'_, I> {
    /// How many rows.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::All(count) => *count,
            Self::Last { step, .. } => step.batch,
        }
    }
}

/// Dimensions of a matrix product `[rows, inputs] × [outputs, inputs]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of the input.
    pub rows: usize,
    /// Columns of the input and of the weight.
    pub inputs: usize,
    /// Rows of the weight, columns of the output.
    pub outputs: usize,
}

/// Dimensions of a forward pass over `batch` sequences of `time` new positions each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
}

impl Step {
    /// R = B · T.
    #[must_use]
    pub fn rows(self) -> usize {
        self.batch * self.time
    }
}

/// Dimensions of attention over a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// B and T.
    pub step: Step,
    /// H.
    pub heads: usize,
    /// D.
    pub head_size: usize,
    /// P, the cache's capacity.
    pub context: usize,
}

impl AttentionShape {
    /// C = H · D.
    #[must_use]
    pub fn channels(self) -> usize {
        self.heads * self.head_size
    }

    /// Elements of one cache buffer `[B, H, P, D]`.
    #[must_use]
    pub fn cache_len(self) -> usize {
        self.step.batch * self.channels() * self.context
    }
}

/// A model's parameters.
pub struct Weights<B: Backend> {
    /// Token embedding, and head: `[V, C]`.
    pub token: B::Weight,
    /// Position embedding `[P, C]`.
    pub position: B::Weight,
    /// The blocks, in order.
    pub blocks: Vec<(AttentionSublayer<B>, MlpSublayer<B>)>,
    /// LayerNorm in front of the head.
    pub final_norm: Norm<B>,
}

/// What decode steps read and change besides the parameters.
pub struct DecodeState<'a, B: Backend> {
    /// Each block's cache.
    pub caches: &'a mut [LayerCache<B>],
    /// `[B]`: the tokens sampled last.
    pub tokens: &'a mut B::Ids,
    /// `[B, 3]`.
    pub cursor: &'a mut B::Ids,
    /// `[B, V]`: of the last step.
    pub logits: &'a mut B::Wide,
    /// Where the tokens go.
    pub outbox: &'a mut B::Outbox,
}

/// A place where the model runs.
///
/// `cursor` operands are `[B, 3] u32`, for each sequence `past`, `step` and `length`: the number of cached positions, the number of tokens
/// sampled so far, and how many of the T positions of a pass are the sequence's own. Those come first; what is behind them is padding, whose
/// results nobody reads: a later pass writes over its rows of the cache before any of its queries sees them. Cursors live where the verbs run, so
/// that a recorded sequence of verbs can be replayed for the next token unchanged.
pub trait Backend: Sized {
    /// Activations and cache, in the working precision.
    type Buf;
    /// Residual stream and logits, at least float32.
    type Wide;
    /// A parameter.
    type Weight;
    /// u32 values: token ids, cursor.
    type Ids;
    /// Where sampled tokens leave the device; see [`Backend::take`].
    type Outbox;
    /// What [`Backend::repeat`] remembers.
    type Recording: Default;
    /// What [`Backend::decode`] needs of its own.
    type Decoder;

    /// Element widths, for the memory plan.
    fn precision(&self) -> Precision;
    /// The taps of this backend.
    fn taps(&mut self) -> &mut Taps;

    // ---- memory: the only methods that allocate ----

    /// Makes a zeroed buffer of activations. Errors: out of memory.
    fn buf(&mut self, entry: &Entry) -> Result<Self::Buf>;
    /// Makes a zeroed wide buffer. Errors: out of memory.
    fn wide(&mut self, entry: &Entry) -> Result<Self::Wide>;
    /// Makes a zeroed buffer of ids. Errors: out of memory.
    fn ids(&mut self, entry: &Entry) -> Result<Self::Ids>;
    /// Makes a parameter from a stored tensor, converted to the working precision. Errors: out of memory.
    fn weight(&mut self, tensor: &Tensor<'_>) -> Result<Self::Weight>;
    /// Makes an outbox with `slots` for rows of `batch` tokens. Errors: out of memory.
    fn outbox(&mut self, slots: usize, batch: usize) -> Result<Self::Outbox>;
    /// The buffers of [`Backend::decoder`]; none where there is none. Errors: the device's.
    fn decoder_plan(&mut self, _config: &Config, _capacity: Capacity) -> Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    /// Makes what runs many decode steps of this model at once, where the backend has something for it. Errors: out of memory.
    fn decoder(
        &mut self,
        _config: &Config,
        _weights: &Weights<Self>,
        _capacity: Capacity,
    ) -> Result<Option<Self::Decoder>> {
        Ok(None)
    }

    /// Writes `values`, rounded to the working precision, to the front of `y`.
    fn write(&mut self, y: &mut Self::Buf, values: &[f64]) -> Result<()>;
    /// Reads the first `len` values of `x`.
    fn read(&mut self, x: &Self::Buf, len: usize) -> Result<Vec<f64>>;
    /// Writes `values` to the front of `y`.
    fn write_wide(&mut self, y: &mut Self::Wide, values: &[f64]) -> Result<()>;
    /// Reads the first `len` values of `x`.
    fn read_wide(&mut self, x: &Self::Wide, len: usize) -> Result<Vec<f64>>;
    /// Writes `values` to the front of `y`.
    fn write_ids(&mut self, y: &mut Self::Ids, values: &[u32]) -> Result<()>;
    /// Reads the first `len` ids of `x`.
    fn read_ids(&mut self, x: &Self::Ids, len: usize) -> Result<Vec<u32>>;

    // ---- verbs ----

    /// y[b, t] = token[tokens[b, t]] + position[past_b + t].
    ///
    /// `y: [B, T, C] wide`, `tokens: [B, T]`, `token: [V, C]`, `position: [P, C]` or none, `cursor: [B, 3]`. An id of V or more, or
    /// a position of P or more, gives a row of NaN. Source: `torch.nn.Embedding`.
    fn embedding(
        &mut self,
        y: &mut Self::Wide,
        tokens: &Self::Ids,
        token: &Self::Weight,
        position: Option<&Self::Weight>,
        cursor: &Self::Ids,
        step: Step,
        channels: usize,
    ) -> Result<()>;

    /// y = (x − mean) / sqrt(var + eps) · weight + bias over the last dimension, var the biased variance.
    ///
    /// `y: [rows.count(), C]`, `x: [R, C] wide`, of which `rows` are read. Source: `torch.nn.LayerNorm`.
    fn layernorm(
        &mut self,
        y: &mut Self::Buf,
        x: &Self::Wide,
        norm: &Norm<Self>,
        rows: Rows<'_, Self::Ids>,
        channels: usize,
    ) -> Result<()>;

    /// y = x · weightᵀ + bias.
    ///
    /// `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]` or none. Source: `torch.nn.Linear`.
    fn linear(
        &mut self,
        y: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Self::Weight,
        bias: Option<&Self::Weight>,
        shape: LinearShape,
    ) -> Result<()>;

    /// y = x · weightᵀ, kept wide: `y: [R, V] wide`, `x: [R, C]`, `weight: [V, C]`. Source: `torch.nn.Linear`.
    fn logits(
        &mut self,
        y: &mut Self::Wide,
        x: &Self::Buf,
        weight: &Self::Weight,
        shape: LinearShape,
    ) -> Result<()>;

    /// y = x · Φ(x) = x/2 · (1 + erf(x / √2)) for the first `len` elements. Source: `torch.nn.GELU()`.
    fn gelu(&mut self, y: &mut Self::Buf, x: &Self::Buf, len: usize) -> Result<()>;

    /// y += x for the first `len` elements: `y` wide, `x` working.
    fn add(&mut self, y: &mut Self::Wide, x: &Self::Buf, len: usize) -> Result<()>;

    /// cache[b, h, past_b + t, d] = x[b, t, h·D + d]: pure data movement.
    ///
    /// `cache: [B, H, P, D]`, `x: [B, T, C]`. Positions of P or more are not written.
    fn append(
        &mut self,
        cache: &mut Self::Buf,
        x: &Self::Buf,
        cursor: &Self::Ids,
        shape: AttentionShape,
    ) -> Result<()>;

    /// y[b, t, h] = Σ_s softmax_s(q[b, t, h] · keys[b, h, s] / √D) · values[b, h, s] over s ≤ past_b + t.
    ///
    /// `y, q: [B, T, C]`, `keys, values: [B, H, P, D]`, already holding the new positions. Source: `torch.nn.functional.
    /// scaled_dot_product_attention` with a causal mask.
    fn attention(
        &mut self,
        y: &mut Self::Buf,
        q: &Self::Buf,
        keys: &Self::Buf,
        values: &Self::Buf,
        cursor: &Self::Ids,
        shape: AttentionShape,
    ) -> Result<()>;

    /// Sets the rules that [`Backend::sample`] picks by from now on, `[B]`, one a row; a new outbox is greedy. They live where the verbs run,
    /// so that a recording serves any rule.
    fn set_sampling(&mut self, outbox: &mut Self::Outbox, sampling: &[Sampling]) -> Result<()>;

    /// Picks a token a row by the row's [`Sampling`], writes it to `tokens` and into the outbox, and advances each sequence's cursor: past by
    /// its length, step by 1, and the length to 1, which is that of a decode step. A row's token depends on nothing in other rows.
    ///
    /// `tokens: [B]`, `cursor: [B, 3]`, `logits: [B, V] wide`.
    fn sample(
        &mut self,
        outbox: &mut Self::Outbox,
        tokens: &mut Self::Ids,
        cursor: &mut Self::Ids,
        logits: &Self::Wide,
        batch: usize,
        vocab: usize,
    ) -> Result<()>;

    /// Waits for the oldest row of sampled tokens not yet taken and appends it to `tokens`. At most as many rows
    /// as the outbox has slots may be outstanding. Errors: the device failed.
    fn take(&mut self, outbox: &mut Self::Outbox, tokens: &mut Vec<u32>) -> Result<()>;

    /// Runs `body`, a sequence of verbs on the same buffers and shapes at every call with this `recording`.
    ///
    /// A backend may record the first run and replay it afterwards without calling `body` again.
    fn repeat(
        &mut self,
        recording: &mut Self::Recording,
        body: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()>;

    /// Steps that [`Backend::decode`] should be asked for at most, so that a generation that is broken off ends soon.
    fn decode_stride(decoder: &Self::Decoder) -> usize;

    /// `steps` decode steps of every sequence: embedding, every block, head and sampling, the same results as the verbs' within rounding. The
    /// steps fit into the outbox, and into the context of some sequence; one whose context is full idles. Only called with what
    /// [`Backend::decoder`] made.
    fn decode(
        &mut self,
        decoder: &mut Self::Decoder,
        weights: &Weights<Self>,
        state: DecodeState<'_, Self>,
        steps: usize,
    ) -> Result<()>;

    // ---- fused verbs: the default is the plain composition, and the test twin of any other implementation ----

    /// x += out(attention(q, k, v of ln1(x))), appending to the cache. `x: [B, T, C] wide`.
    fn attention_sublayer(
        &mut self,
        x: &mut Self::Wide,
        sublayer: &AttentionSublayer<Self>,
        cache: &mut LayerCache<Self>,
        scratch: &mut Scratch<Self>,
        cursor: &Self::Ids,
        shape: AttentionShape,
    ) -> Result<()> {
        sublayer.compose(self, x, cache, scratch, cursor, shape)
    }

    /// x += down(gelu(up(ln2(x)))). `x: [R, C] wide`.
    fn mlp_sublayer(
        &mut self,
        x: &mut Self::Wide,
        sublayer: &MlpSublayer<Self>,
        scratch: &mut Scratch<Self>,
        rows: usize,
    ) -> Result<()> {
        sublayer.compose(self, x, scratch, rows)
    }

    /// logits = final_norm(x) · tokenᵀ for `rows` of x. `logits: [rows.count(), V] wide`, `x: [R, C] wide`.
    fn head(
        &mut self,
        logits: &mut Self::Wide,
        x: &Self::Wide,
        head: &Head<'_, Self>,
        scratch: &mut Scratch<Self>,
        rows: Rows<'_, Self::Ids>,
    ) -> Result<()> {
        head.compose(self, logits, x, scratch, rows)
    }
}

/// Rows of tokens that the outbox of a model holds at least before the oldest must be taken.
pub const OUTBOX_ROWS: usize = 64;
