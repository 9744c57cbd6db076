//! A model small enough to be made hundreds of times, and parameters for it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use anyhow::ensure;
use touchstone_runtime::backend::Backend;
use touchstone_runtime::config::{Activation, Config, ModelType, StoredDtype};
use touchstone_runtime::plan::{Capacity, LogitRows};
use touchstone_runtime::weights::{RandomWeights, Tensor, WeightSource};
use touchstone_runtime::{Error, Model, Result};

use crate::scenario::Check;

/// Instances that live at once where many do.
pub const MANY: usize = 8;

/// Dimensions pairwise different; C and F are multiples of four, so that short passes take the fused kernels.
#[must_use]
pub fn config() -> Config {
    Config {
        vocab_size: 37,
        max_position_embeddings: 224,
        hidden_size: 24,
        num_attention_heads: 3,
        intermediate_size: 40,
        num_hidden_layers: 2,
        layer_norm_eps: 1e-5,
        hidden_act: Activation::Gelu,
        tie_word_embeddings: true,
        model_type: ModelType::TouchstoneGpt,
        dtype: StoredDtype::Float32,
    }
}

/// Room for one sequence, and for passes far longer than the GPU's fused kernels take.
pub const CAPACITY: Capacity = Capacity { batch: 1, time: 100, logits: LogitRows::All };

/// A short prompt, of more rows than a decode step.
pub const PROMPT: [u32; 9] = [1, 36, 2, 0, 17, 5, 5, 30, 8];

/// The same with a context that a generation soon fills, so that its window slides.
#[must_use]
pub fn short_config() -> Config {
    Config { max_position_embeddings: 41, ..config() }
}

/// Parameters for it.
#[must_use]
pub fn weights() -> RandomWeights {
    RandomWeights::new(7)
}

/// The small model.
///
/// # Errors
/// Those of the backend.
pub fn model<B: Backend>(b: &mut B) -> Result<Model<B>> {
    Model::new(b, &config(), &weights(), CAPACITY)
}

/// What a source does at the tensor where it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Returns an error.
    Error,
    /// Panics.
    Panic,
}

/// [`weights`], up to the tensor where they stop.
pub struct Stopping {
    source: RandomWeights,
    stop: Stop,
    left: Cell<usize>,
}

impl Stopping {
    /// Gives `tensors` tensors, and then stops.
    #[must_use]
    pub fn after(tensors: usize, stop: Stop) -> Self {
        Self { source: weights(), stop, left: Cell::new(tensors) }
    }
}

impl WeightSource for Stopping {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        if self.left.get() == 0 {
            match self.stop {
                Stop::Panic => panic!("planned: no {name}"),
                Stop::Error => {
                    let (field, problem) = (name.to_owned(), "planned: missing".to_owned());
                    return Err(Error::Invalid { path: "model.safetensors".into(), field, problem });
                }
            }
        }
        self.left.set(self.left.get() - 1);
        self.source.tensor(name, shape)
    }
}

/// Stops the source at every one of the `tensors` tensors that `load` asks for, and makes sure that each stop arrives.
///
/// # Errors
/// Where a stop did not arrive, or loading fails without one.
pub fn stop_everywhere<T>(
    tensors: usize,
    stop: Stop,
    mut load: impl FnMut(&dyn WeightSource) -> Result<T>,
) -> Check {
    for n in 0..tensors {
        let source = Stopping::after(n, stop);
        match stop {
            Stop::Error => {
                let loaded = load(&source);
                ensure!(
                    matches!(loaded, Err(Error::Invalid { .. })),
                    "tensor {n} failed, and loading did not"
                );
            }
            Stop::Panic => must_panic(|| load(&source).map(drop))?,
        }
    }
    load(&Stopping::after(tensors, stop))?;
    Ok(())
}

/// Runs what has to panic.
///
/// # Errors
/// Where it does not.
pub fn must_panic<T>(run: impl FnOnce() -> T) -> Check {
    ensure!(catch_unwind(AssertUnwindSafe(run)).is_err(), "it had to panic and did not");
    Ok(())
}

/// Runs a pass whose listener panics, once for every intermediate that the taps show, and then one that does not.
///
/// # Errors
/// Where a panic did not arrive, or the pass fails without one.
pub fn panic_at_every_tap<B: Backend>(b: &mut B, mut pass: impl FnMut(&mut B) -> Result<()>) -> Check {
    let shown = Rc::new(Cell::new(0usize));
    let counter = shown.clone();
    b.taps().listen(Some(Box::new(move |_, _| {
        counter.set(counter.get() + 1);
        None
    })));
    pass(b)?;
    ensure!(shown.get() > 0, "the taps show nothing");
    for tap in 0..shown.get() {
        let mut left = tap;
        b.taps().listen(Some(Box::new(move |path, _| {
            assert!(left > 0, "planned: at {path}");
            left -= 1;
            None
        })));
        must_panic(|| pass(b))?;
    }
    b.taps().listen(None);
    Ok(pass(b)?)
}
