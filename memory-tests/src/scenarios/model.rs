//! The whole model: every way of making, using, breaking and dropping one.

use std::ops::ControlFlow;

use anyhow::ensure;
use touchstone_runtime::backend::{Backend, OUTBOX_ROWS};
use touchstone_runtime::generate::{Generator, LOOKAHEAD, Request, capacity};
use touchstone_runtime::plan::{self, Capacity};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::{Error, Model, Result};

use super::subject::{
    CAPACITY, MANY, PROMPT, Stop, config, model, must_panic, panic_at_every_tap, short_config,
    stop_everywhere, weights,
};
use super::{Table, on_both_precisions, on_every_backend};
use crate::scenario::Check;

/// Sampling that takes every path of the rule.
pub(super) const LIVELY: Sampling = Sampling { temperature: 0.9, top_k: 13, top_p: 0.8, seed: 11 };

/// One token more.
///
/// # Errors
/// Those of the model.
pub(super) fn decode<B: Backend>(b: &mut B, model: &mut Model<B>) -> Result<()> {
    model.decode(b, 1)
}

/// Runs the prompt and generates tokens until `tokens` holds `count` of them, a step at a time. Allocates nothing where `tokens` has room.
///
/// # Errors
/// Those of the model.
pub(super) fn generate<B: Backend>(
    b: &mut B,
    model: &mut Model<B>,
    sampling: &Sampling,
    count: usize,
    tokens: &mut Vec<u32>,
) -> Result<()> {
    model.set_sampling(b, &[*sampling])?;
    model.rewind(b, &[0])?;
    model.forward(b, &PROMPT)?;
    model.sample(b)?;
    model.take(b, tokens)?;
    while tokens.len() < count {
        decode(b, model)?;
        model.take(b, tokens)?;
    }
    Ok(())
}

fn construct<B: Backend>(b: &mut B) -> Check {
    model(b)?;
    Ok(())
}

fn forward<B: Backend>(b: &mut B) -> Check {
    let mut model = model(b)?;
    for prompt in [&[3; CAPACITY.time][..], &PROMPT[..], &PROMPT[..1]] {
        model.forward(b, prompt)?;
        model.advance();
        ensure!(model.read_logits(b, prompt.len())?.iter().all(|x| x.is_finite()), "logits are not finite");
    }
    Ok(())
}

/// A model for a [`Generator`] of `batch` sequences.
///
/// # Errors
/// Those of the backend.
pub(super) fn generating<B: Backend>(b: &mut B, batch: usize) -> Result<Model<B>> {
    let config = short_config();
    Model::new(b, &config, &weights(), capacity(config.max_position_embeddings, batch))
}

/// Greedy and sampled, from the cache and past its end, with one decode step under way and with many.
fn generator<B: Backend>(b: &mut B) -> Check {
    let mut model = generating(b, 1)?;
    for lookahead in [1, LOOKAHEAD] {
        let mut generator = Generator::new(b, &mut model, 1, lookahead);
        for (max_new_tokens, sampling) in [(32, Sampling::GREEDY), (32, LIVELY), (36, LIVELY)] {
            let mut count = 0;
            let request = Request { prompt: &PROMPT, max_new_tokens, sampling };
            let timings = generator.generate(&[request], |_, _| {
                count += 1;
                ControlFlow::Continue(())
            })?;
            ensure!(count == max_new_tokens, "{count} tokens of {max_new_tokens}");
            ensure!((timings.slid > 0) == (max_new_tokens > 33), "{timings:?}");
        }
    }
    Ok(())
}

/// Stopped after three tokens by `stop`, with decode steps under way.
fn stopped_generating<B: Backend>(b: &mut B, stop: fn() -> ControlFlow<()>) -> Check {
    let mut model = generating(b, 1)?;
    let mut generator = Generator::new(b, &mut model, 1, LOOKAHEAD);
    let mut left = 3;
    generator.generate(&[Request { prompt: &PROMPT, max_new_tokens: 32, sampling: LIVELY }], |_, _| {
        left -= 1;
        if left == 0 { stop() } else { ControlFlow::Continue(()) }
    })?;
    ensure!(left == 0, "{left} tokens did not come");
    Ok(())
}

/// A request without a meaning is refused before anything runs.
fn refused_request<B: Backend>(b: &mut B) -> Check {
    let mut model = generating(b, 1)?;
    let unknown = u32::try_from(short_config().vocab_size)?;
    let mut generator = Generator::new(b, &mut model, 1, 1);
    for (prompt, max_new_tokens) in [(&[][..], 1), (&[0], 0), (&[unknown], 1)] {
        let request = Request { prompt, max_new_tokens, sampling: LIVELY };
        let refused = generator.generate(&[request], |_, _| ControlFlow::Continue(()));
        ensure!(matches!(refused, Err(Error::Argument { .. })), "it had to be refused: {request:?}");
    }
    Ok(())
}

fn many_instances<B: Backend>(b: &mut B) -> Check {
    let mut many = (0..MANY).map(|_| model(b)).collect::<Result<Vec<_>>>()?;
    let mut first = Vec::new();
    generate(b, &mut many[0], &LIVELY, 5, &mut first)?;
    for model in &mut many[1..] {
        let mut tokens = Vec::new();
        generate(b, model, &LIVELY, 5, &mut tokens)?;
        ensure!(tokens == first, "instances differ: {tokens:?} and {first:?}");
    }
    Ok(())
}

/// Construction stops at every tensor.
fn stops<B: Backend>(b: &mut B, stop: Stop) -> Check {
    let tensors = plan::weights(&config()).len();
    stop_everywhere(tensors, stop, |source| Model::new(b, &config(), source, CAPACITY))
}

/// Passes that do not fit are refused, before and after the context has been filled.
fn context_full<B: Backend>(b: &mut B) -> Check {
    let mut model = model(b)?;
    let refused = model.forward(b, &[0; CAPACITY.time + 1]);
    ensure!(matches!(refused, Err(Error::ContextFull { .. })), "a pass over the capacity ran");
    let mut tokens = Vec::new();
    let context = config().max_position_embeddings;
    generate(b, &mut model, &Sampling::GREEDY, context - PROMPT.len() + 1, &mut tokens)?;
    let refused = decode(b, &mut model);
    ensure!(matches!(refused, Err(Error::ContextFull { .. })), "a token past the context was decoded");
    ensure!(model.forward(b, &PROMPT[..1]).is_err(), "a pass past the context ran");
    Ok(())
}

fn panic_in_a_pass<B: Backend>(b: &mut B) -> Check {
    let mut model = model(b)?;
    panic_at_every_tap(b, |b| model.forward(b, &PROMPT))
}

/// A decode step's listener panics: on a GPU that is where work would be recorded.
fn panic_while_decoding<B: Backend>(b: &mut B) -> Check {
    let mut model = model(b)?;
    generate(b, &mut model, &LIVELY, 3, &mut Vec::new())?;
    panic_at_every_tap(b, |b| {
        decode(b, &mut model)?;
        model.take(b, &mut Vec::with_capacity(1))
    })
}

/// Dropped with as many tokens outstanding as the outbox holds, and the device perhaps still at work.
fn dropped_at_work<B: Backend>(b: &mut B) -> Check {
    let mut model = model(b)?;
    model.forward(b, &PROMPT)?;
    model.set_sampling(b, &[LIVELY])?;
    model.sample(b)?;
    for _ in 1..OUTBOX_ROWS {
        decode(b, &mut model)?;
    }
    Ok(())
}

/// Made for more sequences than any GPU has memory for: the weights are there when the cache is refused.
fn out_of_memory<B: Backend>(b: &mut B) -> Check {
    let refused = Model::new(b, &config(), &weights(), Capacity { batch: 1 << 32, ..CAPACITY });
    ensure!(matches!(refused, Err(Error::Kernel(_))), "a model that does not fit was made");
    Ok(())
}

/// Kernels that a model launches, the fused ones and the plain ones.
const ENTRIES: &[&str] = &["embedding", "norm_qkv", "attention", "linear_add", "norm_gelu", "sample"];

/// Adds a scenario a manner and backend.
pub(super) fn list(table: &mut Table) {
    on_every_backend!(table, "model", "construct", &[], |b| construct(b));
    on_every_backend!(table, "model", "forward", ENTRIES, |b| forward(b));
    on_every_backend!(table, "model", "generate", ENTRIES, |b| generator(b));
    on_every_backend!(table, "model", "generate-and-break", &[], |b| {
        stopped_generating(b, || ControlFlow::Break(()))
    });
    on_every_backend!(table, "model", "panic-generating", &[], |b| {
        must_panic(|| stopped_generating(b, || panic!("planned")))
    });
    on_every_backend!(table, "model", "error-generating", &[], |b| refused_request(b));
    on_every_backend!(table, "model", "many-instances", ENTRIES, |b| many_instances(b));
    on_every_backend!(table, "model", "error-loading", &[], |b| stops(b, Stop::Error));
    on_every_backend!(table, "model", "error-context-full", ENTRIES, |b| context_full(b));
    on_every_backend!(table, "model", "panic-loading", &[], |b| stops(b, Stop::Panic));
    on_every_backend!(table, "model", "panic-in-a-pass", &[], |b| panic_in_a_pass(b));
    on_every_backend!(table, "model", "panic-while-decoding", &[], |b| panic_while_decoding(b));
    on_every_backend!(table, "model", "dropped-at-work", ENTRIES, |b| dropped_at_work(b));
    on_both_precisions!(table, "model", "error-out-of-memory", &[], |b| out_of_memory(b));
}
