//! A model whose whole generations are one launch: by a cluster of blocks, on GPUs that have room for it, a batch by several, or by all of the GPU.

use std::ops::ControlFlow;

use anyhow::ensure;
use half::bf16;
use touchstone_kernels::ledger::{self, Kind};
use touchstone_kernels::{Element, Outbox};
use touchstone_runtime::backend::Backend;
use touchstone_runtime::config::Config;
use touchstone_runtime::generate::{Generator, LOOKAHEAD, Request, capacity};
use touchstone_runtime::plan::{self, Capacity};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::taps::Path;
use touchstone_runtime::{Cuda, Model, Result};

use super::model::LIVELY;
use super::steady::{TOKENS, entered, must_not_allocate};
use super::subject::{PROMPT, Stop, config, stop_everywhere, weights};
use super::{Table, on_both_precisions, push};
use crate::scenario::{Body, Check, Place, Run};

/// The narrowest dimensions that have a decoder.
fn narrow() -> Config {
    Config {
        hidden_size: 128,
        num_attention_heads: 4,
        intermediate_size: 128,
        max_position_embeddings: 41,
        ..config()
    }
}

/// The narrowest that a train of clusters decodes, in bf16.
fn wide() -> Config {
    Config { hidden_size: 384, num_attention_heads: 6, intermediate_size: 1536, ..narrow() }
}

/// Which decoder.
#[derive(Clone, Copy)]
struct Which {
    /// Of which model.
    config: fn() -> Config,
    /// [`Path::Grid`] or [`Path::Shards`]: over the GPU.
    path: Path,
    /// Of more than one sequence: over several clusters.
    batch: usize,
}

impl Which {
    fn capacity(self) -> Capacity {
        capacity((self.config)().max_position_embeddings, self.batch)
    }
}

/// The model with that decoder. On GPUs that are known to have room it must have one.
fn model<E: Element>(cuda: &mut Cuda<E>, which: Which) -> Result<Model<Cuda<E>>>
where
    Cuda<E>: Backend,
{
    cuda.taps().set_path(which.path);
    let model = Model::new(cuda, &(which.config)(), &weights(), which.capacity())?;
    let compute = cuda.device().info().compute.0;
    if compute == 9 || (compute >= 8 && which.path == Path::Grid) {
        assert!(model.decode_stride(cuda).is_some(), "there is no decoder");
    }
    Ok(model)
}

/// Greedy and sampled, to the end of the context and past it.
fn generate<E: Element>(cuda: &mut Cuda<E>, which: Which) -> Check
where
    Cuda<E>: Backend,
{
    let mut model = model(cuda, which)?;
    for (max_new_tokens, sampling) in [(32, Sampling::GREEDY), (32, LIVELY), (36, LIVELY), (1, LIVELY)] {
        let mut count = 0;
        let request = Request { prompt: &PROMPT, max_new_tokens, sampling };
        let requests = vec![request; which.batch];
        Generator::new(cuda, &mut model, which.batch, LOOKAHEAD).generate(&requests, |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        let wanted = which.batch * max_new_tokens;
        ensure!(count == wanted, "{count} tokens of {wanted}");
    }
    Ok(())
}

/// Stopped after three tokens while the device goes on, and dropped so, or used again.
fn stopped<E: Element>(cuda: &mut Cuda<E>, which: Which, again: bool) -> Check
where
    Cuda<E>: Backend,
{
    let mut model = model(cuda, which)?;
    let mut texts = Vec::new();
    for _ in 0..=u32::from(again) {
        let mut text = Vec::new();
        let request = Request { prompt: &PROMPT, max_new_tokens: 32, sampling: LIVELY };
        let requests = vec![request; which.batch];
        Generator::new(cuda, &mut model, which.batch, LOOKAHEAD).generate(&requests, |_, token| {
            text.push(token);
            if text.len() > 2 * which.batch { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        texts.push(text);
    }
    ensure!(texts.iter().all(|text| *text == texts[0]), "the second text is another: {texts:?}");
    Ok(())
}

fn the_plan_to_the_byte<E: Element>(cuda: &mut Cuda<E>, which: Which) -> Check
where
    Cuda<E>: Backend,
{
    let mut planned = plan::plan(&(which.config)(), which.capacity());
    cuda.taps().set_path(which.path);
    planned.extend(cuda.decoder_plan(&(which.config)(), which.capacity())?);
    let before = ledger::snapshot();
    let model = model(cuda, which)?;
    let held = entered(&before, &ledger::snapshot(), Kind::DeviceMemory);
    let bytes =
        plan::total_bytes(&planned, cuda.precision()) + Outbox::state_len(which.batch) * size_of::<u32>();
    ensure!((held.handles, held.bytes) == (planned.len() + 1, bytes), "planned {bytes} bytes, held {held:?}");
    drop(model);
    ensure!(ledger::snapshot() == before, "dropped, and the ledger has {}", ledger::snapshot());
    Ok(())
}

/// Decode steps of every number allocate nothing, neither on the host nor on the device.
fn nothing_after_construction<E: Element>(cuda: &mut Cuda<E>, which: Which) -> Check
where
    Cuda<E>: Backend,
{
    let mut model = model(cuda, which)?;
    model.forward(cuda, &PROMPT.repeat(which.batch))?;
    model.sample(cuda)?;
    let (mut tokens, steps) = (Vec::with_capacity(which.batch * (1 + 2 * TOKENS)), vec![1; which.batch]);
    model.take(cuda, &mut tokens)?;
    let (before, (free_before, _)) = (ledger::snapshot(), cuda.device().memory()?);
    must_not_allocate(|| {
        model.rewind(cuda, &steps)?;
        model.decode(cuda, 2)?;
        model.take(cuda, &mut tokens)?;
        Ok(model.take(cuda, &mut tokens)?)
    })?;
    ensure!(ledger::snapshot() == before, "the ledger had {before}, and has {}", ledger::snapshot());
    let (free_after, _) = cuda.device().memory()?;
    ensure!(free_after >= free_before, "the driver took {} bytes", free_before - free_after);
    Ok(())
}

/// Construction stops at every tensor.
fn error_loading<E: Element>(cuda: &mut Cuda<E>, which: Which) -> Check
where
    Cuda<E>: Backend,
{
    cuda.taps().set_path(which.path);
    let tensors = plan::weights(&(which.config)()).len();
    stop_everywhere(tensors, Stop::Error, |source| {
        Model::new(cuda, &(which.config)(), source, which.capacity())
    })
}

const CLUSTER_ENTRIES: &[&str] = &["decode", "decode_pack", "decode_constants", "decode_head"];
const GRID_ENTRIES: &[&str] = &["decode_grid"];
const SHARDS_ENTRIES: &[&str] = &["decode_shards", "decode_shard_sums"];
const BATCH_ENTRIES: &[&str] = &[
    "decode_batch",
    "decode_batch_pack",
    "decode_batch_constants",
    "decode_batch_head",
    "decode_batch_means",
];

/// Adds the scenarios.
pub(super) fn list(table: &mut Table) {
    for (subject, path, entries) in [
        ("decoder", Path::Fastest, CLUSTER_ENTRIES),
        ("decoder-grid", Path::Grid, GRID_ENTRIES),
        ("decoder-shards", Path::Shards, SHARDS_ENTRIES),
    ] {
        let which = Which { config: narrow, path, batch: 1 };
        on_both_precisions!(table, subject, "generate", entries, |b| generate(b, which));
        on_both_precisions!(table, subject, "generate-and-break", &[], |b| stopped(b, which, false));
        on_both_precisions!(table, subject, "break-and-generate", &[], |b| stopped(b, which, true));
        on_both_precisions!(table, subject, "the-plan-to-the-byte", &[], |b| the_plan_to_the_byte(b, which));
        on_both_precisions!(table, subject, "nothing-after-construction", &[], |b| {
            nothing_after_construction(b, which)
        });
        on_both_precisions!(table, subject, "error-loading", &[], |b| error_loading(b, which));
    }
    for (subject, entries, which) in [
        ("decoder-train", CLUSTER_ENTRIES, Which { config: wide, path: Path::Fastest, batch: 1 }),
        ("decoder-batch", BATCH_ENTRIES, Which { config: narrow, path: Path::Fastest, batch: 23 }),
    ] {
        let mut in_bf16 = |manner, entries, run: Run<Cuda<bf16>>| {
            push(table, subject, manner, entries, |run| (Place::CudaBf16, Body::CudaBf16(run)), run);
        };
        in_bf16("generate", entries, Box::new(move |b| generate(b, which)));
        in_bf16("generate-and-break", &[], Box::new(move |b| stopped(b, which, false)));
        in_bf16("break-and-generate", &[], Box::new(move |b| stopped(b, which, true)));
        in_bf16("the-plan-to-the-byte", &[], Box::new(move |b| the_plan_to_the_byte(b, which)));
        in_bf16("nothing-after-construction", &[], Box::new(move |b| nothing_after_construction(b, which)));
        in_bf16("error-loading", &[], Box::new(move |b| error_loading(b, which)));
    }
}
