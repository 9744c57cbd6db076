//! The model's modules: the attention sublayer, the MLP sublayer and the head.

use touchstone_runtime::Result;
use touchstone_runtime::backend::{AttentionShape, Backend, CURSOR_LEN, Rows, Step};
use touchstone_runtime::modules::{AttentionSublayer, Head, LayerCache, MlpSublayer, Norm, Scratch};
use touchstone_runtime::plan::{Entry, Kind};
use touchstone_runtime::weights::WeightSource;

use super::subject::{CAPACITY, MANY, Stop, config, panic_at_every_tap, stop_everywhere, weights};
use super::{Table, on_every_backend};
use crate::scenario::Check;

/// Rows of the passes: a decode step, a short prompt, and more than the GPU's fused kernels take.
const PASSES: [usize; 3] = [1, 9, CAPACITY.time];

/// A module with its parameters.
trait Module<B: Backend>: Sized {
    /// Tensors that it loads.
    const TENSORS: usize;

    /// Loads it.
    fn load(b: &mut B, source: &dyn WeightSource) -> Result<Self>;

    /// Runs it on `rows` rows.
    fn run(&self, b: &mut B, around: &mut Around<B>, rows: usize) -> Result<()>;
}

/// What a module runs on, which the model would own.
struct Around<B: Backend> {
    x: B::Wide,
    logits: B::Wide,
    cursor: B::Ids,
    cache: LayerCache<B>,
    scratch: Scratch<B>,
}

impl<B: Backend> Around<B> {
    fn new(b: &mut B) -> Result<Self> {
        let c = config();
        let wide = |columns: usize| Entry::new("wide", &[CAPACITY.time, columns], Kind::Wide);
        let cache = [c.num_attention_heads, c.max_position_embeddings, c.head_size()];
        let cache = Entry::new("cache", &cache, Kind::Working);
        Ok(Self {
            x: b.wide(&wide(c.hidden_size))?,
            logits: b.wide(&wide(c.vocab_size))?,
            cursor: b.ids(&Entry::new("cursor", &[CURSOR_LEN], Kind::Ids))?,
            cache: LayerCache::new(b, &cache, &cache)?,
            scratch: Scratch::new(b, c.hidden_size, c.intermediate_size, CAPACITY)?,
        })
    }
}

impl<B: Backend> Module<B> for AttentionSublayer<B> {
    const TENSORS: usize = 7;

    fn load(b: &mut B, source: &dyn WeightSource) -> Result<Self> {
        Self::load(b, source, "blocks.0", config().hidden_size, 1e-5)
    }

    fn run(&self, b: &mut B, a: &mut Around<B>, rows: usize) -> Result<()> {
        let c = config();
        let shape = AttentionShape {
            step: Step { batch: 1, time: rows },
            heads: c.num_attention_heads,
            head_size: c.head_size(),
            context: c.max_position_embeddings,
        };
        b.attention_sublayer(&mut a.x, self, &mut a.cache, &mut a.scratch, &a.cursor, shape)
    }
}

impl<B: Backend> Module<B> for MlpSublayer<B> {
    const TENSORS: usize = 6;

    fn load(b: &mut B, source: &dyn WeightSource) -> Result<Self> {
        let c = config();
        Self::load(b, source, "blocks.0", c.hidden_size, c.intermediate_size, 1e-5)
    }

    fn run(&self, b: &mut B, a: &mut Around<B>, rows: usize) -> Result<()> {
        b.mlp_sublayer(&mut a.x, self, &mut a.scratch, rows)
    }
}

/// The parameters that the head borrows from the model.
struct Ending<B: Backend> {
    token: B::Weight,
    norm: Norm<B>,
}

impl<B: Backend> Module<B> for Ending<B> {
    const TENSORS: usize = 3;

    fn load(b: &mut B, source: &dyn WeightSource) -> Result<Self> {
        let c = config();
        let token = b.weight(&source.tensor("embedding.token.weight", &[c.vocab_size, c.hidden_size])?)?;
        Ok(Self { token, norm: Norm::load(b, source, "final_norm", c.hidden_size, 1e-5)? })
    }

    fn run(&self, b: &mut B, a: &mut Around<B>, rows: usize) -> Result<()> {
        let c = config();
        let head =
            Head { norm: &self.norm, token: &self.token, channels: c.hidden_size, vocab: c.vocab_size };
        b.head(&mut a.logits, &a.x, &head, &mut a.scratch, Rows::All(rows))
    }
}

fn construct<B: Backend, M: Module<B>>(b: &mut B) -> Check {
    M::load(b, &weights())?;
    Ok(())
}

fn forward<B: Backend, M: Module<B>>(b: &mut B) -> Check {
    let (module, mut around) = (M::load(b, &weights())?, Around::new(b)?);
    for rows in PASSES {
        module.run(b, &mut around, rows)?;
    }
    b.read_ids(&around.cursor, CURSOR_LEN)?;
    Ok(())
}

fn many_instances<B: Backend, M: Module<B>>(b: &mut B) -> Check {
    let mut around = Around::new(b)?;
    let many = (0..MANY).map(|_| M::load(b, &weights())).collect::<Result<Vec<M>>>()?;
    for module in &many {
        module.run(b, &mut around, PASSES[0])?;
    }
    b.read_ids(&around.cursor, CURSOR_LEN)?;
    Ok(())
}

/// Loading stops at every tensor.
fn stops<B: Backend, M: Module<B>>(b: &mut B, stop: Stop) -> Check {
    stop_everywhere(M::TENSORS, stop, |source| M::load(b, source))
}

/// A pass panics at every point that the taps show.
fn panic_in_a_pass<B: Backend, M: Module<B>>(b: &mut B) -> Check {
    let (module, mut around) = (M::load(b, &weights())?, Around::new(b)?);
    panic_at_every_tap(b, |b| module.run(b, &mut around, PASSES[0]))
}

/// Adds a scenario a module, manner and backend.
pub(super) fn list(table: &mut Table) {
    macro_rules! module {
        ($subject:literal, $module:ident, $entries:expr) => {
            on_every_backend!(table, $subject, "construct", &[], |b| construct::<_, $module<_>>(b));
            on_every_backend!(table, $subject, "forward", $entries, |b| forward::<_, $module<_>>(b));
            on_every_backend!(
                table,
                $subject,
                "many-instances",
                $entries,
                |b| many_instances::<_, $module<_>>(b)
            );
            on_every_backend!(table, $subject, "error-half-way", &[], |b| stops::<_, $module<_>>(
                b,
                Stop::Error
            ));
            on_every_backend!(table, $subject, "panic-loading", &[], |b| stops::<_, $module<_>>(
                b,
                Stop::Panic
            ));
            on_every_backend!(table, $subject, "panic-in-a-pass", $entries, |b| panic_in_a_pass::<
                _,
                $module<_>,
            >(b));
        };
    }
    module!("attention-sublayer", AttentionSublayer, &["norm_qkv", "attention", "linear_add"]);
    module!("mlp-sublayer", MlpSublayer, &["norm_gelu", "linear_add"]);
    module!("head", Ending, &["norm_logits"]);
}
